"""Ways in which a layer or a loss goes wrong, each alone in a small model: refused with its name, or right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.examination import examine
from client.training.gradients import PerExampleGradients
from common.adapters.scaling import Scaling
from common.errors import ConsiliumError
from tests.client.preflight.architectures import CLASSES, Case, entropy, targets

WIDTH = 6


def dense(*layers: nn.Module) -> Case:
    """Put layers between two linear ones, called 0 and the last number."""
    model = nn.Sequential(nn.Linear(WIDTH, 8), *layers, nn.Linear(8, CLASSES))
    return Case(model, lambda m, x, goal: entropy(m(x), goal), (torch.randn(5, WIDTH), targets()))


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(torch.tanh(self.inner(x)))
        return found


class Functional(Twice):
    """A layer whose weights are used without calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.inner.weight, self.inner.bias)


class HalfFunctional(Twice):
    """A layer that is called, and whose weights are used once more without."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.inner(x)), self.inner.weight)


class Bare(nn.Module):
    """A parameter of its own that is multiplied in."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Remembering(nn.Module):
    """A mean of what it saw, in no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * float(x.detach().mean())
        return x - self.seen


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Narrow(nn.Module):
    """Computes in bfloat16, each example by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.to(torch.bfloat16)).to(x.dtype)


class Faint(nn.Module):
    """Lets an example's gradient feel its neighbours, by a ten-thousandth."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(_: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: object, gradient: Tensor) -> Tensor:
            return gradient + 2e-4 * gradient.mean(dim=0, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.Mixed.apply(x)  # type: ignore[no-untyped-call]
        return mixed


class Pairing(nn.Module):
    """Works on an even number of examples only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1, *x.shape[1:]).reshape(x.shape)


class Folding(nn.Module):
    """Folds positions into the examples around a layer that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x.reshape(-1, 4)).reshape(x.shape)
        return found


class Words(nn.Module):
    """Embeddings that train, tied to what predicts from them."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(CLASSES, 8)
        self.out = nn.Linear(8, CLASSES, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.out(torch.tanh(self.words(ids).sum(dim=1)))
        return found


def words(*, tied: bool) -> Case:
    ids = torch.randint(CLASSES, (5, 7))
    return Case(Words(tied=tied), lambda m, x, goal: entropy(m(x), goal), (ids, targets()))


def images(*layers: nn.Module) -> Case:
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))
    pixels = torch.randn(5, 4, 8, 8)
    model(pixels)
    return Case(model, lambda m, x, goal: entropy(m(x), goal), (pixels, targets()))


def scaled() -> Case:
    return dense(nn.Tanh(), Scaling(nn.ParameterDict({"default": nn.Parameter(torch.ones(8, 1))})))


def bare_norm() -> Case:
    return dense(nn.LayerNorm(8, bias=False), nn.Tanh())


RIGHT: dict[str, Callable[[], Case]] = {
    "a layer used twice": lambda: dense(Twice()),
    "a computation in bfloat16": lambda: dense(Narrow()),
    "a convolution": lambda: images(nn.Conv2d(4, 6, 3), nn.Tanh()),
    "a grouped and strided convolution": lambda: images(nn.Conv2d(4, 8, 3, stride=2, groups=4), nn.Tanh()),
    "a group norm": lambda: images(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)),
    "an instance norm": lambda: images(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, affine=True)),
    "an embedding": lambda: words(tied=False),
    "an embedding tied to the output": lambda: words(tied=True),
    "a scaling vector": scaled,
    "a layer norm without a bias": bare_norm,
}

