"""Gradients per example are those of one-by-one backward passes, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from common.adapters import AdaptedModel
from common.errors import ConsiliumError
from common.tasks import Encoded

Encode = Callable[..., Encoded]


@pytest.mark.parametrize("cache", [True, False])
def test_rows_equal_one_by_one_backward_passes(model: AdaptedModel, encode: Encode, cache: bool) -> None:
    features = Features(model, encode(6), cache=cache)
    with PerExampleGradients(model, model.trainable()) as gradients:
        rows = gradients.rows(features.losses(model, features.batch(np.arange(6))))
    parameters = [parameter for _, parameter in model.trainable()]
    for row in range(6):
        # Alone, without its neighbours' padding.
        alone = torch.autograd.grad(features.losses(model, features.batch(np.array([row]))).sum(), parameters)
        expected = torch.cat([gradient.reshape(-1) for gradient in alone])
        assert torch.allclose(rows[row], expected, rtol=1e-3, atol=1e-5 * float(expected.norm()))
        assert float(expected.norm()) > 1e-3


def test_altering_one_example_changes_no_other_row(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(8))
    with PerExampleGradients(model, model.trainable()) as gradients:
        first = gradients.rows(features.losses(model, features.batch(np.array([0, 1, 2]))))
        second = gradients.rows(features.losses(model, features.batch(np.array([0, 1, 7]))))
    assert torch.allclose(first[:2], second[:2], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(first[2], second[2], rtol=1e-1)


def traces(model: nn.Module) -> list[str]:
    """Return whatever Opacus would leave behind."""
    found = [
        f"{name}.{attribute}"
        for name, parameter in model.named_parameters()
        for attribute in ("grad_sample", "_forward_counter", "_current_grad_sample")
        if hasattr(parameter, attribute)
    ]
    found += [f"{name}.grad" for name, p in model.named_parameters() if p.requires_grad and p.grad is not None]
    for name, module in model.named_modules():
        found += [
            f"{name}.{a}" for a in ("activations", "max_batch_len", "autograd_grad_sample_hooks") if a in vars(module)
        ]
        found += [f"{name} hook" for _ in (*module._forward_hooks, *module._backward_hooks)]
    return found


def test_hooks_and_gradients_are_gone_after_a_normal_exit(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(3))
    modes = [module.training for module in model.modules()]
    with PerExampleGradients(model, model.trainable()) as gradients:
        gradients.rows(features.losses(model, features.batch(np.arange(3))))
    assert traces(model) == []
    assert [module.training for module in model.modules()] == modes


def test_a_round_broken_off_between_forward_and_backward_leaves_nothing(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(4))

    def interrupted() -> None:
        with PerExampleGradients(model, model.trainable()):
            features.losses(model, features.batch(np.arange(4)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert traces(model) == []
    with PerExampleGradients(model, model.trainable()) as gradients:
        rows = gradients.rows(features.losses(model, features.batch(np.arange(2))))
    assert rows.shape == (2, model.dimension)


def test_it_works_on_a_model_left_in_evaluation_mode(model: AdaptedModel, encode: Encode) -> None:
    """Opacus alone would raise; only the modules that train are switched, and only while they are watched."""
    model.eval()
    features = Features(model, encode(2))
    with PerExampleGradients(model, model.trainable()) as gradients:
        assert gradients.rows(features.losses(model, features.batch(np.arange(2)))).shape[0] == 2
    assert not any(module.training for module in model.modules())


def test_batch_norm_that_trains_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConsiliumError, match="CSL-330"), PerExampleGradients(model, list(model.named_parameters())):
        pass
    assert traces(model) == []


def test_a_parameter_that_the_loss_does_not_reach_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    with PerExampleGradients(model, list(model.named_parameters())) as gradients:
        losses = model["used"](torch.ones(3, 2)).squeeze(1)
        with pytest.raises(ConsiliumError, match="idle"):
            gradients.rows(losses)
