"""Image classification: an image brought to one size, by the study's own constants, under a linear head."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from common.backbone import Backbone
from common.task_specs import ImageClassification
from common.tasks import unsupported
from common.tasks.shaped import Picture, ShapedTask, pixels_of, squared


class ImageClassificationTask(ShapedTask):
    """Assign one of the study's labels to each image."""

    spec: ImageClassification

    def __init__(self, spec: ImageClassification, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone)
        if self.anatomy.reads != "pixels":
            raise unsupported(f"{backbone.manifest.name} reads {self.anatomy.reads}, not pixels")
        self.spec = spec
        self.choose_among(spec)
        self.check_size()

    def reads(self, content: object, label: str) -> bool:
        """See :meth:`Task.reads`: an image of one or three channels."""
        if not (isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 3):
            return False
        return content.shape[2] in (1, 3) and min(content.shape[:2]) > 0 and self.spec.accepts(label)

    def shaped(self, content: object) -> Picture:
        """See :meth:`ShapedTask.shaped`; what is grey is so in three channels, as some images of a site may not be."""
        assert isinstance(content, np.ndarray), "read before"
        picture = squared(content, self.spec.size)
        return picture if picture.shape[0] == 3 else picture.repeat(3, axis=0)

    def batched(self, kept: Tensor) -> Tensor:
        """See :meth:`ShapedTask.batched`."""
        return pixels_of(kept, self.spec.mean, self.spec.deviation)

    def invented_content(self, dice: np.random.Generator) -> object:
        """See :meth:`ShapedTask.invented_content`."""
        return dice.integers(256, size=(self.spec.size, self.spec.size, 3)).astype(np.uint8)
