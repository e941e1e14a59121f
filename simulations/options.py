"""What the researcher's commands check alike before an hour of work."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from common import errors
from common.errors import ConsiliumError
from common.study import TrainingNoise
from simulations.outputs import check_writable
from simulations.scenario import Scenario


class Engine(StrEnum):
    """How the sites are run: one after the other, several in one forward pass, or in the processes of a Ray cluster."""

    INLINE = "inline"
    STACKED = "stacked"
    RAY = "ray"


def check_engine(engine: Engine, scenario: Scenario) -> None:
    """Raise CSL-520 where the scenario says that the engine cannot run it, CSL-521 where Ray is not installed."""
    if engine is Engine.RAY and find_spec("ray") is None:
        raise ConsiliumError(errors.ENGINE_MISSING, "ray")
    if engine is Engine.STACKED and scenario.privacy.noise is TrainingNoise.DISCRETE:
        raise ConsiliumError(errors.ENGINE_UNSUITABLE, "discrete noise needs records that are computed one by one")


def check_device(device: str) -> None:
    """Raise CSL-511 for the name of a device that is none."""
    if not re.fullmatch(r"auto|cpu|cuda:\d+", device):
        raise ConsiliumError(errors.SCENARIO_INVALID, f"--device: {device!r} is none of auto, cpu, cuda:N")


def prepare_machine(device: str, out: Path | None) -> None:
    """Check device and output folder, and let threads that wait sleep; raises CSL-511 and CSL-513.

    Threads that wait by spinning slow each other down many times where cores are shared.
    """
    check_device(device)
    if out is not None:
        check_writable(out)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
