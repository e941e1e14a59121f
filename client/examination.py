"""Whether what a model computes for an example is that example's own, measured on whatever model and loss is given.

Opacus' validator passes models for which it is not, and epsilon is printed all the same. So gradients per example are
held against backward passes one by one, and examples are replaced to see whether others notice; no list of good
architectures is trusted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from client.training.gradients import Named, PerExampleGradients
from common import errors
from common.errors import ConsiliumError

Losses = Callable[..., Tensor]
"""From a model and input tensors, each with its examples in dimension 0, to one loss an example, (n,)."""

TOLERANCE = 1e-3
"""Largest relative error of a gradient: right models stay below 1e-5 in float32, wrong ones are above 1e-2."""
LEAK_TOLERANCE = 1e-5
"""Largest relative change of an example's gradient when another is replaced. The batch keeps its shape, so right models
change by nothing at all; and what leaks counts once for every example of a batch, so little must be allowed."""
FLOOR = 1e-4
"""A parameter's gradient is judged against at least this part of the whole gradient's norm: a true gradient of zero
(the key bias of an attention) has rounding errors but no size."""

_SHAKE = 0.1
_LEAST_NORM = 1e-12
_REPEATS = 32
"""Runs of a model that draws random numbers, to see whether they have an effect: two layers, each dropped one time in
ten, stay hidden with probability 0.1 %."""


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """What was measured on a model that passed.

    parameters       names of the parameters that train
    dimension        numbers in them
    worst_error      largest relative error of a gradient per example against a backward pass of that example alone
    worst_parameter  where it was found
    worst_leak       largest relative change of an example's gradient when another example is replaced
    """

    parameters: tuple[str, ...]
    dimension: int
    worst_error: float
    worst_parameter: str
    worst_leak: float

    def summary(self) -> str:
        """Return one line for people."""
        return (
            f"preflight passed: {self.dimension:,} parameters in {len(self.parameters)} tensors train; gradients per "
            f"example agree to {self.worst_error:.0e}, other examples change them by {self.worst_leak:.0e}"
        )


def examine(
    model: nn.Module,
    losses: Losses,
    inputs: Sequence[Tensor],
    *,
    parameters: Named | None = None,
) -> PreflightReport:
    """Measure whether a model and a loss have the gradients per example that privacy needs.

    model       in the mode in which it will train; left as it was, whatever happens
    losses      called as ``losses(model, *inputs)``
    inputs      at least three synthetic examples, different from each other; the last one only replaces others
    parameters  those that the optimizer will hold; by default every one that requires a gradient

    Raises CSL-330, naming the layer, when: two runs differ, a buffer changes, batch norm is in train mode, the loss is
    not one finite number an example, or depends on other examples; a gradient row is missing, is not that of a backward
    pass of its example alone, or changes with another example; a parameter that requires a gradient is not among
    ``parameters``, is of less than float32, or does not move; the model cannot run on synthetic inputs.
    """
    trained = tuple((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    held = tuple(parameters) if parameters is not None else trained
    _check_held(trained, held)
    _check_batch_norm(model)
    saved = {name: tensor.detach().clone() for name, tensor in (*held, *model.named_buffers())}
    try:
        shake(held)
        batch = [tensor[:-1] for tensor in inputs]
        _check_steady(model, losses, batch, held)
        expected = _one_by_one(model, losses, batch, held)
        rows = _rows(model, losses, batch, held)
        error, where = _worst(rows, expected, held, expected)
        if not error <= TOLERANCE:
            raise _refusal(f"{where}: gradients per example differ by {error:.1e} from each example's own")
        leak = _check_leak(model, losses, inputs, held, rows, expected)
        _check_movement(held, rows)
    finally:
        with torch.no_grad():
            for name, tensor in (*held, *model.named_buffers()):
                tensor.copy_(saved[name])
    return PreflightReport(
        parameters=tuple(name for name, _ in held),
        dimension=sum(parameter.numel() for _, parameter in held),
        worst_error=error,
        worst_parameter=where,
        worst_leak=leak,
    )


def _check_held(trained: Named, held: Named) -> None:
    identities = {id(parameter) for _, parameter in held}
    for name, parameter in trained:
        if id(parameter) not in identities:
            raise _refusal(f"{name} trains but is not in the optimizer: its gradient would never be noised")
    alive = {id(parameter) for _, parameter in trained}
    for name, parameter in held:
        if id(parameter) not in alive:
            raise _refusal(f"{name} is in the optimizer but is not a trained parameter of the model")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise _refusal(f"{name} is {parameter.dtype}: small steps would be rounded away")
    if not held:
        raise _refusal("no parameter trains")


def _check_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        trains = any(parameter.requires_grad for parameter in module.parameters())
        uses_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if (module.training or trains) and (uses_batch or module.track_running_stats):
            raise _refusal(f"{name} ({type(module).__name__}) mixes the examples of a batch")


def _check_steady(model: nn.Module, losses: Losses, batch: Sequence[Tensor], held: Named) -> None:
    """Two runs give the same losses, one an example, each by itself, and change no buffer."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    dice = _dice()
    with torch.no_grad():
        first = _losses(model, losses, batch, held)
        for name, buffer in model.named_buffers():
            if not torch.equal(buffers[name], buffer):
                raise _refusal(f"{name}: a buffer changes with the batch")
        for _ in range(1 if _dice() == dice else _REPEATS):
            if not torch.equal(first, _losses(model, losses, batch, held)):
                raise _refusal(f"{_random_module(model)}: two runs on the same examples differ")
        for row in range(len(first)):
            alone = _losses(model, losses, [tensor[row : row + 1] for tensor in batch], held)
            if not _close(alone, first[row : row + 1]):
                where = _mixing_module(model, losses, batch)
                raise _refusal(f"{where}: what is computed for an example depends on the other examples")


