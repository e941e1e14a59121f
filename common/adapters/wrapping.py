"""A backbone inside PEFT, made or read, without PEFT's warnings about what is meant here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from common import errors
from common.errors import ConsiliumError


def in_peft(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Return the model inside PEFT; raises ValueError where no module fits the configuration."""
    with _quietly():
        adapted = get_peft_model(model, config)
    if not isinstance(adapted, PeftModel):
        raise ConsiliumError(errors.ADAPTER_INVALID, "peft returned no adapted model")
    return adapted


def read_peft(model: nn.Module, folder: Path) -> PeftModel:
    """Return the model with the adapter that PEFT wrote into a folder; raises OSError or ValueError."""
    with _quietly():
        return PeftModel.from_pretrained(model, str(folder), local_files_only=True)


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft asks transformers by an old name; nothing that a person could mend.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        # A layer norm has no widths of input and output, which its adapter does not need.
        warnings.filterwarnings("ignore", message="Unsupported layer type.*LayerNorm", category=UserWarning)
        yield
