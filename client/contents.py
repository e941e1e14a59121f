"""From what a query returned of one record to what a study's task reads: its text, its file's content, or its fields.

What becomes of a record depends on it and on the study's constants alone (RULES 12), and one that cannot be read
becomes None (RULES 13). Files are decoded one by one, and no more of one is kept than the task can use.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client import audio, images
from client.opening import read_below
from common.contents import Content, Image, Recording, Row, written_down
from common.task_specs import (
    AudioClassification,
    CategoryField,
    ImageClassification,
    NumericField,
    RowField,
    TabularClassification,
    TaskSpec,
)
from common.transfer import Pretraining

Returned = Sequence[str | None]
"""What the query returned of a record's content: one value, or one a field."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a record holds.

    place  what its side and its order are decided on where it has no unit: the text itself, the SHA-256 of the file's
           bytes or of the fields' names and values as the query returned them, hex
    """

    content: Content = field(repr=False)
    place: str = field(repr=False)


Reader = Callable[[Returned], Held | None]


def pretrains_unlabelled(task: TaskSpec, pretraining: Pretraining | None) -> bool:
    """Whether a record without a label is of use; where none is a label like another, nobody could tell them apart."""
    return pretraining is not None and task.reads_labels and not task.accepts("")


def label_for(task: TaskSpec, pretraining: Pretraining | None, label: str | None) -> str | None:
    """Return a record's label: empty where the task looks at none, or pretrains without; else as it is."""
    blank = label is None or not label.strip()
    return "" if not task.reads_labels or (blank and pretrains_unlabelled(task, pretraining)) else label


def reader_for(task: TaskSpec, folder: Path | None) -> Reader:
    """Return what reads a record for a task.

    folder  what paths are below; needed for images and recordings

    A reader raises CSL-502 for a path that leads out of the folder, CSL-507 where a decoder is missing.
    """
    if isinstance(task, TabularClassification):
        return _fields_reader(task.fields)
    if isinstance(task, ImageClassification | AudioClassification):
        assert folder is not None, "validated with the columns"
        return _file_reader(task, folder)
    return _text


def file_content(folder: Path, path: str) -> tuple[Image | Recording, str] | None:
    """Return what a file holds, whichever of what can be read it is, and the SHA-256 of its bytes, hex; else None.

    Raises CSL-502 for a path that leads out of the folder, CSL-507 where a decoder is missing.
    """
    raw = read_below(folder, path, max(images.MAX_BYTES, audio.MAX_BYTES))
    if raw is None:
        return None
    content = audio.recording_of(raw) if raw[:4] == b"RIFF" else images.image_of(raw)
    return None if content is None else (content, hashlib.sha256(raw).hexdigest())


def row_of(fields: Sequence[RowField], values: Returned) -> Row:
    """Return a row as the study's task reads it: None where a value is missing, no number, or none of the levels.

    fields, values  of one length
    returns         a number as it was written, a level as the study spells it
    """
    return tuple(_field(one, value) for one, value in zip(fields, values, strict=True))


def _text(values: Returned) -> Held | None:
    (text,) = values
    return None if text is None or not text.strip() else Held(text, text)


def _file_reader(task: ImageClassification | AudioClassification, folder: Path) -> Reader:
    def read(values: Returned) -> Held | None:
        (path,) = values
        if path is None or not path.strip():
            return None
        image = isinstance(task, ImageClassification)
        raw = read_below(folder, path, images.MAX_BYTES if image else audio.MAX_BYTES)
        content = None if raw is None else _decoded(task, raw)
        return None if raw is None or content is None else Held(content, hashlib.sha256(raw).hexdigest())

    return read


def _decoded(task: ImageClassification | AudioClassification, raw: bytes) -> Content | None:
    if isinstance(task, AudioClassification):
        return audio.recording_of(raw, task.seconds)
    image = images.image_of(raw)
    return None if image is None else images.shrunk(image, task.size)


def _fields_reader(fields: Sequence[RowField]) -> Reader:
    names = [one.name for one in fields]

    def read(values: Returned) -> Held | None:
        row = row_of(fields, values)
        if all(value is None for value in row):
            return None
        # By name, so that a study that lists the same fields in another order moves no record to the other side.
        pairs = sorted(zip(names, values, strict=True), key=lambda pair: pair[0])
        written = written_down(value for pair in pairs for value in pair)
        return Held(row, hashlib.sha256(written).hexdigest())

    return read


def _field(one: NumericField | CategoryField, value: str | None) -> str | None:
    text = "" if value is None else value.strip()
    if isinstance(one, NumericField):
        return text if _number(text) is not None else None
    if text in one.levels:
        return text
    # What a table calls 1.0 may be the level that the study calls 1.
    number = _number(text)
    return None if number is None else next((level for level in one.levels if _number(level) == number), None)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
