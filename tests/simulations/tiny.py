"""A scenario over invented notes and a tiny encoder, for tests that run the whole product in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulations.scenario import Scenario, from_fields
from tests.encoders import WORDS

SITES = ("Alpha", "Beta", "Gamma", "Delta")


def write_notes(folder: Path) -> None:
    """Write notes whose label follows one word, so that something can be learned."""
    generator = np.random.default_rng(3)
    lines = ["text,label,site,patient,sex"]
    for row in range(320):
        label = row % 2
        words = [*generator.choice(WORDS[3:], size=4), "fever" if label else "pain"]
        generator.shuffle(words)
        sex = "f" if generator.random() < 0.5 else "m"
        lines.append(f"{' '.join(words)},{'hot' if label else 'sore'},{SITES[row % 4]},p{row // 8},{sex}")
    (folder / "notes.csv").write_text("\n".join(lines) + "\n")


def scenario(encoder: Path, **changes: object) -> Scenario:
    """Return the scenario over an encoder's folder, with some tables in place of its own."""
    fields: dict[str, object] = {
        "name": "tiny",
        "title": "A tiny study",
        "data": {"query": "SELECT * FROM read_csv('notes.csv')"},
        "columns": {"text": "text", "label": "label", "site": "site", "unit": "patient", "subgroups": ["sex"]},
        "backbone": {"folder": str(encoder), "licence": "Apache-2.0", "training_data": "none"},
        "task": {"labels": ["sore", "hot"], "max_tokens": 16},
        "adapter": {"rank": 2, "alpha": 2.0, "last_layers": 1},
        "training": {
            "rounds": 4,
            "steps_per_round": 1,
            "learning_rate": 1.0,
            "server_optimizer": "fedadam",
            "server_learning_rate": 0.2,
        },
        "privacy": {
            "unit": "patient",
            "max_records_per_unit": 4,
            "epsilon": 8.0,
            "delta": 1e-5,
            "sampling_rate": 0.5,
        },
    }
    return from_fields({**fields, **changes})
