"""From a hospital's query to the records that it trains on and those that it tests on.

What happens to a record depends on its unit's own records and on public constants only, and never on another unit's
(RULES 12). A record that cannot be read is left out (RULES 13): one without a content, a label, or whatever else names
its place. Which unit is on which side is decided once, by a keyed hash, whatever else the query returns [RULES 9].
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Literal, NamedTuple

import numpy as np

from client.config import DataColumns, SiteConfig
from client.contents import Returned, label_for, pretrains_unlabelled, reader_for
from client.data import Examples
from client.sources import FIELDS, Role, read_with_fields
from client.table import TextColumn
from common import errors
from common.contents import Content
from common.errors import ConsiliumError
from common.identity import Identity
from common.study import Study, Unit
from common.task_specs import TabularClassification

SPLIT_PURPOSE = "consilium/v1/split"
"""What the key of the hash is derived for: the identity's, so it is the same for as long as the site has its key."""
_SIDES = ("train", "validation", "test")
HeldOut = Literal["validation", "test"]
"""A side to which nothing is fitted."""
_log = logging.getLogger("consilium.records")

Row = tuple[str | None, str | None, str | None, str | None]
"""Unit, content, label and side, as they were read."""


class _Record(NamedTuple):
    """One that can be read. In the order of the first four they are sorted; ``place`` as in ``client.contents``."""

    unit: str
    place: str
    label: str
    side: str
    content: Content


