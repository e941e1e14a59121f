"""The privacy statement, which is simple Markdown, as parts that a page can show. Nothing of it can write markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from common.figures import clean


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the privacy statement, escaped already.

    kind   heading, subheading, items, table or paragraph
    lines  of a table its caption, of all others their text
    rows   of a table its rows of cells, the first with the headings, which may be empty
    """

    kind: str
    lines: tuple[Markup, ...]
    rows: tuple[tuple[Markup, ...], ...] = ()


def statement_blocks(text: str) -> Iterator[Block]:
    """Split the statement (plain text or simple markdown): headings `#`, items `-`, tables `|`, paragraphs."""
    kind, kept, title = "", list[str](), "statement"
    for line in [*clean(text).splitlines(), ""]:
        bare = line.strip()
        starts = _kind_of(bare)
        if kept and starts == "paragraph" and kind in {"items", "paragraph"}:
            kept[-1] += " " + bare
            continue
        if kept and (starts != kind or kind in {"heading", "subheading"}):
            title = kept[0] if kind in {"heading", "subheading"} else title
            yield _table(title, kept) if kind == "table" else Block(kind, tuple(_inline(part) for part in kept))
            kept = []
        kind = starts
        if bare:
            kept.append(re.sub(r"^(#+|[-*])\s+", "", bare))


def _kind_of(line: str) -> str:
    if not line:
        return "blank"
    if re.match(r"#+\s", line):
        return "heading" if line.startswith("# ") else "subheading"
    if re.match(r"[-*]\s", line):
        return "items"
    return "table" if line.startswith("|") else "paragraph"


def _table(title: str, lines: Sequence[str]) -> Block:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    kept = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return Block("table", (_inline(title),), tuple(tuple(_inline(cell) for cell in row) for row in kept) or ((),))


def _inline(line: str) -> Markup:
    """Escape, then mark **strong** and `code`, which escaping leaves as they are."""
    safe = str(escape(line))
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", safe))  # noqa: S704  escaped two lines above
