"""What the researcher's commands check alike before an hour of work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from common import errors
from common.errors import ConsiliumError
from common.study import TrainingNoise
from common.transfer import Method
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
    if engine is Engine.STACKED and (reason := unstacked(scenario)) is not None:
        raise ConsiliumError(errors.ENGINE_UNSUITABLE, reason)


def unstacked(scenario: Scenario) -> str | None:
    """Return why sites of a scenario cannot train in one forward pass, None where that depends on the backbone.

    Says beforehand what :class:`simulations.stacked.StackedTraining` would find out; a test holds the one against the
    other.
    """
    if scenario.privacy.noise is TrainingNoise.DISCRETE:
        return "discrete noise needs records that are computed one by one"
    if scenario.pretraining is not None or scenario.adapter.method == "rolora":
        return "rounds that train different weights are not trained together: choose inline"
    if scenario.adapter.site_ranks:
        return "sites of ranks of their own are not trained together: choose inline"
    outside = _OUTSIDE.get(scenario.adapter.method)
    return None if outside is None else f"{scenario.adapter.method} trains {outside}, not linear layers alone"


_OUTSIDE: Mapping[Method, str] = {
    "ia3": "vectors that scale what layers put out",
    "bitfit": "biases of layer norms",
    "layer-norm": "layer norms",
    "full": "layer norms or convolutions",
}
"""What these methods train on every backbone, and what has no batched product."""


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
