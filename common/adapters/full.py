"""Full fine-tuning: every weight of the adapted layers trains; with ``last_layers = 1`` the last layer alone.

They start at the backbone's own values. Embeddings stay frozen: a gradient per example of a vocabulary's table would
take tens of megabytes for each example. Batch norms stay too, since they would mix examples. ``rank``, ``alpha`` and
``targets`` have no meaning here. Ten million weights take ten million times noise: with a small epsilon this loses.
"""

from __future__ import annotations

from torch import nn

from common import errors
from common.adapters.bitfit import train_own
from common.anatomy import anatomy_of
from common.errors import ConsiliumError
from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> nn.Module:
    """Give the layers weights of their own that train; raises CSL-310 where no layer is adapted."""
    del spec, stream
    stack = anatomy_of(model).layers(model)
    found = False
    for index in layers:
        for module in stack[index].modules():
            if not isinstance(module, nn.modules.batchnorm._NormBase):
                for name, _ in [*module.named_parameters(recurse=False)]:
                    train_own(module, name)
                    found = True
    if not found:
        raise ConsiliumError(errors.ADAPTER_INVALID, "these layers have no weights")
    return model