WRONG: dict[str, tuple[Callable[[], Case], str]] = {
    "weights used without their layer": (lambda: dense(Functional()), "1.inner"),
    "weights used with and without their layer": (lambda: dense(HalfFunctional()), "1.inner"),
    "batch norm": (lambda: dense(nn.BatchNorm1d(8)), "1 (BatchNorm1d)"),
    "instance norm that keeps statistics": (
        lambda: images(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, track_running_stats=True)),
        "1 (InstanceNorm2d)",
    ),
    "a state in no buffer": (lambda: dense(Remembering()), "two runs"),
    "dropout": (lambda: dense(nn.Dropout(0.2)), "1: two runs"),
    "a faint leak": (lambda: dense(Faint()), "0."),
    "a model for even batches": (lambda: dense(Pairing()), "1 fails on 1 examples"),
    "positions folded into the examples": (lambda: dense(Folding()), "1.inner"),
    "what does not reach the loss": (lambda: dense(Detached()), "0.weight"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_accepted(name: str) -> None:
    torch.manual_seed(7)
    case = RIGHT[name]()
    report = examine(case.model, case.losses, case.inputs)
    held = [(name, parameter) for name, parameter in case.model.named_parameters() if parameter.requires_grad]
    with PerExampleGradients(case.model, held) as gradients:
        rows = gradients.rows(case.losses(case.model, *case.inputs))
    for row in range(5):
        alone = case.losses(case.model, *[tensor[row : row + 1] for tensor in case.inputs])
        own = torch.cat([found.reshape(-1) for found in torch.autograd.grad(alone.sum(), [p for _, p in held])])
        assert torch.allclose(rows[row], own, rtol=1e-4, atol=1e-5 * float(own.norm()))
    assert report.dimension == rows.shape[1]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_by_name(name: str) -> None:
    torch.manual_seed(7)
    make, named = WRONG[name]
    case = make()
    with pytest.raises(ConsiliumError, match="CSL-330") as refused:
        examine(case.model, case.losses, case.inputs)
    assert named in refused.value.detail


def test_a_bare_parameter_in_a_module_that_is_called_is_right() -> None:
    """Opacus differentiates a module that holds one parameter and nothing else; what it finds is measured."""
    torch.manual_seed(7)
    case = dense(Bare())
    report = examine(case.model, case.losses, case.inputs)
    assert "1.gain" in report.parameters


def contrastive(logits: Tensor, goal: Tensor) -> Tensor:
    """Pull examples of a label together: every example is another's negative."""
    close = functional.normalize(logits, dim=1) @ functional.normalize(logits, dim=1).T
    alike = (goal[:, None] == goal[None, :]).float()
    return entropy(logits, goal) - (close * alike).mean(dim=1)


COUPLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "divided by the size of the batch": lambda logits, goal: entropy(logits, goal) / len(goal),
    "in-batch negatives": contrastive,
    "centred": lambda logits, goal: entropy(logits - logits.mean(dim=0), goal),
    "weighted by how often a label is in the batch": lambda logits, goal: (
        entropy(logits, goal) / torch.bincount(goal, minlength=CLASSES)[goal]
    ),
    "hardest examples only": lambda logits, goal: (
        entropy(logits, goal) * (entropy(logits, goal) >= entropy(logits, goal).median())
    ),
    "averaged": lambda logits, goal: entropy(logits, goal).mean(),
    "summed": lambda logits, goal: entropy(logits, goal).sum(),
}


@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_couples_examples_is_refused(name: str) -> None:
    torch.manual_seed(7)
    case = dense(nn.Tanh())
    with pytest.raises(ConsiliumError, match=r"CSL-330.*the loss"):
        examine(case.model, lambda m, x, goal: COUPLED[name](m(x), goal), case.inputs)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_parameter_of_half_precision_is_refused(kind: torch.dtype) -> None:
    case = dense(nn.Tanh())
    case.model.get_submodule("2").to(kind)
    with pytest.raises(ConsiliumError, match=r"2\.weight is torch\.b?float16"):
        examine(case.model, case.losses, case.inputs)


def test_a_loss_of_no_parameter_is_refused() -> None:
    case = dense(nn.Tanh())
    with pytest.raises(ConsiliumError, match=r"CSL-330.*depends on no parameter"):
        examine(case.model, lambda m, x, goal: case.losses(m, x, goal).detach(), case.inputs)
