"""Studies, steps and what to compare them by, for tests of the operator's journal."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from common.chain import sound
from common.identity import SiteId
from common.parts import Digest
from server.journal import SqlJournal, State
from server.progress import Progress, RoundRecord, StudyJournal
from tests.studies import signed_study

ONE, TWO, THREE = (signed_study(title=title) for title in ("One", "Two", "Three"))
START = datetime(2026, 12, 1, 8, tzinfo=UTC)
SITES = (SiteId("site-000"), SiteId("site-002"))


def of(path: Path) -> str:
    return f"sqlite:///{path}"


def vector(number: int, length: int = 40) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(number).standard_normal(length).astype(np.float32)


def step(number: int, length: int = 40) -> tuple[Progress, RoundRecord | None]:
    """Return what a coordinator keeps as its n-th: by turns a sum that is under way and the round that it ends."""
    dice = random.Random(number)
    ended, norm = number % 2 == 1, dice.random()
    progress = Progress(
        instance=number // 2 + 1,
        attempt=number % 3,
        rounds=(number + 1) // 2,
        under_way=not ended,
        vector=vector((number + 1) // 2, length),
        optimizer=dice.randbytes(number % 7),
        session=dice.randbytes(length),
    )
    record = RoundRecord(number // 2, number % 3, SITES[: 1 + number % 2], norm, number, 1 << 40)
    return progress, record if ended else None


def same(found: Progress | None, wanted: Progress) -> bool:
    """Compare bit for bit, which the comparison of arrays does not."""
    return (
        found is not None
        and found.vector.dtype == np.float32
        and found.vector.tobytes() == wanted.vector.tobytes()
        and replace(found, vector=None) == replace(wanted, vector=None)  # type: ignore[arg-type]
    )


def records(steps: int) -> tuple[RoundRecord, ...]:
    return tuple(record for _, record in map(step, range(steps)) if record is not None)


def begun(journal: SqlJournal, steps: int = 0) -> StudyJournal:
    """Enqueue the first study, begin it and take so many steps."""
    digest = journal.enqueue(ONE.signed, ONE.approvals)
    journal.enter(digest, State.RUNNING)
    study = journal.of(digest)
    for number in range(steps):
        study.keep(*step(number))
    return study


def events(journal: SqlJournal, digest: Digest = ONE.study.digest) -> list[dict[str, object]]:
    links = journal.transcript(digest)
    assert tuple(sound(links)) == links
    return [json.loads(link.body) for link in links]


def clock() -> Callable[[], datetime]:
    """Return a clock that shows one minute more whenever it is looked at."""
    minutes = iter(range(1 << 20))
    return lambda: START + timedelta(minutes=next(minutes))
