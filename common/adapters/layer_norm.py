"""LayerNorm tuning: the layer norms of the adapted layers train, gain and shift [Zhao et al. 2023, arXiv 2312.11420].

They start at the backbone's own values. ``rank``, ``alpha`` and ``targets`` have no meaning here.
"""

from __future__ import annotations

from peft import LNTuningConfig, PeftModel
from torch import nn

from common import errors
from common.adapters.wrapping import in_peft
from common.anatomy import modules_within
from common.errors import ConsiliumError
from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> PeftModel:
    """Give the layers a copy of their layer norms that trains; raises CSL-310 where they have none."""
    del spec, stream
    norms = [name for name, module in modules_within(model, layers).items() if isinstance(module, nn.LayerNorm)]
    if not norms:
        raise ConsiliumError(errors.ADAPTER_INVALID, "these layers have no layer norm")
    return in_peft(model, LNTuningConfig(target_modules=norms))
