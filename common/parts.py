"""What every signed or written agreement is made of: strict, frozen parts, and one way to refuse what does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, NewType, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from common import errors
from common.errors import ConsiliumError

Digest = NewType("Digest", str)
"""64 hex digits of a SHA-256."""

Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
M = TypeVar("M", bound=BaseModel)


class Part(BaseModel):
    """Base of every part of a study: frozen, strict, unknown keys refused, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def validate(
    model: type[M], fields: dict[str, object], fault: errors.Fault, *, context: Mapping[str, object] | None = None
) -> M:
    """Validate parsed TOML against a strict model, turning what pydantic found into one coded error.

    TOML arrays become tuples and strings become enumerations, as in JSON; numbers and booleans stay strict. Validators
    of the model may read the ``context``.
    """
    try:
        return model.model_validate_json(json.dumps(fields, default=str), context=context)
    except RecursionError as error:
        raise ConsiliumError(fault, "nested too deeply") from error
    except ValidationError as error:
        raise ConsiliumError(fault, describe(error)) from error


def describe(error: ValidationError) -> str:
    """Name each field that was refused and why, without the value (it may be a secret)."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'study'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    )
