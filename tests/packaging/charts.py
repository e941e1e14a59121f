"""Renders the part of Helm's template language that our chart uses, and refuses the rest.

Enough to see that every value a template asks for exists and that what comes out is YAML; where `helm` is installed a
test asks it as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

Values = Mapping[str, object]
_TAG = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)


def render(template: str, about: Values) -> str:
    """Return a template filled in.

    about  what lies under ``.Values``, ``.Release`` and ``.Chart``
    Raises KeyError for a value that is not there, ValueError for what is not understood.
    """
    out: list[str] = []
    shown = [True]
    at = 0
    for tag in _TAG.finditer(template):
        text = template[at : tag.start()]
        at = tag.end()
        _put(out, shown, text.rstrip() if tag[1] else text)
        word, _, rest = tag[2].partition(" ")
        if word == "if":
            shown.append(_holds(rest, about))
        elif word == "else":
            shown[-1] = not shown[-1]
        elif word == "end":
            shown.pop()
        elif all(shown):
            out.append(_value(tag[2], about))
        else:
            _value(tag[2], about)
    _put(out, shown, template[at:])
    if shown != [True]:
        raise ValueError("an if has no end")
    return "".join(out)


def chart(folder: Path, values: Values) -> dict[str, object]:
    """Return what each template that renders to something holds, by the template's name."""
    about = {
        "Values": values,
        "Release": {"Name": "study"},
        "Chart": {key[0].upper() + key[1:]: value for key, value in read(folder / "Chart.yaml").items()},
    }
    found = {path.name: yaml.safe_load(render(path.read_text(encoding="utf-8"), about)) for path in templates(folder)}
    return {name: content for name, content in found.items() if content is not None}


def templates(folder: Path) -> list[Path]:
    """Return a chart's templates."""
    return sorted((folder / "templates").glob("*.yaml"))


def read(path: Path) -> dict[str, object]:
    """Read a YAML mapping."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def _put(out: list[str], shown: list[bool], text: str) -> None:
    if all(shown):
        out.append(text)


def _holds(condition: str, about: Values) -> bool:
    if found := re.fullmatch(r"ne (\.\S+) \"(.*)\"", condition):
        return _look(found[1], about) != found[2]
    if condition.startswith("not "):
        return not _look(condition[4:], about)
    return bool(_look(condition, about))


def _value(expression: str, about: Values) -> str:
    first, *pipes = (part.strip() for part in expression.split("|"))
    if first.startswith("toYaml "):
        text = str(yaml.safe_dump(_look(first[7:], about), default_flow_style=False)).rstrip()
    else:
        found = _look(first, about)
        if isinstance(found, (dict, list)):
            raise ValueError(f"{first} is no scalar")
        text = str(found)
    for pipe in pipes:
        if pipe == "quote":
            text = json.dumps(text)
        elif found_indent := re.fullmatch(r"nindent (\d+)", pipe):
            text = "".join(f"\n{' ' * int(found_indent[1])}{line}" for line in text.splitlines())
        else:
            raise ValueError(f"not understood: {pipe}")
    return text


def _look(path: str, about: Values) -> object:
    if not re.fullmatch(r"(\.[A-Za-z]+)+", path):
        raise ValueError(f"not understood: {path}")
    found: object = about
    for name in path.split(".")[1:]:
        assert isinstance(found, Mapping)
        found = found[name]
    return found
