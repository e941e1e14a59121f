"""Tasks: from records to encoded examples, from hidden states to a loss per example, from outputs to a score each.

One file a task behind :class:`Task`, one row in :data:`_TASKS`. Whatever happens to a record depends on that record, on
the study's constants and on the frozen backbone alone (RULES 12).
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common import errors
from common.anatomy import anatomy_of
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.task_specs import AnyTask

Inputs = Sequence[NDArray[np.generic]]
Targets = NDArray[np.int64] | NDArray[np.float32]
FEATURE_NORM = 1.0
"""L2 norm of every feature that enters a head: fixed, so that one clip norm suits every backbone."""
IGNORED = -100
"""Target of a token that is not learned from."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as a model reads them.

    inputs   one array an example: int32 tokens, special ones included, at most the task's max_tokens; or what an image
             or a recording was made into, of one shape for all
    targets  (n, ...) int64 or float32, as the task's loss takes them
    units    (n,) int64, the privacy unit that owns each example, numbered from 0
    dropped  records that could not be read and are not among the examples. Sensitive: it stays on site
    numbers  (n, k) float32 that enter the head beside the features; None for most tasks
    """

    inputs: tuple[NDArray[np.generic], ...] = field(repr=False)
    targets: Targets = field(repr=False)
    units: NDArray[np.int64] = field(repr=False)
    dropped: int = field(default=0, repr=False)
    numbers: NDArray[np.float32] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.inputs)


class Embedder(Protocol):
    """What a head may be initialised from: the frozen backbone's view of some inputs."""

    def features_of(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return the features that enter the head, (n, h)."""


class Task(ABC):
    """What the sites learn to do.

    spec     what the study says
    classes  how many labels there are to choose among; 0 where the task is another
    pools    whether one row an example enters the head, not one a token
    """

    spec: AnyTask
    classes: int = 0
    pools: bool = True

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.anatomy = backbone, anatomy_of(backbone.model)

    @property
    def width(self) -> int:
        """Width of the features that enter the head."""
        return self.backbone.hidden_size

    @property
    def has_lengths(self) -> bool:
        """Whether examples differ in length; what reads no tokens brings all to one shape."""
        return self.anatomy.reads == "tokens"

    def encode(self, contents: Sequence[object], labels: Sequence[str], units: NDArray[np.int64]) -> Encoded:
        """Turn labelled records into encoded examples.

        A record that cannot be read, or whose label the task does not take, is left out and counted in ``dropped``; one
        such record never fails a site (RULES 13). Whether a record stays depends on it alone.
        """
        kept = [
            row for row, (content, label) in enumerate(zip(contents, labels, strict=True)) if self.reads(content, label)
        ]
        owners = np.asarray(units, dtype=np.int64)[kept]
        inputs, targets, numbers = self.encoded([contents[row] for row in kept], [labels[row] for row in kept])
        return Encoded(inputs, targets, owners, len(contents) - len(kept), numbers)

    @abstractmethod
    def reads(self, content: object, label: str) -> bool:
        """Whether a record can be read and has a label that the task takes."""

    @abstractmethod
    def encoded(
        self, contents: Sequence[object], labels: Sequence[str]
    ) -> tuple[tuple[NDArray[np.generic], ...], Targets, NDArray[np.float32] | None]:
        """Return inputs, targets and numbers of records that can be read."""

    @abstractmethod
    def pad(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return a batch and its mask: (n, longest) int64 each for tokens; else what the backbone reads and (n, 1)."""

    @abstractmethod
    def invented(self, lengths: Sequence[int]) -> Encoded:
        """Return examples that are nobody's, all different, of so many tokens each where they have lengths.

        For looking at a model before any record is (RULES 14).
        """

    @abstractmethod
    def head(self, width: int, *, alone: bool) -> nn.Module:
        """Return a new head on features of that width, at zero; ``alone`` where nothing else trains.

        One that has no parameters is ``nn.Identity``.
        """

    def initialise_head(self, head: nn.Module, embedder: Embedder) -> None:
        """Set the head from what the study says of its labels, if it says anything; costs no privacy."""
        del head, embedder

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Turn hidden states into what enters the head, each example by itself: pooled, at :data:`FEATURE_NORM`."""
        return FEATURE_NORM * nn.functional.normalize(self.anatomy.pool(hidden, mask), dim=-1)

    def outputs(self, head: nn.Module, features: Tensor, numbers: Tensor | None) -> Tensor:
        """Return what the head makes of the features."""
        del numbers
        return torch.as_tensor(head(features))

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each example's own loss, (n,); nothing in it depends on another example."""

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how right each example's output is, (n,) in [0, 1]: what is counted, noised and released (RULES 9)."""

    def predictions(self, outputs: Tensor) -> Tensor | None:
        """Return the label chosen for each example, (n,) int64; None where the task chooses none."""
        del outputs
        return None


_TASKS: Mapping[str, tuple[str, str]] = {
    "text-classification": ("text_classification", "TextClassificationTask"),
    "multi-label-classification": ("multi_label", "MultiLabelTask"),
    "token-classification": ("token_classification", "TokenClassificationTask"),
    "causal-language-modelling": ("language_modelling", "CausalLanguageTask"),
    "masked-language-modelling": ("language_modelling", "MaskedLanguageTask"),
    "retrieval": ("retrieval", "RetrievalTask"),
    "regression": ("regression", "RegressionTask"),
    "image-classification": ("image_classification", "ImageClassificationTask"),
    "audio-classification": ("audio_classification", "AudioClassificationTask"),
    "tabular-classification": ("tabular_classification", "TabularClassificationTask"),
}
"""Where each kind of :data:`common.task_specs.AnyTask` is."""


def task_for(spec: AnyTask, backbone: Backbone, stream: str = "") -> Task:
    """Return the task that a study names, on its backbone; raises CSL-322 where they do not fit.

    stream  64 hex digits of the study's public randomness, for a task that draws from it
    """
    module, name = _TASKS[spec.kind]
    made = getattr(importlib.import_module(f"common.tasks.{module}"), name)(spec, backbone, stream)
    assert isinstance(made, Task)
    return made


def unsupported(detail: str) -> ConsiliumError:
    """Return the refusal of a task by a backbone."""
    return ConsiliumError(errors.TASK_UNSUPPORTED, detail)
