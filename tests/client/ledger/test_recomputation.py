"""A study's epsilon can be computed anew from the export alone, without a line of this software.

What follows reads JSON, hashes, and convolves privacy losses on a grid by FFT; it knows no class of the product.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rfc8785
from numpy.typing import NDArray
from scipy.stats import norm

from client.ledger.recovery import inspect
from client.ledger.report import export
from common.messages import Stage
from common.parts import Digest
from common.privacy.plan import PrivacyPlan
from common.study import Unit
from tests.ledgers import ACCOUNT, PLAN, STUDY, charge, joined, opened

GRID = 2e-4
REACH = 60.0


@pytest.fixture
def exported(tmp_path: Path) -> dict[str, object]:
    """The export of a ledger with three studies of different kinds, read back as JSON."""
    path = tmp_path / "ledger.sqlite"
    with opened(path) as ledger:
        joined(ledger)
        ledger.charge(charge(1))
        ledger.charge(charge(1, stage=Stage.COUNTS))
        ledger.open_account("patients", population="p", unit=Unit.PATIENT, epsilon=50.0, delta=1e-3)
        plan = {"max_records_per_unit": 3, "clip_norm": 0.5, "delta": 1e-6, "population": 500, "steps_per_charge": 1}
        for number, (rate, noise, charges, releases) in enumerate([(0.5, 4.0, 25, 1), (0.05, 1.0, 60, 0)]):
            ledger.join(
                "patients",
                Digest(f"{number:064x}"),
                PrivacyPlan(
                    unit=Unit.PATIENT,
                    sampling_rate=rate,
                    noise_multiplier=noise,
                    max_charges=charges,
                    evaluation_noise_multiplier=5.0,
                    evaluation_releases=releases,
                    **plan,  # type: ignore[arg-type]
                ),
            )
    read: dict[str, object] = json.loads(export(inspect(path)).model_dump_json())
    return read


def entries(exported: dict[str, object]) -> list[dict[str, object]]:
    return [chained["record"]["entry"] for chained in exported["entries"]]  # type: ignore[attr-defined]


def losses(noise: float, rate: float, *, removed: bool) -> NDArray[np.float64]:
    """Return the distribution of one step's privacy loss on the grid, by cells of the output between two bounds.

    Under "removed" the outputs come from the data with the unit: (1 - q) N(0, s²) + q N(1, s²) against N(0, s²); else
    the other way round. Cells are narrow, and each is put where its probabilities' ratio says.
    """
    bounds = np.linspace(-12.0 * noise - 1.0, 12.0 * noise + 2.0, 400_001)
    without = np.diff(norm.cdf(bounds, scale=noise))
    having = (1.0 - rate) * without + rate * np.diff(norm.cdf(bounds - 1.0, scale=noise))
    first, second = (having, without) if removed else (without, having)
    kept = (first > 1e-300) & (second > 1e-300)
    loss = np.log(first[kept] / second[kept])
    place = np.rint(loss / GRID).astype(np.int64) + int(REACH / GRID)
    found = np.bincount(np.clip(place, 0, None), weights=first[kept], minlength=int(2 * REACH / GRID) + 1)
    return found.astype(np.float64)


def epsilon(parts: list[tuple[float, float, int]], delta: float) -> float:
    """Compose (noise, rate, times) by FFT and find epsilon: the larger of adding and removing."""
    size = int(2 * REACH / GRID) + 1
    values = (np.arange(size) - size // 2) * GRID
    worst = 0.0
    for removed in (True, False):
        spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
        for noise, rate, times in parts:
            spectrum *= np.fft.rfft(np.fft.ifftshift(losses(noise, rate, removed=removed)[:size])) ** times
        masses = np.clip(np.fft.fftshift(np.fft.irfft(spectrum, size)), 0.0, None)
        # delta(e) = sum over losses above e of mass (1 - exp(e - loss)), from suffix sums.
        tail, tilted = np.cumsum(masses[::-1])[::-1], np.cumsum((masses * np.exp(-values))[::-1])[::-1]
        profile = tail - np.exp(values) * tilted
        allowed = np.flatnonzero(profile <= delta)
        worst = max(worst, float(values[allowed[values[allowed] >= 0][0]]))
    return worst


def test_every_digest_of_the_export_follows_from_the_one_before(exported: dict[str, object]) -> None:
    domain = b"consilium/v1/chain\x00"
    digest = hashlib.sha256(domain).hexdigest()
    for chained in exported["entries"]:  # type: ignore[attr-defined]
        body = rfc8785.dumps(chained["record"])
        digest = hashlib.sha256(
            domain + bytes.fromhex(digest) + chained["number"].to_bytes(8, "big") + body
        ).hexdigest()
        assert digest == chained["digest"]
    assert digest == exported["head"]


def test_every_studys_epsilon_is_found_again_from_the_export_alone(exported: dict[str, object]) -> None:
    studies = [entry for entry in entries(exported) if entry["kind"] == "study"]
    assert len(studies) == 3
    for entry in studies:
        plan = entry["plan"]
        assert isinstance(plan, dict)
        parts = [(plan["noise_multiplier"], plan["sampling_rate"], plan["steps_per_charge"] * plan["max_charges"])]
        if plan["evaluation_releases"]:
            parts.append((plan["evaluation_noise_multiplier"], 1.0, plan["evaluation_releases"]))
        again = epsilon(parts, plan["delta"])
        stated = entry["epsilon"]
        assert isinstance(stated, float)
        assert again == pytest.approx(stated, rel=0.01)
        assert stated >= again * 0.999


def test_what_remains_is_found_again_from_the_export_alone(exported: dict[str, object]) -> None:
    for line in exported["accounts"]:  # type: ignore[attr-defined]
        joined_here = [
            entry for entry in entries(exported) if entry["kind"] == "study" and entry["account"] == line["account"]
        ]
        spent = sum(entry["epsilon"] for entry in joined_here)  # type: ignore[misc]
        assert line["epsilon_remaining"] == pytest.approx(line["epsilon"] - spent)
        assert line["epsilon_committed"] == pytest.approx(spent)


def test_the_charges_of_the_export_are_within_what_was_committed(exported: dict[str, object]) -> None:
    charges = [entry for entry in entries(exported) if entry["kind"] == "charge"]
    assert {entry["study"] for entry in charges} == {STUDY.digest}
    assert len([entry for entry in charges if entry["stage"] == "train.fit"]) == 1 <= PLAN.max_charges
    assert [later["instance"] for _, later in pairwise(charges)] == [1]
    assert {entry["account"] for entry in charges} == {ACCOUNT}
