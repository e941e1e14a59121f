"""What the operator needs of a study's model: the vector it starts from, and the release it ends with.

The coordinator itself knows vectors and no model, so that the link can be run without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common import backbone as backbones
from common import errors
from common.agreement import Approval, SignedStudy
from common.errors import ConsiliumError
from common.study import Study
from server.aggregation import Vector
from server.config import Backbone


class Product(Protocol):
    """One study's model."""

    def start(self) -> Vector:
        """Return the global vector before the first round, (dimension,) float32."""

    def moves(self, round_index: int) -> NDArray[np.bool_] | None:
        """Return which numbers of the vector a round moves, (dimension,); None for all."""

    def release(self, folder: Path, vector: Vector, signed: SignedStudy, approvals: tuple[Approval, ...]) -> None:
        """Write what the study ends with into a folder."""


Produce = Callable[[Study], Product]
"""Makes the product of a study."""


def locate(source: Backbone | None) -> Path:
    """Return the folder of the operator's backbone, which nobody has verified yet; raises CSL-301."""
    if source is not None and source.package is not None:
        return backbones.locate_package(source.package)
    if source is not None and source.folder is not None:
        return backbones.locate_folder(source.folder)
    raise ConsiliumError(errors.BACKBONE_MISSING, "server.toml names no [backbone]")


class AdapterProduct:
    """The adapter of a study on its verified backbone. Raises CSL-301 to CSL-310 for what does not fit."""

    def __init__(self, study: Study, source: Backbone | None) -> None:
        from common.adapters import of_study

        self._model = of_study(study, backbones.load(locate(source), study.backbone))

    def start(self) -> Vector:
        """Return a fresh adapter's vector, its head from the label texts where there are any."""
        return self._model.read_vector()

    def moves(self, round_index: int) -> NDArray[np.bool_] | None:
        """Return which numbers of the vector a round moves; None for all."""
        return self._model.moves(round_index)

    def release(self, folder: Path, vector: Vector, signed: SignedStudy, approvals: tuple[Approval, ...]) -> None:
        """Write the adapter in PEFT's format with its card, statement and agreement; raises CSL-610."""
        from server.release import write_release

        self._model.write_vector(vector)
        write_release(folder, self._model, signed, approvals, private=True)
