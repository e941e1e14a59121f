"""A scenario's records, by the very query, and behind the very fences, of a hospital."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from client.contents import label_for, reader_for
from client.query import run_query
from client.table import TextColumn
from common import errors
from common.contents import Content
from common.errors import ConsiliumError
from common.task_specs import TabularClassification, TaskSpec
from common.transfer import Pretraining
from simulations.records import Records
from simulations.scenario import Columns

_log = logging.getLogger("consilium.simulations.query")


def read_records(
    sql: str,
    columns: Columns,
    split: str | None,
    data_dir: Path,
    task: TaskSpec,
    pretraining: Pretraining | None = None,
) -> Records:
    """Run the query and take the columns named; every value must be there, but for fields of a row.

    split        name of the column with train, validation and test, if the data has one
    task         what reads the records; files are below ``data_dir``
    pretraining  where it can use a record without a label, a label may be missing

    A file that cannot be read and a row without any field are left out, as at a hospital (RULES 13), and counted in a
    warning.

    Raises CSL-501 for SQL that does not run, CSL-502 for what is not one SELECT or not below ``data_dir``, CSL-503 for
    a missing column, CSL-505 for a missing or empty value, CSL-507 without a decoder.
    """
    fields = [one.name for one in task.fields] if isinstance(task, TabularClassification) else []
    content = columns.text if columns.text is not None else columns.path
    roles = {
        f"columns.{columns.content}": (content,),
        "columns.label": (columns.label,),
        "columns.site": (columns.site,),
        "columns.unit": (columns.unit,),
        "columns.group": (columns.group,),
        "split.column": (split,),
        "columns.subgroups": columns.subgroups,
    }
    named = {name: role for role, names in roles.items() for name in names if name is not None}
    table = run_query(sql, data_dir, dict.fromkeys(fields, "columns.fields") | named, fields)
    contents = _contents([table[name] for name in (fields or [str(content)])], task, data_dir)
    if columns.text is not None and None in contents:
        raise ConsiliumError(errors.DATA_VALUE, f"columns.text: a value of {columns.text!r} is NULL or empty")
    kept = [row for row, found in enumerate(contents) if found is not None]
    if len(kept) < len(contents):
        _log.warning("%d of %d records cannot be read and are left out", len(contents) - len(kept), len(contents))

    def column(role: str, name: str, values: Iterable[str | None] | None = None) -> tuple[str, ...]:
        filled = [value for value in (table[name] if values is None else values) if value is not None]
        if len(filled) != len(contents):
            raise ConsiliumError(errors.DATA_VALUE, f"{role}: a value of {name!r} is NULL")
        return tuple(filled[row] for row in kept)

    def optional(role: str, name: str | None) -> tuple[str, ...] | None:
        return None if name is None else column(role, name)

    labels: Iterable[str | None] = [None] * len(contents) if columns.label is None else table[columns.label]
    return Records(
        tuple(found for found in contents if found is not None),
        column("columns.label", columns.label or "", (label_for(task, pretraining, label) for label in labels)),
        optional("columns.site", columns.site),
        optional("columns.unit", columns.unit),
        optional("columns.group", columns.group),
        optional("split.column", split),
        {name: column("columns.subgroups", name) for name in columns.subgroups},
    )


def _contents(columns: list[TextColumn], task: TaskSpec, data_dir: Path) -> list[Content | None]:
    """Return what each record holds, one file after the other; None for one that cannot be read."""
    read = reader_for(task, data_dir)
    return [None if (held := read(values)) is None else held.content for values in zip(*columns, strict=True)]
