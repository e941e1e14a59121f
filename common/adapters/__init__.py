"""Adapters: what trains and travels, one file a method, behind one interface.

:func:`attach` puts a study's adapter and head on a backbone and returns an :class:`AdaptedModel`, whose trainable
parameters have a fixed order and go to and from one flat float32 vector exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from common import errors
from common.adapters import bitfit, bottleneck, ffa_lora, head_only, ia3, layer_norm, lora
from common.adapters.anatomy import anatomy_of
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.tasks import Task
from common.transfer import AdapterSpec

Vector = NDArray[np.float32]
"""(dimension,) float32: the trainable parameters in their fixed order."""

Method = Callable[[nn.Module, AdapterSpec, range, str], nn.Module]

METHODS: Mapping[str, Method] = {
    "ffa-lora": ffa_lora.attach,
    "lora": lora.attach,
    "ia3": ia3.attach,
    "bitfit": bitfit.attach,
    "layer-norm": layer_norm.attach,
    "bottleneck": bottleneck.attach,
    "head-only": head_only.attach,
}
"""How each method of :class:`common.study.AdapterSpec` puts its parameters on a copy of the backbone."""


class AdaptedModel(nn.Module):
    """A backbone with an adapter and a task's head.

    names          the trainable parameters in the vector's order: the encoder's in the order of its modules, then the
                   head's
    dimension      length of the vector
    prefix_layers  frozen layers before the first adapted one: what can be computed once and kept

    The backbone's own tensors are shared with every other model over the same backbone; only what trains is its own.
    """

    def __init__(self, backbone: Backbone, spec: AdapterSpec, task: Task, encoder: nn.Module, first: int) -> None:
        super().__init__()
        self.backbone, self.spec, self.task = backbone, spec, task
        self.encoder = encoder
        self.head = task.head(backbone.hidden_size).to(backbone.device)
        self.prefix_layers = first
        self._anatomy = anatomy_of(backbone.model)
        self.names = tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self.dimension = sum(parameter.numel() for _, parameter in self.trainable())

    @property
    def peft_model(self) -> PeftModel | None:
        """The encoder as a PEFT model; None where PEFT has no such method, or the head alone trains."""
        return self.encoder if isinstance(self.encoder, PeftModel) else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.head.parameters()).device

    def trainable(self) -> tuple[tuple[str, nn.Parameter], ...]:
        """Return the trainable parameters with their names, in the vector's order."""
        return tuple((name, self.get_parameter(name)) for name in self.names)

    def read_vector(self) -> Vector:
        """Return the trainable parameters as one vector, bit for bit."""
        flat = torch.cat([parameter.detach().reshape(-1) for _, parameter in self.trainable()])
        return np.array(flat.cpu().numpy(), dtype=np.float32)

    def write_vector(self, vector: Vector) -> None:
        """Set the trainable parameters, bit for bit; raises CSL-311 for another length or what is not finite."""
        if vector.shape != (self.dimension,):
            raise ConsiliumError(errors.ADAPTER_VECTOR, f"shape {vector.shape}, expected ({self.dimension},)")
        if not np.isfinite(vector).all():
            raise ConsiliumError(errors.ADAPTER_VECTOR, "a value is not finite")
        flat = torch.from_numpy(np.array(vector, dtype=np.float32))
        with torch.no_grad():
            offset = 0
            for _, parameter in self.trainable():
                parameter.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
                offset += parameter.numel()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (n, classes) from token identifiers and mask, both (n, t) int64."""
        return self.suffix(self._prefix(input_ids, attention_mask), attention_mask)

    @torch.no_grad()
    def prefix(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the hidden states that enter the first adapted layer, (n, t, h); they do not depend on the vector."""
        return self._prefix(input_ids, attention_mask)

    def suffix(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (n, classes) from the prefix's hidden states; everything that trains is in here."""
        hidden = self._anatomy.run(
            self._encoder_model(), hidden, attention_mask, first=self.prefix_layers, last=self.backbone.layers
        )
        logits = self.head(self.task.features(hidden, attention_mask))
        return torch.as_tensor(logits)

    @torch.no_grad()
    def features_of(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the features that enter the head, (n, h), under the present vector."""
        hidden = self._anatomy.run(
            self._encoder_model(),
            self._prefix(input_ids, attention_mask),
            attention_mask,
            first=self.prefix_layers,
            last=self.backbone.layers,
        )
        return self.task.features(hidden, attention_mask)

    def _prefix(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        encoder = self._encoder_model()
        hidden = self._anatomy.embed(encoder, input_ids)
        return self._anatomy.run(encoder, hidden, attention_mask, first=0, last=self.prefix_layers)

    def _encoder_model(self) -> nn.Module:
        peft_model = self.peft_model
        return self.encoder if peft_model is None else peft_model.get_base_model()


def attach(backbone: Backbone, spec: AdapterSpec, task: Task, stream: str) -> AdaptedModel:
    """Put a study's adapter and head on a backbone, which stays as it was.

    stream  64 hex digits of the study's public randomness: every site starts from the same weights

    Raises CSL-310 when the adapter does not fit the backbone.
    """
    if spec.last_layers > backbone.layers:
        raise ConsiliumError(errors.ADAPTER_INVALID, f"last_layers is {spec.last_layers} of {backbone.layers}")
    if spec.method not in METHODS:
        raise ConsiliumError(errors.ADAPTER_INVALID, f"{spec.method} is not there yet")
    head_alone = spec.method == "head-only"
    first = backbone.layers if head_alone else backbone.layers - (spec.last_layers or backbone.layers)
    encoder = METHODS[spec.method](sharing_copy(backbone.model), spec, range(first, backbone.layers), stream)
    model = AdaptedModel(backbone, spec, task, encoder, first)
    task.initialise_head(model.head, model)
    # Training mode is what Opacus asks for; with every dropout at zero and no batch norm it changes nothing else.
    model.train()
    return model


def sharing_copy(model: nn.Module) -> nn.Module:
    """Copy a model's modules while sharing every parameter and buffer with the original."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
