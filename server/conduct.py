"""How a study is run, beside what the study says: who waits for whom, what is kept, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from server.attendance import Attendance, Deadline, Everyone
from server.board import Board
from server.progress import StudyJournal


def _no_backbone() -> Path:
    raise ConsiliumError(errors.BACKBONE_MISSING, "this operator has none to send")


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a study is run, beside what the study says.

    deadline    of a round
    quorum      connected sites that an epoch is opened with at least; never fewer than the protocol needs
    attendance  who is connected
    moves       which numbers of the vector a round moves, (dimension,); None for all
    journal     where the study stands, if it is to outlive this process; raises what its disk raises
    board       told each site's standing
    backbone    returns the folder of the operator's bytes, for sites that have no other source of them; raises CSL-301
    greet       called with nodes that are not known yet, before they are asked who they are
    between     called between two rounds; what it raises stops the study, to be gone on with later
    """

    deadline: Deadline = field(default_factory=Deadline)
    quorum: int = 0
    attendance: Attendance = field(default_factory=Everyone)
    moves: Callable[[int], NDArray[np.bool_] | None] = lambda _round: None
    journal: StudyJournal | None = None
    greet: Callable[[Grid, Collection[int]], None] = lambda _grid, _nodes: None
    between: Callable[[Grid], None] = lambda _grid: None
    board: Board | None = None
    backbone: Callable[[], Path] = _no_backbone
