"""Entries that were written before a plan had a choice of noise keep their bytes, and a choice is kept in new ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rfc8785

from client.ledger.entries import Record, StudyJoined
from common.errors import ConsiliumError
from common.privacy.plan import PrivacyPlan
from common.study import TrainingNoise
from tests.ledgers import ACCOUNT, PLAN, STUDY

BEFORE = {
    "unit": "record",
    "max_records_per_unit": 1,
    "sampling_rate": 0.1,
    "noise_multiplier": 1.5,
    "clip_norm": 1.0,
    "steps_per_charge": 2,
    "max_charges": 10,
    "evaluation_noise_multiplier": 5.0,
    "evaluation_releases": 1,
    "delta": 1e-5,
    "population": 100,
}
"""A plan as it was written."""


def body(plan: dict[str, object]) -> bytes:
    entry = {"kind": "study", "account": ACCOUNT, "study": STUDY.digest, "plan": plan, "epsilon": 2.0}
    return rfc8785.dumps(
        {"at": "2026-11-01T00:00:00Z", "salt": "00" * 16, "entry": {**entry, "accountant": "PLD"}}  # type: ignore[dict-item]
    )


def plan_in(record: Record) -> PrivacyPlan:
    assert isinstance(record.entry, StudyJoined)
    return record.entry.plan


def joined(plan: PrivacyPlan) -> Record:
    entry = StudyJoined(account=ACCOUNT, study=STUDY.digest, plan=plan, epsilon=2.0, accountant="PLD")
    return Record(at="2026-11-01T00:00:00Z", salt="00" * 16, entry=entry)


def test_an_entry_without_a_choice_of_noise_reads_as_gaussian_and_keeps_its_bytes() -> None:
    record = Record.from_canonical(body(BEFORE))
    assert plan_in(record).noise is TrainingNoise.GAUSSIAN
    assert record.canonical() == body(BEFORE)


@pytest.mark.parametrize("noise", TrainingNoise)
def test_a_plan_comes_back_with_its_noise(noise: TrainingNoise) -> None:
    plan = replace(PLAN, noise=noise)
    written = joined(plan).canonical()
    assert plan_in(Record.from_canonical(written)) == plan
    assert (b'"noise"' in written) == (noise is TrainingNoise.DISCRETE)


def test_gaussian_noise_has_one_form() -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-211.*canonical"):
        Record.from_canonical(body({**BEFORE, "noise": "gaussian"}))
