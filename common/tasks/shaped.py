"""What tasks share whose examples are all of one shape: images, recordings, and what they are made into."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.task_specs import AudioClassification, ImageClassification
from common.tasks import Encoded, Inputs, Targets, unsupported
from common.tasks.choice import Choice

Picture = NDArray[np.uint8]
"""(channels, size, size), 1 channel for grey, 3 for red, green and blue."""


class ShapedTask(Choice):
    """A choice among labels for records that are brought to one shape."""

    spec: ImageClassification | AudioClassification

    @abstractmethod
    def shaped(self, content: object) -> NDArray[np.generic]:
        """Return what is kept of a record that can be read."""

    @abstractmethod
    def batched(self, kept: Tensor) -> Tensor:
        """Return what the backbone reads from what is kept of some records, examples in dimension 0."""

    @abstractmethod
    def invented_content(self, dice: np.random.Generator) -> object:
        """Return a record that is nobody's."""

    def check_size(self) -> None:
        """Raise CSL-322 where the backbone reads images of another size than the study's."""
        size = self.anatomy.image_size(self.backbone.model)
        if size is not None and size != self.spec.size:
            raise unsupported(f"{self.backbone.manifest.name} reads images of {size} by {size}: task.size = {size}")

    def encoded(
        self, contents: Sequence[object], labels: Sequence[str]
    ) -> tuple[tuple[NDArray[np.generic], ...], Targets, NDArray[np.float32] | None]:
        """See :meth:`Task.encoded`."""
        return tuple(self.shaped(content) for content in contents), self.numbered(labels), None

    def pad(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """See :meth:`Task.pad`."""
        kept = torch.from_numpy(np.stack(inputs)) if inputs else torch.from_numpy(self._none())
        return self.batched(kept), torch.ones(len(inputs), 1, dtype=torch.int64)

    def invented(self, lengths: Sequence[int]) -> Encoded:
        """See :meth:`Task.invented`."""
        dice = np.random.default_rng(2)
        inputs = tuple(self.shaped(self.invented_content(dice)) for _ in lengths)
        targets = np.arange(len(inputs), dtype=np.int64) % self.classes
        return Encoded(inputs, targets, np.arange(len(inputs), dtype=np.int64))

    def _none(self) -> NDArray[np.generic]:
        """Return a batch of no record."""
        one = self.shaped(self.invented_content(np.random.default_rng(0)))
        return one[None][:0]


def squared(image: NDArray[np.uint8], size: int) -> Picture:
    """Return an image, (height, width, channels), at ``size`` by ``size`` pixels, antialiased, channels first."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    found = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return found[0].round().clamp(0, 255).to(torch.uint8).numpy()


def pixels_of(kept: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """Return (n, 3, size, size) float32 from (n, channels, size, size) bytes, by the study's mean and deviation."""
    pixels = kept.float().div(255.0)
    pixels = pixels.expand(-1, 3, -1, -1)
    centre, spread = (torch.tensor(values)[None, :, None, None] for values in (mean, deviation))
    return (pixels - centre) / spread
