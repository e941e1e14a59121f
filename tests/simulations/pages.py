"""Reading a page as a test needs it: its tags, its tables with the values behind their figures, its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "hr", "input"}


@dataclass
class Cell:
    """A table cell: its text and the unrounded values of its `data` elements."""

    text: str = ""
    values: list[float] = field(default_factory=list)


@dataclass
class Table:
    """A table: its caption, its header row and its body."""

    identity: str
    caption: str = ""
    rows: list[list[Cell]] = field(default_factory=list)

    def column(self, heading: str) -> list[Cell]:
        """Return the cells under a heading of the first row."""
        index = [cell.text for cell in self.rows[0]].index(heading)
        return [row[index] for row in self.rows[1:]]

    def row(self, heading: str) -> list[Cell]:
        """Return the row that begins with a heading."""
        return next(row for row in self.rows if row[0].text == heading)


class Page(HTMLParser):
    """A parsed page.

    tags       every tag with its attributes
    figures    what each `data` element shows and the unrounded value behind it
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[Table] = []
        self.figures: list[tuple[str, float]] = []
        self.text = ""
        self.misnested: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    @property
    def left_open(self) -> list[str]:
        return list(self._open)

    def table(self, identity: str) -> Table:
        return next(table for table in self.tables if table.identity == identity)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append(Table(attributes.get("id", attributes.get("class", ""))))
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in {"td", "th"}:
            self.tables[-1].rows[-1].append(Cell())
        if tag == "data":
            value = float(attributes["value"])
            self.figures.append(("", value))
            if {"td", "th"} & set(self._open):
                self.tables[-1].rows[-1][-1].values.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._open):
            return
        self.text += data
        if "data" in self._open:
            shown, value = self.figures[-1]
            self.figures[-1] = (shown + data, value)
        if "caption" in self._open:
            self.tables[-1].caption += data
        if {"td", "th"} & set(self._open) and not {"svg"} & set(self._open):
            self.tables[-1].rows[-1][-1].text += data.strip("\n")
