"""Our grad samplers find what Opacus and one-by-one backward passes find, and refuse what they would get wrong."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from client.training.features import Features
from client.training.gradients import PerExampleGradients, side_by_side
from common.adapters import METHODS, attach
from common.adapters.scaling import Scaling
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec
from tests.client.conftest import DEVICES, shaken
from tests.client.training.test_gradients import traces

Encode = Callable[..., Encoded]
Losses = Callable[..., Tensor]
EXAMPLES = 5


def held_by(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def losses_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return (n,): one number an example, that depends on every output by another weight."""
    outputs: Tensor = model(inputs).flatten(1)
    weighted: Tensor = outputs.tanh() * torch.linspace(0.5, 1.5, outputs.shape[1], device=inputs.device)
    return weighted.sum(dim=1)


def ours(model: nn.Module, inputs: Tensor, losses: Losses = losses_of) -> Tensor:
    with PerExampleGradients(model, held_by(model)) as gradients:
        return gradients.rows(losses(model, inputs))


def one_by_one(model: nn.Module, inputs: Tensor, losses: Losses = losses_of) -> Tensor:
    parameters = [parameter for _, parameter in held_by(model)]
    rows = [torch.autograd.grad(losses(model, some[None]).sum(), parameters) for some in inputs]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def by_opacus(model: nn.Module, losses: Callable[[], Tensor], *, functorch: bool = False) -> Tensor:
    """Return the rows of Opacus alone: of its own samplers, or of functorch, which knows no layer."""
    model.train()
    hooks = GradSampleHooks(model, loss_reduction="sum", force_functorch=functorch)
    try:
        losses().sum().backward()  # type: ignore[no-untyped-call]
        return side_by_side([vars(parameter)["grad_sample"].detach() for _, parameter in held_by(model)])
    finally:
        hooks.cleanup()


def assert_equal_to_rounding(rows: Tensor, expected: Tensor) -> None:
    scale = expected.norm(dim=1)
    assert rows.shape == expected.shape
    assert float(scale.min()) > 1e-3
    assert float(((rows - expected).norm(dim=1) / scale).max()) < 1e-5


def shifted_norm(shape: int | tuple[int, ...], *, bias: bool = True) -> nn.LayerNorm:
    norm = nn.LayerNorm(shape, bias=bias)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def bias_only() -> nn.Linear:
    layer = nn.Linear(6, 4)
    layer.weight.requires_grad_(False)
    return layer


def scaling() -> Scaling:
    return Scaling(nn.ParameterDict({"default": nn.Parameter(torch.linspace(0.5, 2.0, 6)[None])}))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear, wide": (lambda: nn.Linear(6, 3), (6,)),
    "linear, tall": (lambda: nn.Linear(3, 6), (3,)),
    "linear, wide, of tokens": (lambda: nn.Linear(6, 3, bias=False), (7, 6)),
    "linear, tall, of tokens": (lambda: nn.Linear(3, 6), (7, 3)),
    "linear, square, of patches": (lambda: nn.Linear(4, 4), (2, 3, 4)),
    "linear, tall, of patches": (lambda: nn.Linear(3, 6, bias=False), (2, 3, 3)),
    "linear, its bias alone": (bias_only, (7, 6)),
    "layer norm": (lambda: shifted_norm(6), (6,)),
    "layer norm of tokens": (lambda: shifted_norm(6), (7, 6)),
    "layer norm of patches": (lambda: shifted_norm(6), (2, 3, 6)),
    "layer norm over two dimensions": (lambda: shifted_norm((3, 6)), (2, 3, 6)),
    "layer norm without a shift": (lambda: shifted_norm(6, bias=False), (7, 6)),
    "scaling of tokens": (scaling, (7, 6)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_rows_are_those_of_opacus_and_of_one_by_one_backward_passes(name: str, device: str) -> None:
    torch.manual_seed(3)
    make, shape = LAYERS[name]
    model = nn.Sequential(make(), nn.Tanh()).to(device)
    inputs = torch.randn(EXAMPLES, *shape, device=device)
    rows = ours(model, inputs)
    assert_equal_to_rounding(rows, one_by_one(model, inputs))
    twin = copy.deepcopy(model)
    assert_equal_to_rounding(rows, by_opacus(twin, lambda: losses_of(twin, inputs), functorch=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "dense")])
