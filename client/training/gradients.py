"""Per-example gradients of the trainable parameters, by Opacus in hooks mode without wrapping the model.

Opacus is asked for gradients and for nothing else: sampling, clipping, noise, division and accounting are ours, made
from one plan. Ghost mode is not used: with a plain ``backward()`` it applies gradients that were never clipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import TracebackType

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from torch import Tensor, nn

from common import errors
from common.adapters.scaling import Scaling
from common.errors import ConsiliumError

Named = Sequence[tuple[str, nn.Parameter]]


class PerExampleGradients:
    """A context in which a model yields one gradient row per example.

    model       any module; only its parameters that require a gradient are watched
    parameters  those parameters, named, in the order in which they are laid side by side

    Opacus watches only modules in train mode, so the modules that own a trainable parameter are put there, themselves
    and not their children; every other module stays in the mode it is in, and no dropout is switched on. Hooks,
    gradients and modes are taken back on every exit.
    """

    def __init__(self, model: nn.Module, parameters: Named) -> None:
        self._model = model
        self._parameters = tuple(parameters)
        self._owners: list[nn.Module] = []
        self._hooks: GradSampleHooks | None = None

    def __enter__(self) -> PerExampleGradients:
        owners = [
            module
            for module in self._model.modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]
        try:
            self._hooks = _NamingHooks(self._model)
        except Exception as error:
            for handle in vars(self._model).pop("autograd_grad_sample_hooks", ()):
                handle.remove()
            _clear(self._model)
            raise ConsiliumError(errors.PREFLIGHT_REFUSED, _first_line(error)) from error
        self._owners = [module for module in owners if not module.training]
        for module in self._owners:
            module.training = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._owners:
            module.training = False
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks = None
        _clear(self._model)

    def rows(self, losses: Tensor) -> Tensor:
        """Return (examples, parameters) float32: the gradient of each example's own loss.

        losses  (examples,), computed inside this context, one number an example

        The losses are summed, never averaged: a mean would divide by a private count. Raises CSL-330 naming the
        parameter for which no row, or not one row per example, was found.
        """
        examples = len(losses)
        with warnings.catch_warnings():
            # The hooked module is the first one to see a gradient, since its input is frozen: that is meant.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        parts = []
        for name, parameter in self._parameters:
            rows = getattr(parameter, "grad_sample", None)
            if not isinstance(rows, Tensor):
                raise ConsiliumError(errors.PREFLIGHT_REFUSED, f"{name} has no gradient per example")
            if rows.shape != (examples, *parameter.shape):
                raise ConsiliumError(
                    errors.PREFLIGHT_REFUSED, f"{name} has {len(rows)} gradient rows for {examples} examples"
                )
            parts.append(rows.detach().reshape(examples, -1).float())
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None
        return torch.cat(parts, dim=1)


class _NamingHooks(GradSampleHooks):  # type: ignore[misc]  # opacus has no types
    """Opacus' hooks, which say in which layer they failed."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        super().__init__(model, batch_first=True, loss_reduction="sum", strict=True)

    def capture_backprops_hook(self, module: nn.Module, *given: object, **options: object) -> None:
        """Take one layer's rows during the backward pass; raises CSL-330 naming the layer that has none."""
        try:
            super().capture_backprops_hook(module, *given, **options)
        except Exception as error:
            where = f"{self._names[module] or 'the model'} ({type(module).__name__})"
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise ConsiliumError(errors.PREFLIGHT_REFUSED, f"{where} has no gradient per example: {reason}") from error


def _scaling_rows(layer: Scaling, activations: list[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return (n, *vector): activations times output gradients, (n, ..., width), summed over all but the last."""
    vector = layer.vector()
    rows = _over_positions(activations[0].float() * gradient.float(), 1)
    return {vector: rows.reshape(-1, *vector.shape)} if vector.requires_grad else {}


def _layer_norm_rows(layer: nn.LayerNorm, activations: list[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the rows of gain and shift, as Opacus does, but in float32 and also where one of them is absent."""
    width = len(layer.normalized_shape)
    rows: dict[nn.Parameter, Tensor] = {}
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.requires_grad:
            found = gradient.float()
            if name == "weight":
                found = found * nn.functional.layer_norm(activations[0].float(), layer.normalized_shape, eps=layer.eps)
            rows[parameter] = _over_positions(found, width)
    return rows


def _over_positions(values: Tensor, kept: int) -> Tensor:
    """Sum (n, ..., *kept) over all but the examples and the last ``kept`` dimensions."""
    return values.flatten(1, -kept - 1).sum(dim=1) if values.dim() > kept + 1 else values


register_grad_sampler(Scaling)(_scaling_rows)
register_grad_sampler(nn.LayerNorm)(_layer_norm_rows)


def _clear(model: nn.Module) -> None:
    """Remove what hooks leave behind on modules and parameters, also after an interrupted backward pass."""
    for module in model.modules():
        for name in ("activations", "max_batch_len"):
            if name in module.__dict__:
                delattr(module, name)
    for parameter in model.parameters():
        for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
            if hasattr(parameter, name):
                delattr(parameter, name)
        if parameter.requires_grad:
            parameter.grad = None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
