"""Per-example gradients of the trainable parameters, by Opacus' hooks mode without wrapping the model.

The layers that adapters train have grad samplers of our own and hooks that cost less than Opacus'; every other layer
keeps Opacus' own. Sampling, clipping, noise, division and accounting are ours, made from one plan. Ghost mode is not
used: with a plain ``backward()`` it applies gradients that were never clipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from client.training.rows import SAMPLERS, Rows
from common import errors
from common.errors import ConsiliumError

Named = Sequence[tuple[str, nn.Parameter]]


class PerExampleGradients:
    """A context in which a model yields one gradient row per example.

    model       any module; only its parameters that require a gradient are watched
    parameters  those parameters, named, in the order in which they are laid side by side

    Opacus watches only modules in train mode, so the modules that it watches are put there, themselves and not their
    children; every other module stays in the mode it is in, and no dropout is switched on. Hooks, gradients and modes
    are taken back on every exit. Within the context every forward pass is for :meth:`parts` or :meth:`rows`, or under
    ``no_grad``.
    """

    def __init__(self, model: nn.Module, parameters: Named) -> None:
        self._model = model
        self._parameters = tuple(parameters)
        self._switched: list[nn.Module] = []
        self._hooks: _Hooks | None = None

    def __enter__(self) -> PerExampleGradients:
        try:
            self._hooks = _Hooks(self._model)
        except Exception as error:
            for handle in vars(self._model).pop("autograd_grad_sample_hooks", ()):
                handle.remove()
            _clear(self._model)
            raise ConsiliumError(errors.PREFLIGHT_REFUSED, _first_line(error)) from error
        self._switched = [module for module in self._hooks.theirs if not module.training]
        for module in self._switched:
            module.training = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._switched:
            module.training = False
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks.forget()
            self._hooks = None
        _clear(self._model)

    def rows(self, losses: Tensor) -> Tensor:
        """Return (examples, parameters) float32: the gradient of each example's own loss.

        The same numbers as :meth:`parts`, side by side.
        """
        return side_by_side(self.parts(losses))

    def parts(self, losses: Tensor) -> tuple[Tensor, ...]:
        """Return (examples, *shape) float32 of each parameter, as computed: the gradient of each example's own loss.

        losses  (examples,), computed inside this context, one number an example

        The losses are summed, never averaged: a mean would divide by a private count. Raises CSL-330 naming the
        parameter or the layer for which no row, or not one row per example, was found.
        """
        if self._hooks is None:
            raise RuntimeError("gradients are taken inside the context only")
        found = self._hooks.backward(losses)
        parts = []
        for name, parameter in self._parameters:
            if parameter not in found:
                raise _refusal(f"{name} has no gradient per example")
            parts.append(found[parameter].float())
        return tuple(parts)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Return (examples, parameters) from (examples, *shape) of each parameter."""
    return torch.cat([part.reshape(len(part), part.shape[1:].numel()) for part in parts], dim=1)


@dataclass(slots=True)
class _Call:
    """One call of a layer of ours: what went in, and where the gradient of what came out will be."""

    layer: nn.Module
    activations: Tensor | None
    version: int
    output: GradientEdge


