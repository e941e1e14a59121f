"""A hospital's file and its records, invented."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from client.config import SiteConfig
from common.identity import Identity
from common.keystore import write_identity
from tests.sitefile import opening

IDENTITY = Identity.from_private_bytes(bytes(31) + b"\x07")
PASSPHRASE = b"invented"
Row = tuple[object, object, object, object]
QUERY = "FROM read_csv('notes.csv', all_varchar = true, nullstr = 'NULL', quote = '\"')"


def site_file(
    folder: Path, columns: Mapping[str, str | bool], *, query: str = QUERY, source: str = 'folder = "."'
) -> SiteConfig:
    """Write `site.toml`, with an identity that `env:SITE_PASSPHRASE` opens."""
    if not (folder / "identity.pem").exists():
        write_identity(folder / "identity.pem", IDENTITY, PASSPHRASE)
    named = "".join(f"{role} = {json.dumps(name)}\n" for role, name in columns.items())
    (folder / "site.toml").write_text(f"""{opening("north", "5a" * 32, "env:SITE_PASSPHRASE")}[data]
{source}
query = '''
{query}
'''
[data.columns]
{named}
""")
    return SiteConfig.load(folder / "site.toml")


def write_notes(folder: Path, rows: Iterable[Row]) -> None:
    """Write (patient, note, label, side); None is NULL."""
    lines = [",".join("NULL" if value is None else f'"{value}"' for value in row) for row in rows]
    (folder / "notes.csv").write_text("\n".join(["patient,note,label,side", *lines]) + "\n", encoding="utf-8")
