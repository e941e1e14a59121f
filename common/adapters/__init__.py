"""Adapters: what trains and travels, one file a method, behind one interface.

:func:`attach` puts a study's adapter and head on a backbone and returns an :class:`AdaptedModel`, whose trainable
parameters have a fixed order and go to and from one flat float32 vector exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from common import errors
from common.adapters import bitfit, bottleneck, ffa_lora, full, head_only, ia3, layer_norm, lora, ranks, rolora
from common.anatomy import anatomy_of
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.study import Study
from common.tasks import Task, task_for
from common.transfer import AdapterSpec, Pretraining

Vector = NDArray[np.float32]
"""(dimension,) float32: the trainable parameters in their fixed order."""

Number = TypeVar("Number", np.float32, np.float64, np.bool_)
Attach = Callable[[nn.Module, AdapterSpec, range, str], nn.Module]

METHODS: Mapping[str, Attach] = {
    "ffa-lora": ffa_lora.attach,
    "lora": lora.attach,
    "rolora": rolora.attach,
    "ia3": ia3.attach,
    "bitfit": bitfit.attach,
    "layer-norm": layer_norm.attach,
    "bottleneck": bottleneck.attach,
    "full": full.attach,
    "head-only": head_only.attach,
}
"""How each method of :class:`common.transfer.AdapterSpec` puts its parameters on a copy of the backbone."""


class AdaptedModel(nn.Module):
    """A backbone with an adapter and a task's head.

    names          the parameters of the vector in its order: the encoder's in the order of its modules, then the
                   head's; with ranks of their own at some sites, by the blocks of :mod:`common.adapters.ranks`
    dimension      length of the vector; ``active_dimension`` is how many of its numbers train now
    prefix_layers  frozen layers before the first adapted one: what can be computed once and kept
    pretraining    what the study says of its first rounds, None for one that starts with its task
    objective      what they learn without labels

    The backbone's own tensors are shared with every other model over the same backbone; only what trains is its own.
    The modules stay in evaluation mode, so that nothing is dropped and no batch norm looks at a batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: AdapterSpec,
        task: Task,
        encoder: nn.Module,
        first: int,
        *,
        pretraining: Pretraining | None = None,
        stream: str = "",
    ) -> None:
        super().__init__()
        self.backbone, self.spec, self.task = backbone, spec, task
        self.encoder = encoder
        self.head = task.head(task.width, alone=spec.method == "head-only").to(backbone.device)
        self.prefix_layers = first
        self.pretraining = pretraining
        self.objective = None if pretraining is None else task_for(pretraining.objective, backbone, stream)
        self._objective_rounds = 0 if pretraining is None else pretraining.rounds
        self._anatomy = anatomy_of(backbone.model)
        self._prefix_shape: tuple[int, ...] | None = None
        self.names = tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self._active = self.names
        self.dimension = self.active_dimension = self._count()
        self._order = ranks.order(spec, shapes_of(self))
        self.eval()

    @property
    def peft_model(self) -> PeftModel | None:
        """The encoder as a PEFT model; None where PEFT has no such method, or the head alone trains."""
        return self.encoder if isinstance(self.encoder, PeftModel) else None

    @property
    def has_adapter(self) -> bool:
        """Whether anything trains beside the head."""
        return not all(self._is_of_head(name) for name in self.names)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def trainable(self) -> tuple[tuple[str, nn.Parameter], ...]:
        """Return the parameters that train now with their names, in the vector's order: all, outside of a round."""
        return tuple((name, self.get_parameter(name)) for name in self._active)

    def is_pretraining(self, round_index: int) -> bool:
        """Whether a round learns without labels."""
        return round_index < self._objective_rounds

    def phases(self) -> tuple[int, ...]:
        """Return one round for each set of parameters that trains together under one loss."""
        alternates = self.spec.method == "rolora"
        rounds = range(self._objective_rounds, self._objective_rounds + 1 + alternates)
        pretraining = range(min(1 + alternates, self._objective_rounds))
        return (*pretraining, *rounds)

    def moves(self, round_index: int) -> NDArray[np.bool_] | None:
        """Return which numbers of the vector a round moves, (dimension,); None for all."""
        rests = [self._rests(name, round_index) for name in self.names]
        if not any(rests):
            return None
        sizes = [self.get_parameter(name).numel() for name in self.names]
        return self.as_vector(~np.repeat(rests, sizes))

    @contextmanager
    def in_round(self, round_index: int) -> Iterator[None]:
        """Let only those parameters train that a round moves; all do again on every exit."""
        self._active = tuple(name for name in self.names if not self._rests(name, round_index))
        self.active_dimension = self._count()
        for name in self.names:
            self.get_parameter(name).requires_grad = name in self._active
        try:
            yield
        finally:
            self._active, self.active_dimension = self.names, self.dimension
            for name in self.names:
                self.get_parameter(name).requires_grad = True

    def read_vector(self) -> Vector:
        """Return the vector, bit for bit."""
        flat = torch.cat([self.get_parameter(name).detach().reshape(-1) for name in self.names])
        return np.array(self.as_vector(flat.cpu().numpy()), dtype=np.float32)

    def as_vector(self, values: NDArray[Number]) -> NDArray[Number]:
        """Return numbers of all trainable parameters, (dimension,), from the model's own order in the vector's."""
        return values if self._order is None else values[self._order]

    def write_vector(self, vector: Vector) -> None:
        """Set the vector's parameters, bit for bit; raises CSL-311 for another length or what is not finite."""
        if vector.shape != (self.dimension,):
            raise ConsiliumError(errors.ADAPTER_VECTOR, f"shape {vector.shape}, expected ({self.dimension},)")
        if not np.isfinite(vector).all():
            raise ConsiliumError(errors.ADAPTER_VECTOR, "a value is not finite")
        values = np.array(vector, dtype=np.float32)
        if self._order is not None:
            values[self._order] = vector
        flat = torch.from_numpy(values)
        with torch.no_grad():
            offset = 0
            for name in self.names:
                parameter = self.get_parameter(name)
                parameter.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
                offset += parameter.numel()

    def forward(self, inputs: Tensor, mask: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return the task's outputs from a batch of records, examples in dimension 0; see :meth:`Task.pad`."""
        return self.suffix(self.run_through(inputs, mask), mask, numbers)

    def run_through(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`prefix`, with gradients: what trains in front of it would be found out."""
        encoder = self._encoder_model()
        hidden = self._anatomy.embed(encoder, inputs)
        return self._anatomy.run(encoder, hidden, mask, first=0, last=self.prefix_layers)

    @torch.no_grad()
    def prefix(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden states that enter the first adapted layer; they do not depend on the vector."""
        return self.run_through(inputs, mask)

    @property
    def prefix_shape(self) -> tuple[int, ...]:
        """Shape of what one record without tokens gives behind the prefix."""
        if self._prefix_shape is None:
            inputs, mask = (part.to(self.device) for part in self.task.pad(self.task.invented((1,)).inputs))
            self._prefix_shape = tuple(self.prefix(inputs, mask).shape[1:])
        return self._prefix_shape

    def suffix(
        self, hidden: Tensor, mask: Tensor, numbers: Tensor | None = None, *, objective: Task | None = None
    ) -> Tensor:
        """Return outputs from the prefix's hidden states; everything that trains is in here.

        objective  whose outputs: the study's task where not given
        """
        task = self.task if objective is None else objective
        features = task.features(self._hidden(hidden, mask), mask)
        return task.outputs(self.head if task is self.task else nn.Identity(), features, numbers)

    def head_outputs(self, features: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return the task's outputs from what enters its head."""
        return self.task.outputs(self.head, features, numbers)

    @torch.no_grad()
    def features_of(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return the features that enter the head under the present vector."""
        return self.features_behind(self.run_through(inputs, mask), mask)

    @torch.no_grad()
    def features_behind(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the features that enter the head from the prefix's hidden states."""
        return self.task.features(self._hidden(hidden, mask), mask)

    def _count(self) -> int:
        return sum(parameter.numel() for _, parameter in self.trainable())

    def _hidden(self, hidden: Tensor, mask: Tensor) -> Tensor:
        encoder = self._encoder_model()
        hidden = self._anatomy.run(encoder, hidden, mask, first=self.prefix_layers, last=self.backbone.layers)
        return self._anatomy.finish(encoder, hidden)

    def _encoder_model(self) -> nn.Module:
        peft_model = self.peft_model
        return self.encoder if peft_model is None else peft_model.get_base_model()

    def _rests(self, name: str, round_index: int) -> bool:
        """Whether a parameter keeps still in a round: the head while there are no labels, a factor that waits."""
        if self.is_pretraining(round_index):
            rests, counted = self._is_of_head(name), round_index
        else:
            rests, counted = False, round_index - self._objective_rounds
        return rests or (self.spec.method == "rolora" and rolora.rests(name, counted))

    @staticmethod
    def _is_of_head(name: str) -> bool:
        return name.startswith("head.")


def attach(
    backbone: Backbone, spec: AdapterSpec, task: Task, stream: str, *, pretraining: Pretraining | None = None
) -> AdaptedModel:
    """Put a study's adapter and head on a backbone, which stays as it was.

    stream  64 hex digits of the study's public randomness: every site starts from the same weights

    Raises CSL-310 when the adapter does not fit the backbone, CSL-322 when it does not fit the task.
    """
    if spec.last_layers > backbone.layers:
        raise ConsiliumError(errors.ADAPTER_INVALID, f"last_layers is {spec.last_layers} of {backbone.layers}")
    if pretraining is not None and task.spec.content != "text":
        raise ConsiliumError(errors.TASK_UNSUPPORTED, "pretraining is of texts")
    head_alone = spec.method == "head-only"
    first = backbone.layers if head_alone else backbone.layers - (spec.last_layers or backbone.layers)
    encoder = METHODS[spec.method](sharing_copy(backbone.model), spec, range(first, backbone.layers), stream)
    model = AdaptedModel(backbone, spec, task, encoder, first, pretraining=pretraining, stream=stream)
    if not model.names:
        raise ConsiliumError(errors.TASK_UNSUPPORTED, f"{task.spec.kind} has no head that could train alone")
    if pretraining is not None and not model.has_adapter:
        raise ConsiliumError(errors.TASK_UNSUPPORTED, "pretraining is of an adapter, and there is none")
    task.initialise_head(model.head, model)
    return model


def of_study(study: Study, backbone: Backbone) -> AdaptedModel:
    """Return a study's model on its backbone; raises as :func:`attach` and :func:`common.tasks.task_for`."""
    task = task_for(study.task, backbone, study.stream)
    return attach(backbone, study.adapter, task, study.stream, pretraining=study.pretraining)


def shapes_of(model: AdaptedModel) -> ranks.Shapes:
    """Return the shape of each parameter of the vector, by its name, in the model's own order."""
    return {name: model.get_parameter(name).shape for name in model.names}


def attach_at(model: AdaptedModel, site: str, stream: str) -> AdaptedModel:
    """Return the model that one site trains: the study's own, or where its rank is smaller a truncated one.

    The truncated model is the study's with the first columns of B only, over the first rows of the same A.
    """
    spec, rank = model.spec, model.spec.rank_at(site)
    if rank == spec.rank:
        return model
    own = spec.model_copy(update={"rank": rank, "alpha": spec.alpha * rank / spec.rank, "site_ranks": {}})
    small = attach(model.backbone, own, model.task, stream, pretraining=model.pretraining)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if ".lora_A." in name:
                parameter.copy_(model.get_parameter(name)[:rank])
    return small


def sharing_copy(model: nn.Module) -> nn.Module:
    """Copy a model's modules while sharing every parameter and buffer with the original."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
