"""From what a site's file says of its data to the columns that play a part, wherever they are kept.

A thin switch: files below a folder are read by :mod:`client.query`, databases by :mod:`client.database`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from client import query
from client.config import Data
from client.table import TextColumn

Role = Literal["text", "path", "label", "unit", "split"]
ROLES: tuple[Role, ...] = ("text", "path", "label", "unit", "split")
FIELDS = "data.columns.fields"


def read_columns(data: Data) -> dict[Role, TextColumn]:
    """Return the column of each role that the file names, all of one length, in the result's order.

    Raises CSL-501 to CSL-507, never quoting a record.
    """
    return read_with_fields(data, ())[0]


def read_with_fields(data: Data, fields: Sequence[str]) -> tuple[dict[Role, TextColumn], tuple[TextColumn, ...]]:
    """Return the same, and the columns of those names, which may hold any numbers; raises as :func:`read_columns`."""
    named: dict[Role, str] = {role: name for role in ROLES if (name := getattr(data.columns, role)) is not None}
    wanted = dict.fromkeys(fields, FIELDS) | {name: f"data.columns.{role}" for role, name in named.items()}
    if data.url is not None:
        from client import database

        columns = database.run_query(data.query, data.url, wanted, fields, password=data.password, ca=data.ca)
    else:
        assert data.folder is not None, "validated"
        columns = query.run_query(data.query, data.folder, wanted, fields)
    return {role: columns[name] for role, name in named.items()}, tuple(columns[name] for name in fields)
