"""From what a site's file says of its data to the columns that play a part, wherever they are kept.

A thin switch: files below a folder are read by :mod:`client.query`, databases by :mod:`client.database`.
"""

from __future__ import annotations

from typing import Literal

from client import query
from client.config import Data
from client.table import TextColumn

Role = Literal["text", "path", "label", "unit", "split"]
ROLES: tuple[Role, ...] = ("text", "path", "label", "unit", "split")


def read_columns(data: Data) -> dict[Role, TextColumn]:
    """Return the column of each role that the file names, all of one length, in the result's order.

    Raises CSL-501 to CSL-507, never quoting a record.
    """
    named: dict[Role, str] = {role: name for role in ROLES if (name := getattr(data.columns, role)) is not None}
    wanted = {name: f"data.columns.{role}" for role, name in named.items()}
    if data.url is not None:
        from client import database

        columns = database.run_query(data.query, data.url, wanted, password=data.password, ca=data.ca)
    else:
        assert data.folder is not None, "validated"
        columns = query.run_query(data.query, data.folder, wanted)
    return {role: columns[name] for role, name in named.items()}