@pytest.mark.parametrize("method", METHODS)
def test_every_adapters_rows_are_those_of_opacus(
    backbone: Backbone, task: Task, encode: Encode, method: str, targets: tuple[str, ...], device: str
) -> None:
    spec = AdapterSpec.model_validate({"method": method, "rank": 2, "targets": targets})
    model = copy.deepcopy(shaken(attach(backbone, spec, task, "5a" * 32))).to(device).eval()
    features = Features(model, encode(EXAMPLES), cache=False)
    batch = features.batch(np.arange(EXAMPLES), torch.device(device))
    with PerExampleGradients(model, model.trainable()) as gradients:
        rows = gradients.rows(features.losses(model, batch))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert_equal_to_rounding(rows, by_opacus(model, lambda: features.losses(model, batch)))


class Twice(nn.Module):
    """Calls one layer twice, the second time on what the first gave."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(torch.tanh(self.inner(inputs))))


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.second(torch.tanh(self.first(inputs))))


class TiedToEmbedding(nn.Module):
    """A layer of ours that shares its weight with one of Opacus'."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.out.weight = self.words.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.out(torch.tanh(self.words(inputs))))


class Doubling(nn.Module):
    """A layer whose output another hook doubles."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.inner.register_forward_hook(lambda module, inputs, output: 2.0 * output)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(inputs))


class Branches(nn.Module):
    """Two layers side by side, or one on top of the other: called in one order either way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.stacked = True

    def forward(self, inputs: Tensor) -> Tensor:
        first = torch.tanh(self.first(inputs))
        return torch.as_tensor(self.second(first) if self.stacked else first * self.second(inputs))


@pytest.mark.parametrize("make", [Twice, Tied, Doubling, Branches])
def test_rows_of_one_parameter_add_up_over_the_places_where_it_is_used(make: type[nn.Module]) -> None:
    torch.manual_seed(3)
    model, inputs = make(), torch.randn(EXAMPLES, 6, 4)
    assert_equal_to_rounding(ours(model, inputs), one_by_one(model, inputs))


def test_a_weight_may_be_tied_to_a_layer_of_opacus() -> None:
    torch.manual_seed(3)
    model, inputs = TiedToEmbedding(), torch.arange(EXAMPLES * 6).reshape(EXAMPLES, 6) % 9
    assert_equal_to_rounding(ours(model, inputs), one_by_one(model, inputs))


def test_layers_side_by_side_are_right_whatever_lies_beneath() -> None:
    torch.manual_seed(3)
    branches, inputs = Branches(), torch.randn(EXAMPLES, 4)
    model, branches.stacked = nn.Sequential(nn.Linear(4, 4), branches), False
    assert_equal_to_rounding(ours(model, inputs), one_by_one(model, inputs))


def test_a_graph_that_changes_under_the_same_calls_is_refused_and_never_wrong() -> None:
    model, inputs = Branches(), torch.randn(EXAMPLES, 4)
    with PerExampleGradients(model, held_by(model)) as gradients:
        gradients.rows(losses_of(model, inputs))
        model.stacked = False
        with pytest.raises(ConsiliumError, match=r"CSL-330.*second"):
            gradients.rows(losses_of(model, inputs))
    with PerExampleGradients(model, held_by(model)) as gradients:
        gradients.rows(losses_of(model, inputs))
        model.stacked = True
        with pytest.raises(ConsiliumError, match=r"CSL-330.*second.*twice"):
            gradients.rows(losses_of(model, inputs))


