"""From a hospital's query to the records that it trains on and those that it tests on.

What happens to a record depends on its unit's own records and on public constants only, and never on another unit's
(RULES 12). A record that cannot be read is left out (RULES 13): one without a text, a label, or whatever else names
its place. Which unit is on which side is decided once, by a keyed hash, whatever else the query returns [RULES 9].
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Literal

import numpy as np

from client.config import SiteConfig
from client.data import Examples
from client.sources import Role, read_columns
from client.table import TextColumn
from common import errors
from common.errors import ConsiliumError
from common.identity import Identity
from common.study import Study, Unit

SPLIT_PURPOSE = "consilium/v1/split"
"""What the key of the hash is derived for: the identity's, so it is the same for as long as the site has its key."""
_SIDES = ("train", "validation", "test")
HeldOut = Literal["validation", "test"]
"""A side to which nothing is fitted."""
_log = logging.getLogger("consilium.records")

Row = tuple[str | None, str | None, str | None, str | None]
"""Unit, content, label and side, as they were read."""
_Row = tuple[str, str, str, str]
"""The same of a record that can be read: in this order they are sorted."""


def load(config: SiteConfig, study: Study, identity: Identity) -> tuple[Examples, Examples]:
    """Return the training and the test records, in an order that depends on the values alone.

    Units are numbered from 0 on each side: patients where the study hides patients, else records. The side is the split
    column's, whose validation records are on neither; without such a column the unit column's value decides, or where
    there is none the text. With the same fraction of tests, that side is for ever.

    Raises CSL-501 or CSL-502 for the query, CSL-503 for a column that is not there or not named, CSL-504 where a side
    is empty, CSL-505 for a column of another type, an unknown side or a unit on two, CSL-321 for an unknown label.
    """
    train, tests = (_examples(study, side) for side in _divided(config, study, identity, "train", "test"))
    if not len(train) or (study.evaluation.releases and not len(tests)):
        raise ConsiliumError(errors.DATA_EMPTY, "no records to train on" if not len(train) else "no records to test on")
    return train, tests


def load_for_verdict(config: SiteConfig, study: Study, identity: Identity) -> tuple[Examples, Examples, HeldOut]:
    """Return the training records, those that a verdict is made on, and the side that these are on.

    They are the validation records, or where the site has none the test records. Raises as :func:`load` does.
    """
    sides = _divided(config, study, identity, *_SIDES)
    train, validation, tests = (_examples(study, side) for side in sides)
    side: HeldOut = "validation" if len(validation) else "test"
    held_out = validation if len(validation) else tests
    if not len(train) or not len(held_out):
        raise ConsiliumError(errors.DATA_EMPTY, "no records to fit to" if not len(train) else "no records to judge by")
    return train, held_out, side


def side_of(key: bytes, unit: str, text: str, *, test: float) -> str:
    """Return the side of a unit's records, or where it has no name, of a text.

    key   32 bytes of this site alone: without them nobody can tell a patient's side, or choose a name for one
    test  the fraction of the test records, in (0, 1); where it grows, no record leaves the tests
    """
    of = b"unit\x00" + unit.encode() if unit else b"text\x00" + text.encode()
    place = int.from_bytes(hmac.digest(key, of, "sha256")[:8], "big")
    return "test" if place < test * 2.0**64 else "train"


def each(columns: Mapping[Role, TextColumn], content: Role) -> Iterator[Row]:
    """Yield the rows of a result; what no column says is empty.

    content  the role of the record itself, text or path
    """
    size = len(columns["label"])
    roles: tuple[Role, ...] = ("unit", content, "label", "split")
    return zip(*(columns[role] if role in columns else repeat("", size) for role in roles), strict=True)


def lacking(row: Row, columns: Mapping[Role, TextColumn]) -> Role | None:
    """Return the first role of which a row has nothing, None where it can be read."""
    unit, content, label, side = row
    if content is None or not content.strip():
        return "text" if "text" in columns else "path"
    if label is None:
        return "label"
    if unit is None or ("unit" in columns and not unit.strip()):
        return "unit"
    return "split" if side is None else None


def _divided(config: SiteConfig, study: Study, identity: Identity, *sides: str) -> tuple[list[_Row], ...]:
    """Return the rows of each side, in an order that depends on the values alone."""
    rows = _read(config, study)
    if config.data.columns.split is None:
        key, test = identity.derive_key(SPLIT_PURPOSE), config.data.split.test
        rows = [(unit, text, label, side_of(key, unit, text, test=test)) for unit, text, label, _ in rows]
    rows.sort()
    return tuple([row for row in rows if row[3] == side] for side in sides)


def _read(config: SiteConfig, study: Study) -> list[_Row]:
    columns = config.data.columns
    if columns.unit is None and study.privacy.unit is Unit.PATIENT:
        raise ConsiliumError(errors.DATA_COLUMN, "data.columns.unit: the study hides patients, so name their column")
    if columns.text is None:
        raise ConsiliumError(errors.DATA_COLUMN, "data.columns.text: the study's task reads texts")
    read = read_columns(config.data)
    rows = []
    for row in each(read, "text"):
        if lacking(row, read) is None:
            unit, text, label, side = row
            rows.append((unit or "", text or "", label or "", side or ""))
    texts = read["text"]
    if len(rows) < len(texts):
        _log.warning("%d of %d records cannot be read and are left out", len(texts) - len(rows), len(texts))
    _check_labels({label for _, _, label, _ in rows}, study)
    if columns.split is not None:
        _check_sides(rows, columns.split)
    return rows


def _check_labels(found: set[str], study: Study) -> None:
    """Refuse an unknown label without showing it: where a column is taken for another, it is a record's text."""
    if not all(study.task.accepts(label) for label in found):
        raise ConsiliumError(errors.TASK_LABEL_UNKNOWN, "data.columns.label: a value is none of the study's labels")


def _check_sides(rows: Iterable[_Row], column: str) -> None:
    sides: dict[str, str] = {}
    for unit, _, _, side in rows:
        if side not in _SIDES:
            raise ConsiliumError(errors.DATA_VALUE, f"data.columns.split: {column!r} is none of {', '.join(_SIDES)}")
        if unit and sides.setdefault(unit, side) != side:
            raise ConsiliumError(errors.DATA_VALUE, f"data.columns.split: by {column!r} a unit is on two sides")


def _examples(study: Study, rows: list[_Row]) -> Examples:
    numbers: dict[str, int] = {}
    units = (
        [numbers.setdefault(unit, len(numbers)) for unit, _, _, _ in rows]
        if study.privacy.unit is Unit.PATIENT
        else range(len(rows))
    )
    return Examples(
        tuple(text for _, text, _, _ in rows), tuple(label for _, _, label, _ in rows), np.array(units, dtype=np.int64)
    )
