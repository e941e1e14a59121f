"""Preflight accepts what is right, refuses what is wrong, names the layer, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.examination import examine
from client.preflight import check
from client.training.features import Features
from common.adapters import METHODS, AdaptedModel, attach
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec
from tests.client.preflight.architectures import RIGHT, WRONG, Case, Contrast, entropy


@pytest.mark.parametrize("name", RIGHT)
def test_right_models_are_accepted(name: str) -> None:
    torch.manual_seed(3)
    case = RIGHT[name]()
    report = examine(case.model, case.losses, case.inputs)
    assert report.worst_error < 1e-4
    assert report.worst_leak < 1e-4


@pytest.mark.parametrize("name", WRONG)
def test_silently_wrong_models_are_refused_with_the_layer_named(name: str) -> None:
    torch.manual_seed(3)
    make, named = WRONG[name]
    case = make()
    with pytest.raises(ConsiliumError, match="CSL-330") as refused:
        examine(case.model, case.losses, case.inputs)
    assert named in refused.value.detail


@pytest.mark.parametrize("method", METHODS)
def test_every_method_passes_as_a_study_uses_it(backbone: Backbone, task: Task, method: str) -> None:
    model = attach(
        backbone, AdapterSpec.model_validate({"method": method, "rank": 2, "last_layers": 2}), task, "5a" * 32
    )
    before = model.read_vector()
    report = check(model)
    assert report.parameters == model.names
    assert report.dimension == model.dimension
    assert f"{model.dimension:,} parameters" in report.summary()
    assert np.array_equal(model.read_vector(), before)


def test_a_study_model_that_ignores_the_mask_is_refused(
    model: AdaptedModel, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then an example's gradient depends on how long its neighbours are."""
    honest = task.features
    monkeypatch.setattr(task, "features", lambda hidden, mask: honest(hidden, torch.ones_like(mask)))
    with pytest.raises(ConsiliumError, match="padding"):
        check(model)


def test_a_prefix_that_is_not_the_models_is_refused(
    model: AdaptedModel, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.prefix
    monkeypatch.setattr(model, "prefix", lambda ids, mask: whole(ids, mask) + 0.3)
    with pytest.raises(ConsiliumError, match="frozen prefix"):
        check(model)


def plain() -> Case:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return Case(model, lambda m, x, goal: entropy(m(x), goal), (torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 2])))


def test_a_parameter_outside_the_optimizer_is_refused() -> None:
    case = plain()
    held = [(name, parameter) for name, parameter in case.model.named_parameters() if name != "2.bias"]
    with pytest.raises(ConsiliumError, match=r"2\.bias trains but is not in the optimizer"):
        examine(case.model, case.losses, case.inputs, parameters=held)


def test_an_optimizer_made_before_the_adapter_is_refused() -> None:
    """Peft issue 3409: the optimizer holds parameters that the model no longer uses."""
    case = plain()
    held = [(name, nn.Parameter(parameter.detach().clone())) for name, parameter in case.model.named_parameters()]
    with pytest.raises(ConsiliumError, match="CSL-330"):
        examine(case.model, case.losses, case.inputs, parameters=held)


def test_a_parameter_that_the_loss_does_not_reach_is_refused() -> None:
    case = plain()
    case.model.add_module("idle", nn.Identity())
    case.model.register_parameter("lost", nn.Parameter(torch.ones(2)))
    with pytest.raises(ConsiliumError, match="lost"):
        examine(case.model, case.losses, case.inputs)


def test_a_parameter_that_cannot_move_is_refused() -> None:
    case = plain()
    with torch.no_grad():
        # Float32 steps of 32 here: a step of 1 is lost.
        weight = case.model.get_parameter("2.weight")
        weight.copy_(weight.sign() * 4e8)
    with pytest.raises(ConsiliumError, match=r"2\.weight does not move"):
        examine(case.model, lambda m, x, goal: entropy(m(x) * 1e-9, goal), case.inputs)


def test_a_fault_behind_a_factor_that_starts_at_zero_is_found() -> None:
    """As LoRA starts, with B = 0, every gradient of A is zero, right or wrong."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 4), Contrast(), nn.Linear(4, 3))
    nn.init.zeros_(model.get_parameter("2.weight"))
    inputs = (torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 2]))
    with pytest.raises(ConsiliumError, match=r"0\.(weight|bias)"):
        examine(model, lambda m, x, goal: entropy(m(x), goal), inputs)


def test_a_neighbour_that_switches_mixing_on_is_found() -> None:
    """The batch is right as it stands; only replacing an example shows what a neighbour can do."""

    class Touchy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(dim=0, keepdim=True) if len(x) > 1 and bool((x > 50).any()) else x

    torch.manual_seed(6)
    model = nn.Sequential(Touchy(), nn.Linear(6, 3))
    x = torch.randn(5, 6)
    x[4] = 60.0
    with pytest.raises(ConsiliumError, match="replacing one example changes another's gradient"):
        examine(model, lambda m, x, goal: entropy(m(x), goal), (x, torch.tensor([0, 1, 2, 1, 2])))


def test_a_model_without_any_gradient_cannot_be_judged() -> None:
    case = plain()
    with pytest.raises(ConsiliumError, match="no gradient"):
        examine(case.model, lambda m, x, goal: case.losses(m, x, goal) * 0.0, case.inputs)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    case = plain()
    with pytest.raises(ConsiliumError, match="not finite"):
        examine(case.model, lambda m, x, goal: case.losses(m, x, goal) / 0.0, case.inputs)


def test_a_counter_in_a_buffer_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("seen").add_(len(x))
            return x

    case = plain()
    case.model.append(Counting())  # type: ignore[operator]
    with pytest.raises(ConsiliumError, match=r"3\.seen"):
        examine(case.model, case.losses, case.inputs)


def test_the_model_is_left_as_it_was_also_after_a_refusal() -> None:
    case = plain()
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    modes = [module.training for module in case.model.modules()]
    examine(case.model, case.losses, case.inputs)
    with pytest.raises(ConsiliumError):
        examine(case.model, lambda m, x, goal: case.losses(m, x, goal).mean(), case.inputs)
    assert all(torch.equal(before[name], tensor) for name, tensor in case.model.state_dict().items())
    assert [module.training for module in case.model.modules()] == modes
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_preflight_reads_no_data_of_a_site(
    model: AdaptedModel, task: Task, encode: Callable[..., Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features(model, encode(3))
    monkeypatch.setattr(Features, "batch", None)
    assert check(model).dimension == model.dimension
    assert len(features) == 3