class _Hooks(GradSampleHooks):  # type: ignore[misc]  # opacus has no types
    """Opacus' hooks, with lean ones in their place on the layers that are ours; both say in which layer they failed.

    own     the watched modules whose type is in SAMPLERS
    theirs  the other ones, which Opacus watches with full backward hooks

    A lean hook remembers a call's input and asks the output's node for its gradient. Where every watched layer has one,
    autograd is sent to the lowest watched outputs and no further: it computes none of the summed weight gradients,
    which nobody reads. That is right because the gradient of an output does not depend on how far below it autograd
    goes, and because each call must be met exactly once: a call that was missed, or met twice, is refused.
    """

    # Ours alone: Opacus' own registry is shared by the whole process and stays as it is.
    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Callable[..., Rows]]] = {**GradSampleHooks.GRAD_SAMPLERS, **SAMPLERS}

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self.own: list[nn.Module] = []
        self.theirs: list[nn.Module] = []
        self._order: list[nn.Module] = []
        self._lowest: list[int] = []
        self._rows: Rows = {}
        self._calls: list[_Call] = []
        self._examples = 0
        super().__init__(model, batch_first=True, loss_reduction="sum", strict=True)
        for module in self.own:
            # First, so that what it sees is the layer's own output, whatever other hooks make of it.
            self.autograd_grad_sample_hooks.append(module.register_forward_hook(self._watch, prepend=True))

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the modules that Opacus is to watch, keeping those that are ours; it calls this for each child."""
        for found in super().iterate_submodules(module):
            if found is not module:
                yield found
            elif type(found) not in SAMPLERS:
                self.theirs.append(found)
                yield found
            elif found not in self.own:
                self.own.append(found)

    def backward(self, losses: Tensor) -> Rows:
        """Return the rows of every watched parameter that the losses reached, and forget the forward pass."""
        self._examples = len(losses)
        try:
            if self.theirs:
                with warnings.catch_warnings():
                    # The hooked module is the first one to see a gradient, since its input is frozen: that is meant.
                    warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
                    losses.sum().backward()  # type: ignore[no-untyped-call]
                self._add_theirs()
            elif self._calls:
                last = [self._calls[index] for index in self._lowest_calls()]
                # Autograd hands over these gradients and does not run their nodes, so no hook was called for them.
                found = torch.autograd.grad(losses.sum(), [call.output for call in last], allow_unused=True)
                for call, gradient in zip(last, found, strict=True):
                    if gradient is not None:
                        self._take(call, gradient)
            for call in self._calls:
                if call.activations is not None:
                    raise _refusal(f"{self._where(call.layer)} was called, and the loss does not depend on it")
            return self._rows
        finally:
            self.forget()

    def capture_backprops_hook(self, module: nn.Module, *given: object, **options: object) -> None:
        """Take the rows of one of Opacus' layers in the backward pass; raises CSL-330 naming one that has none."""
        try:
            super().capture_backprops_hook(module, *given, **options)
        except Exception as error:
            raise self._failure(module, error) from error

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Remember one call of one of our layers, and be told the gradient of what it put out."""
        if not output.requires_grad:
            return
        if len(inputs) != 1:
            raise _refusal(f"{self._where(module)} has no gradient per example: it is called with named inputs")
        edge, activations = get_gradient_edge(output), inputs[0].detach()
        # The hook holds the list, not the call: a call's node that held its call would never be freed.
        calls, place, number = self._calls, len(self._calls), edge.output_nr
        calls.append(_Call(module, activations, activations._version, edge))
        edge.node.register_prehook(lambda gradients: self._take(calls[place], gradients[number]))

    def _take(self, call: _Call, gradient: Tensor) -> None:
        # Dropped here, so that the graph does not hold activations after they were used.
        activations, call.activations = call.activations, None
        if activations is None:
            raise _refusal(f"{self._where(call.layer)}: one call of it was met twice")
        if activations._version != call.version:
            raise _refusal(f"{self._where(call.layer)}: its input was changed in place")
        try:
            found: Rows = self.GRAD_SAMPLERS[type(call.layer)](call.layer, [activations], gradient)
        except Exception as error:
            raise self._failure(call.layer, error) from error
        for parameter, rows in found.items():
            self._add(parameter, rows)

    def _lowest_calls(self) -> list[int]:
        """Return which calls have no other one beneath them; found again only where other layers are called.

        For a graph that differs although the same layers are called the answer is wrong, and refused: see the class.
        """
        order = [call.layer for call in self._calls]
        if order != self._order:
            self._order, self._lowest = order, _lowest([call.output.node for call in self._calls])
        return self._lowest

    def _add_theirs(self) -> None:
        for parameter in self._module.parameters():
            rows = getattr(parameter, "grad_sample", None)
            if isinstance(rows, Tensor):
                self._add(parameter, rows.detach())
                parameter.grad_sample = None
            parameter.grad = None

    def _add(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Add the rows of one call to those of others: a layer may be called twice, and weights may be tied."""
        if rows.shape != (self._examples, *parameter.shape):
            name = next(name for name, other in self._module.named_parameters() if other is parameter)
            raise _refusal(f"{name} has {len(rows)} gradient rows for {self._examples} examples")
        known = self._rows.get(parameter)
        self._rows[parameter] = rows if known is None else known + rows

    def forget(self) -> None:
        """Let go of the last forward pass; a backward pass through it fails from now on."""
        self._calls.clear()
        self._rows, self._calls, self._examples = {}, [], 0

    def _failure(self, module: nn.Module, error: Exception) -> ConsiliumError:
        return _refusal(
            f"{self._where(module)} has no gradient per example: {type(error).__name__}: {_first_line(error)}"
        )

    def _where(self, module: nn.Module) -> str:
        return f"{self._names[module] or 'the model'} ({type(module).__name__})"


def _lowest(nodes: Sequence[Node]) -> list[int]:
    """Return which of some nodes of an autograd graph have none of the others beneath them."""
    places = {node: place for place, node in enumerate(nodes)}
    holds: dict[Node, bool] = {}
    lowest = []
    stack = [(node, False) for node in nodes]
    while stack:
        node, children_done = stack.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        if children_done:
            beneath = any(holds[child] for child in children)
            if node in places and not beneath:
                lowest.append(places[node])
            holds[node] = beneath or node in places
        elif node not in holds:
            holds[node] = False
            stack += [(node, True), *((child, False) for child in children)]
    return lowest


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


def _refusal(detail: str) -> ConsiliumError:
    return ConsiliumError(errors.PREFLIGHT_REFUSED, detail)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