def _dice() -> tuple[bytes, ...]:
    """Return the states of the global generators that a model may draw from."""
    devices = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)]
    return (*states, repr(random.getstate()).encode(), repr(np.random.get_state()).encode())


def _mixing_module(model: nn.Module, losses: Losses, batch: Sequence[Tensor]) -> str:
    """Name the first module whose output for an example changes when it runs alone; the loss if there is none."""
    together, alone = (_outputs(model, losses, inputs) for inputs in (batch, [tensor[:1] for tensor in batch]))
    for (name, many), (_, one) in zip(together, alone, strict=False):
        if many.shape[1:] == one.shape[1:] and len(one) == 1 and not _close(many[:1], one):
            return name
    return "the loss"


def _outputs(model: nn.Module, losses: Losses, batch: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Return what the model's innermost modules put out in one run, in the order in which they ran."""
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            del module, inputs
            if isinstance(output, Tensor) and output.dim() > 0:
                seen.append((name, output.detach()))

        return keep

    inner = [(name, module) for name, module in model.named_modules() if name and next(module.children(), None) is None]
    handles = [module.register_forward_hook(watch(name)) for name, module in inner]
    try:
        losses(model, *batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _losses(model: nn.Module, losses: Losses, batch: Sequence[Tensor], held: Named) -> Tensor:
    with PerExampleGradients(model, held):
        found = _run(model, losses, batch)
    if found.shape != (len(batch[0]),):
        raise _refusal(f"the loss has shape {tuple(found.shape)}, not one number an example ({len(batch[0])},)")
    if not bool(torch.isfinite(found).all()):
        raise _refusal("the loss is not finite")
    return found


def _rows(model: nn.Module, losses: Losses, batch: Sequence[Tensor], held: Named) -> Tensor:
    with PerExampleGradients(model, held) as gradients:
        found = _run(model, losses, batch)
        try:
            return gradients.rows(found)
        except ConsiliumError:
            raise
        except Exception as error:
            raise _refusal(f"no gradient per example: {type(error).__name__}: {str(error)[:200]}") from error


def _run(model: nn.Module, losses: Losses, batch: Sequence[Tensor]) -> Tensor:
    """Return the losses; a model that cannot run is refused, naming the module that was running."""
    running: list[str] = []

    def enter(name: str) -> Callable[[nn.Module, object], None]:
        def push(module: nn.Module, inputs: object) -> None:
            del module, inputs
            running.append(name)

        return push

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs, output
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        return losses(model, *batch)
    except ConsiliumError:
        raise
    except Exception as error:
        where = (running[-1] if running else "") or "the model or its loss"
        count = len(batch[0])
        raise _refusal(f"{where} fails on {count} examples: {type(error).__name__}: {str(error)[:200]}") from error
    finally:
        for handle in handles:
            handle.remove()


def _one_by_one(model: nn.Module, losses: Losses, batch: Sequence[Tensor], held: Named) -> Tensor:
    """Return (n, parameters): the gradient of each example's loss, from a batch of that example alone."""
    parameters = [parameter for _, parameter in held]
    rows = []
    for row in range(len(batch[0])):
        loss = _run(model, losses, [tensor[row : row + 1] for tensor in batch])
        if not loss.requires_grad:
            raise _refusal("the loss depends on no parameter that trains")
        found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        for (name, _), gradient in zip(held, found, strict=True):
            if gradient is None:
                raise _refusal(f"{name} trains but the loss does not depend on it")
        rows.append(torch.cat([gradient.reshape(-1) for gradient in found]))
    stacked = torch.stack(rows)
    if float(stacked.norm(dim=1).min()) < _LEAST_NORM:
        raise _refusal("the loss has no gradient on synthetic inputs, so nothing can be judged")
    return stacked


def _check_leak(
    model: nn.Module, losses: Losses, inputs: Sequence[Tensor], held: Named, rows: Tensor, expected: Tensor
) -> float:
    """Replace each example in turn by the spare one; no other example's row may change."""
    worst = 0.0
    count = len(rows)
    for replaced in range(count):
        order = torch.arange(count)
        order[replaced] = count
        altered = _rows(model, losses, [tensor[order.to(tensor.device)] for tensor in inputs], held)
        others = torch.arange(count) != replaced
        leak, where = _worst(altered[others], rows[others], held, expected[others])
        if not leak <= LEAK_TOLERANCE:
            raise _refusal(f"{where}: replacing one example changes another's gradient by {leak:.1e}")
        worst = max(worst, leak)
    return worst


def _check_movement(held: Named, rows: Tensor) -> None:
    """One plain step must move every parameter that has a gradient."""
    optimizer = torch.optim.SGD([parameter for _, parameter in held], lr=1.0)
    before = [parameter.detach().clone() for _, parameter in held]
    for (_, parameter), gradient in zip(held, _split(rows.sum(dim=0), held), strict=True):
        scale = gradient.abs().max().clamp(min=1e-30)
        parameter.grad = (gradient / scale).reshape(parameter.shape).to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for (name, parameter), old, gradient in zip(held, before, _split(rows.sum(dim=0), held), strict=True):
        if bool(gradient.any()) and torch.equal(parameter.detach(), old):
            raise _refusal(f"{name} does not move")


def _worst(found: Tensor, wanted: Tensor, held: Named, scale: Tensor) -> tuple[float, str]:
    """Return the largest relative error over examples and parameters, and the parameter's name; NaN counts as infinite.

    scale   (n, parameters) gradients whose norms an error is relative to
    """
    floor = FLOOR * scale.double().norm(dim=1).max().clamp(min=1e-12)
    worst, where = 0.0, held[0][0]
    parts = zip(held, _split(found, held), _split(wanted, held), _split(scale, held), strict=True)
    for (name, _), mine, true, size in parts:
        errors_ = (mine.double() - true.double()).norm(dim=1) / size.double().norm(dim=1).clamp(min=float(floor))
        error = float(torch.nan_to_num(errors_, nan=float("inf")).max())
        if error > worst:
            worst, where = error, name
    return worst, where


def _split(rows: Tensor, held: Named) -> tuple[Tensor, ...]:
    return torch.split(rows, [parameter.numel() for _, parameter in held], dim=-1)


def compare(what: str, found: Tensor, wanted: Tensor) -> None:
    """Raise CSL-330, saying what, where losses that should be equal differ."""
    if not _close(found, wanted):
        raise _refusal(f"{what} (losses differ by {float((found - wanted).abs().max()):.1e})")


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Return whether two tensors agree to the tolerance, relative to the larger of 0.01 and the largest value."""
    scale = float(wanted.abs().max().clamp(min=1e-2))
    return float((found - wanted).abs().max()) <= TOLERANCE * scale


def shake(held: Named) -> None:
    """Move parameters off their start, where a zero factor (LoRA's B) would hide the gradient of another (its A)."""
    dice = np.random.default_rng(1)
    with torch.no_grad():
        for _, parameter in held:
            noise = torch.from_numpy(dice.normal(0.0, _SHAKE, tuple(parameter.shape)))
            parameter.add_(noise.to(device=parameter.device, dtype=parameter.dtype))


def _random_module(model: nn.Module) -> str:
    """Name the first module that looks like dropout, for a person to look at."""
    dropping = [
        name
        for name, module in model.named_modules()
        if "drop" in type(module).__name__.lower() and module.training and getattr(module, "p", 1.0) > 0
    ]
    return next(iter(dropping), type(model).__name__)


def _refusal(detail: str) -> ConsiliumError:
    return ConsiliumError(errors.PREFLIGHT_REFUSED, detail)
