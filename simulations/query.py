"""A scenario's records, by the very query, and behind the very fences, of a hospital."""

from __future__ import annotations

from pathlib import Path

from client.query import run_query
from common import errors
from common.errors import ConsiliumError
from simulations.records import Records
from simulations.scenario import Columns


def read_records(sql: str, columns: Columns, split: str | None, data_dir: Path) -> Records:
    """Run the query and take the columns named; every value must be there.

    split   name of the column with train, validation and test, if the data has one

    Raises CSL-501 for SQL that does not run, CSL-502 for what is not one SELECT below ``data_dir``, CSL-503 for a
    missing column, CSL-505 for a missing or empty value.
    """
    roles = {
        "columns.text": (columns.text,),
        "columns.label": (columns.label,),
        "columns.site": (columns.site,),
        "columns.unit": (columns.unit,),
        "columns.group": (columns.group,),
        "split.column": (split,),
        "columns.subgroups": columns.subgroups,
    }
    rows = run_query(sql, data_dir, {name: role for role, names in roles.items() for name in names if name is not None})

    def column(role: str, name: str) -> tuple[str, ...]:
        values = rows[name]
        filled = tuple(value for value in values if value is not None)
        if len(filled) != len(values):
            raise ConsiliumError(errors.DATA_VALUE, f"{role}: a value of {name!r} is NULL")
        return filled

    def optional(role: str, name: str | None) -> tuple[str, ...] | None:
        return None if name is None else column(role, name)

    texts = column("columns.text", columns.text)
    if any(not text.strip() for text in texts):
        raise ConsiliumError(errors.DATA_VALUE, f"columns.text: a value of {columns.text!r} is empty")
    return Records(
        texts,
        column("columns.label", columns.label),
        optional("columns.site", columns.site),
        optional("columns.unit", columns.unit),
        optional("columns.group", columns.group),
        optional("split.column", split),
        {name: column("columns.subgroups", name) for name in columns.subgroups},
    )