@pytest.mark.parametrize("also", ["nothing else", "a layer of Opacus"])
def test_a_call_whose_output_does_not_reach_the_loss_is_refused_by_name(also: str) -> None:
    def stray(model: nn.Sequential, inputs: Tensor) -> Tensor:
        losses = losses_of(model, inputs)
        model[0](inputs)
        return losses

    model = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(1, 4) if also == "a layer of Opacus" else nn.Tanh())
    with pytest.raises(ConsiliumError, match=r"CSL-330.*0 \(Linear\)"):
        ours(model, torch.randn(EXAMPLES, 4), stray)
    assert traces(model) == []


@pytest.mark.parametrize("lowest", [True, False])
def test_an_input_that_was_changed_in_place_is_refused_by_name(lowest: bool) -> None:
    def changing(model: nn.Sequential, inputs: Tensor) -> Tensor:
        middle = torch.tanh(inputs if lowest else model[0](inputs))
        outputs = model[1](middle)
        middle.add_(1.0)
        return torch.as_tensor(outputs.tanh().sum(dim=1) + (losses_of(model[0], inputs) if lowest else 0.0))

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ConsiliumError, match=r"CSL-330.*1 \(Linear\).*in place"):
        ours(model, torch.randn(EXAMPLES, 4), changing)


class Breaks(torch.autograd.Function):
    """Fails on the way back."""

    @staticmethod
    def forward(_: object, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(_: object, *__: Tensor) -> Tensor:
        raise MemoryError("no room")


@pytest.mark.parametrize("middle", [nn.Tanh, lambda: nn.GroupNorm(1, 4)])
def test_a_backward_pass_that_breaks_off_leaves_the_model_as_it_was(middle: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    model, inputs = nn.Sequential(nn.Linear(4, 4), middle(), nn.Linear(4, 4)), torch.randn(EXAMPLES, 4)

    def breaking(model: nn.Sequential, inputs: Tensor) -> Tensor:
        middle: Tensor = Breaks.apply(model[1](model[0](inputs)))  # type: ignore[no-untyped-call]
        return losses_of(model[2], middle)

    modes = [module.training for module in model.eval().modules()]
    with pytest.raises(MemoryError):
        ours(model, inputs, breaking)
    assert traces(model) == []
    assert [module.training for module in model.modules()] == modes
    assert_equal_to_rounding(ours(model, inputs), one_by_one(model, inputs))


def test_no_summed_gradient_is_computed_where_every_layer_is_ours() -> None:
    model, summed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), list[Tensor]()
    for parameter in model.parameters():
        parameter.register_hook(summed.append)  # type: ignore[no-untyped-call]
    ours(model, torch.randn(EXAMPLES, 4))
    assert summed == []
    losses_of(model, torch.randn(EXAMPLES, 4)).sum().backward()  # type: ignore[no-untyped-call]
    assert len(summed) == 6


@pytest.mark.parametrize("finished", [True, False])
def test_a_step_keeps_nothing_of_the_step_before(finished: bool) -> None:
    """Without the garbage collector: a graph that waits for it holds every activation of a step."""

    class Kept:
        def __init__(self, value: Tensor) -> None:
            self.value = value.detach()
            saved.append(weakref.ref(self))

    saved: list[weakref.ref[Kept]] = []
    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(EXAMPLES, 4)
    gc.disable()
    try:
        with PerExampleGradients(model, held_by(model)) as gradients:
            with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
                losses = losses_of(model, inputs)
            assert any(reference() is not None for reference in saved)
            if finished:
                gradients.rows(losses)
                del losses
                assert all(reference() is None for reference in saved)
        if not finished:
            del losses
        assert all(reference() is None for reference in saved)
    finally:
        gc.enable()


def test_a_layer_called_with_named_inputs_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConsiliumError, match=r"CSL-330.*0 \(Linear\)"):
        ours(model, torch.randn(EXAMPLES, 4), lambda model, inputs: losses_of(nn.Identity(), model[0](input=inputs)))
    assert traces(model) == []
