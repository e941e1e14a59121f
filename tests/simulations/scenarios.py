"""A small valid scenario over a small CSV file, for tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path


def fields(**changes: object) -> dict[str, object]:
    """Return a scenario's fields as parsed from TOML; ``changes`` merges tables by name, None takes a key away."""
    scenario: dict[str, object] = {
        "name": "small",
        "title": "A scenario for tests",
        "data": {"query": "SELECT * FROM read_csv('notes.csv', all_varchar = true)"},
        "columns": {"text": "text", "label": "label", "site": "site"},
        "task": {"labels": ["calm", "grave"], "max_tokens": 16},
        "training": {"rounds": 2, "steps_per_round": 2, "learning_rate": 0.5},
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5},
    }
    for name, change in changes.items():
        old = scenario.get(name)
        merged = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
        scenario[name] = {k: v for k, v in merged.items() if v is not None} if isinstance(merged, dict) else merged
    return {name: value for name, value in scenario.items() if value is not None}


def write_csv(path: Path, rows: int, sites: Sequence[str] = ("North 1", "South 2", "West")) -> list[dict[str, str]]:
    """Write a file of invented notes, three a patient, and return its rows."""
    written = [
        {
            "text": f"note {i:04d}",
            "label": ("calm", "grave")[(i // 2) % 2],
            "site": sites[(i // 3) % len(sites)],
            "patient": f"p{i // 3}",
            "sex": ("female", "male")[(i // 3) % 2],
        }
        for i in range(rows)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(written[0]))
        writer.writeheader()
        writer.writerows(written)
    return written


def toml(table: dict[str, object]) -> str:
    """Write parsed fields as TOML: scalars and arrays first, then tables; their values are written alike in JSON."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    tables = [
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in part.items())])
        for name, part in table.items()
        if isinstance(part, dict)
    ]
    return "\n".join([*plain, *tables])