def load(config: SiteConfig, study: Study, identity: Identity) -> tuple[Examples, Examples]:
    """Return the training and the test records, in an order that depends on the values alone.

    Units are numbered from 0 on each side: patients where the study hides patients, else records. The side is the split
    column's, whose validation records are on neither; without such a column the unit column's value decides, or where
    there is none what the record holds. With the same fraction of tests, that side is for ever.

    A record without a label, in a study with pretraining whose task needs one, is for pretraining alone: its label is
    empty, and it is left out where its side is the tests'. Files are read one by one. Kept in memory are texts and rows
    whole, of an image what :func:`client.images.shrunk` leaves, of a recording its first seconds, as many as the study
    uses.

    Raises CSL-501 or CSL-502 for the query or a path that leads out of its folder, CSL-503 for a column that is not
    there, not named, or does not fit what the study reads, CSL-504 where a side is empty, CSL-505 for a column of
    another type, an unknown side or a unit on two, CSL-507 without a decoder, CSL-321 for an unknown label.
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


def side_of(key: bytes, unit: str, place: str, *, test: float) -> str:
    """Return the side of a unit's records, or where it has no name, of one record.

    key    32 bytes of this site alone: without them nobody can tell a patient's side, or choose a name for one
    place  of the record, see :class:`client.contents.Held`
    test   the fraction of the test records, in (0, 1); where it grows, no record leaves the tests
    """
    of = b"unit\x00" + unit.encode() if unit else b"text\x00" + place.encode()
    number = int.from_bytes(hmac.digest(key, of, "sha256")[:8], "big")
    return "test" if number < test * 2.0**64 else "train"


def each(columns: Mapping[Role, TextColumn]) -> Iterator[Row]:
    """Yield the rows of a result, text or path as the content; what no column says is empty."""
    size = row_count(columns)
    content: Role = "text" if "text" in columns else "path"
    roles: tuple[Role, ...] = ("unit", content, "label", "split")
    return zip(*(columns[role] if role in columns else repeat("", size) for role in roles), strict=True)


def row_count(columns: Mapping[Role, TextColumn]) -> int:
    """Return how many rows a result has."""
    return max(map(len, columns.values()), default=0)


def lacking(row: Row, columns: Mapping[Role, TextColumn]) -> Role | None:
    """Return the first role of which a row has nothing, None where it can be read."""
    unit, content, label, side = row
    for role in ("text", "path"):
        if role in columns and (content is None or not content.strip()):
            return role
    if label is None:
        return "label"
    if unit is None or ("unit" in columns and not unit.strip()):
        return "unit"
    return "split" if side is None else None


def _divided(config: SiteConfig, study: Study, identity: Identity, *sides: str) -> tuple[list[_Record], ...]:
    """Return the records of each side, in an order that depends on the values alone; unlabelled ones only train."""
    records = _read(config, study)
    if config.data.columns.split is None:
        key, test = identity.derive_key(SPLIT_PURPOSE), config.data.split.test
        records = [record._replace(side=side_of(key, record.unit, record.place, test=test)) for record in records]
    records.sort(key=lambda record: record[:4])
    judges = [record for record in records if record.side == "train" or study.task.accepts(record.label)]
    return tuple([record for record in judges if record.side == side] for side in sides)


def _read(config: SiteConfig, study: Study) -> list[_Record]:
    columns = config.data.columns
    _check_columns(columns, study)
    task = study.task
    names = [one.name for one in task.fields] if isinstance(task, TabularClassification) else []
    roles, fields = read_with_fields(config.data, names)
    read = reader_for(task, config.data.files_folder if columns.path is not None else None)
    records = []
    for row, values in zip(each(roles), _contents(roles, fields), strict=True):
        unit, _, label, side = row
        known = label_for(task, study.pretraining, label)
        if known is None or lacking((unit, "-", known, side), roles) is not None:
            continue
        held = read(values)
        if held is not None:
            records.append(_Record(unit or "", held.place, known, side or "", held.content))
    seen = row_count(roles)
    if len(records) < seen:
        _log.warning("%d of %d records cannot be read and are left out", seen - len(records), seen)
    _check_labels({record.label for record in records}, study)
    if columns.split is not None:
        _check_sides(records, columns.split)
    return records


def _check_columns(columns: DataColumns, study: Study) -> None:
    """Refuse columns that do not fit the study."""
    if columns.unit is None and study.privacy.unit is Unit.PATIENT:
        raise ConsiliumError(errors.DATA_COLUMN, "data.columns.unit: the study hides patients, so name their column")
    content = study.task.content
    if content == "text" and columns.text is None:
        raise ConsiliumError(errors.DATA_COLUMN, "data.columns.text: the study's task reads texts")
    if content in ("image", "audio") and columns.path is None:
        files = "images" if content == "image" else "recordings"
        raise ConsiliumError(errors.DATA_COLUMN, f"data.columns.path: the study's task reads {files}")
    if content == "fields" and not columns.fields:
        raise ConsiliumError(errors.DATA_COLUMN, f"{FIELDS}: the study's task reads fields")
    if columns.label is None and study.task.reads_labels and not pretrains_unlabelled(study.task, study.pretraining):
        raise ConsiliumError(errors.DATA_COLUMN, "data.columns.label: the study's task looks at labels")


def _contents(roles: Mapping[Role, TextColumn], fields: tuple[TextColumn, ...]) -> Iterator[Returned]:
    return zip(*(fields or (roles["text" if "text" in roles else "path"],)), strict=True)


def _check_labels(found: set[str], study: Study) -> None:
    """Refuse an unknown label without showing it: where a column is taken for another, it is a record's text."""
    known = {""} if pretrains_unlabelled(study.task, study.pretraining) else set()
    if not all(study.task.accepts(label) for label in found - known):
        raise ConsiliumError(errors.TASK_LABEL_UNKNOWN, "data.columns.label: a value is none of the study's labels")


def _check_sides(records: Iterable[_Record], column: str) -> None:
    sides: dict[str, str] = {}
    for unit, _, _, side, _ in records:
        if side not in _SIDES:
            raise ConsiliumError(errors.DATA_VALUE, f"data.columns.split: {column!r} is none of {', '.join(_SIDES)}")
        if unit and sides.setdefault(unit, side) != side:
            raise ConsiliumError(errors.DATA_VALUE, f"data.columns.split: by {column!r} a unit is on two sides")


def _examples(study: Study, records: list[_Record]) -> Examples:
    numbers: dict[str, int] = {}
    units = (
        [numbers.setdefault(record.unit, len(numbers)) for record in records]
        if study.privacy.unit is Unit.PATIENT
        else range(len(records))
    )
    return Examples(
        tuple(record.content for record in records),
        tuple(record.label for record in records),
        np.array(units, dtype=np.int64),
    )
