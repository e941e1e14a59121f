"""What a hospital's query returned, in figures for the hospital: kept on site and never sent anywhere.

The fingerprint says whether two readings saw the same rows, in whatever order: evidence, and no more [RULES 8].
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from client.config import Data
from client.contents import file_content
from client.records import each, lacking, row_count
from client.sources import ROLES, Role, read_columns
from client.table import TextColumn
from common import errors
from common.contents import ordinal, written_down
from common.errors import ConsiliumError
from common.parts import Part

Side = Callable[[str, str], str]
"""From a unit and a record's place (see :class:`client.contents.Held`) to the side that a keyed hash puts it on."""
UNKNOWN_SIDE = "unknown"
_MOST_CLASSES = 200
_UNREADABLE = "file"
_PURPOSE = b"consilium/v1/data-fingerprint"


class Figures(Part):
    """Of records that can be read.

    units    how many different ones; None where no column names them
    classes  records of each, the commonest first
    further  classes beyond the 200 commonest: a sign that the label is another column
    """

    records: int
    units: int | None
    classes: dict[str, int]
    further: int = 0


class DataReport(Part):
    """What was read.

    source       its name in the site's file
    query        SHA-256 of the query, hex
    fingerprint  SHA-256 over the rows of the columns that play a part, hex; of files, over what
                 they hold too, and of rows not over the fields: which ones play a part, a study says
    rows         that the query returned
    dropped      those that contribute nothing, by the first thing that they lack
    missing      of each role the rows without a value, or with an empty one
    kept         the others
    sides        the same of each side; empty where the sides were not asked for
    """

    format: Literal["consilium/v1/data-report"] = "consilium/v1/data-report"
    made: str
    source: str
    query: str
    fingerprint: str
    rows: int
    dropped: dict[str, int]
    missing: dict[str, int]
    kept: Figures
    sides: dict[str, Figures]


def make_report(data: Data, side: Side | None, *, now: datetime | None = None) -> DataReport:
    """Read the data and say what is there.

    side  for data without a split column; None leaves the sides out

    Raises what :func:`client.sources.read_columns` and :func:`client.contents.file_content` raise.
    """
    columns = read_columns(data)
    with_units = data.columns.unit is not None
    dropped: Counter[str] = Counter()
    kept, sides, digests = _Count(with_units), dict[str, _Count](), bytearray()
    for row in each(columns):
        file = read_file(data, row[1]) if "path" in columns else _NO_FILE
        digests += hashlib.sha256(written_down((*row, b"" if file is None else file.holds))).digest()
        lacks = lacking(row, columns) or (_UNREADABLE if file is None else None)
        if lacks is not None:
            dropped[lacks] += 1
            continue
        assert file is not None, "it would lack"
        unit, text, label, place = (value or "" for value in row)
        name = label if "label" in columns else None
        kept.add(unit, name)
        if data.columns.split is None and side is not None and (unit or not data.columns.fields):
            place = side(unit, file.place or text)
        if place:
            known = place if place in ("train", "validation", "test") else UNKNOWN_SIDE
            sides.setdefault(known, _Count(with_units)).add(unit, name)
    return DataReport(
        made=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        source=data.name,
        query=hashlib.sha256(data.query.encode()).hexdigest(),
        fingerprint=_fingerprint(columns, digests),
        rows=row_count(columns),
        dropped=dict(sorted(dropped.items())),
        missing={role: _missing(column) for role, column in columns.items()},
        kept=kept.figures(),
        sides={name: count.figures() for name, count in sorted(sides.items())},
    )


def write_report(path: Path, report: DataReport) -> None:
    """Put a report, mode 0600, in place of the last; raises CSL-508."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(report.model_dump_json(indent=2) + "\n")
        fresh.replace(path)
    except OSError as error:
        raise ConsiliumError(errors.DATA_UNWRITABLE, f"{path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class File:
    """What identifies a file that can be read.

    holds  SHA-256 of its pixels or samples
    place  SHA-256 of its bytes, hex
    """

    holds: bytes
    place: str


_NO_FILE = File(b"", "")


def read_file(data: Data, path: str | None) -> File | None:
    """Return what identifies a file, None where it cannot be read; raises CSL-502, CSL-507."""
    found = None if path is None or not path.strip() else file_content(data.files_folder, path)
    return None if found is None else File(ordinal(found[0]), found[1])


class _Count:
    """Counts records, their units and their classes; of a unit eight bytes of a hash are kept."""

    def __init__(self, with_units: bool) -> None:
        self._records = 0
        self._units = array("Q") if with_units else None
        self._classes: Counter[str] = Counter()

    def add(self, unit: str, label: str | None) -> None:
        self._records += 1
        if label is not None:
            self._classes[label] += 1
        if self._units is not None:
            self._units.append(int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "big"))

    def figures(self) -> Figures:
        commonest = self._classes.most_common()
        return Figures(
            records=self._records,
            units=None if self._units is None else len(np.unique(np.frombuffer(self._units, dtype=np.uint64))),
            classes=dict(sorted(commonest, key=lambda item: (-item[1], item[0]))[:_MOST_CLASSES]),
            further=max(0, len(commonest) - _MOST_CLASSES),
        )


def _fingerprint(columns: Iterable[Role], digests: bytearray) -> str:
    """Return one SHA-256 over those of the rows, sorted, and over which columns there were."""
    rows = np.frombuffer(digests, dtype="S32")
    rows.sort()
    present = set(columns)
    whole = hashlib.sha256(_PURPOSE + b"\x00" + " ".join(role for role in ROLES if role in present).encode() + b"\x00")
    whole.update(rows.data)
    return whole.hexdigest()


def _missing(column: TextColumn) -> int:
    return sum(value is None or not value.strip() for value in column)
