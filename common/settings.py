"""What both sides' files have in common: TOML in which paths are below the file's own folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationInfo

from common.errors import ConsiliumError, Fault
from common.parts import validate

M = TypeVar("M", bound=BaseModel)


def resolved(value: object, info: ValidationInfo) -> object:
    """Make a path absolute; a file's folder comes with the context."""
    if not isinstance(value, str) or not value or "\x00" in value:
        raise ValueError("write a path")
    folder = (info.context or {}).get("folder")
    path = Path(value) if folder is None else folder / value
    if not path.is_absolute():
        raise ValueError("a path outside a file must be absolute")
    return str(path)


Place = Annotated[Path, BeforeValidator(resolved)]
"""A path that is absolute once it was read."""


def read_settings(model: type[M], path: Path, *, unreadable: Fault, invalid: Fault) -> M:
    """Read a file; raises ``unreadable`` where it is no TOML, ``invalid`` with the name of the wrong field."""
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConsiliumError(unreadable, f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # Beside what is no TOML: no UTF-8, a number of thousands of digits, and arrays nested as deep.
        raise ConsiliumError(unreadable, f"{path}: {error}") from error
    return validate(model, fields, invalid, context={"folder": path.absolute().parent})
