"""Tiny studies of every kind of record: files or a table in a folder, a tiny checkpoint, and the scenario over them."""

from __future__ import annotations

import csv
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from simulations.scenario import Scenario, from_fields
from tests.encoders import WORDS, write_encoder

SITES = ("Alpha", "Beta", "Gamma", "Delta")
RECORDS = 96
_RATE = 1000

Dice = np.random.Generator
Row = dict[str, str]


def write(kind: str, folder: Path) -> None:
    """Write a kind's records, ``records.csv`` and what that names, and a checkpoint below ``folder``."""
    dice = np.random.default_rng(7)
    rows = [{"site": SITES[place % 4], **_RECORDS[kind](dice, place, folder)} for place in range(RECORDS)]
    with (folder / "records.csv").open("w", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    write_encoder(folder / "encoder", _FAMILY.get(kind, "bert"), layers=2)


def scenario_of(kind: str, folder: Path, **changes: object) -> Scenario:
    """Return the scenario over what :func:`write` wrote, with some tables in place of its own."""
    content = _COLUMNS.get(kind, {"text": "text"})
    fields: dict[str, object] = {
        "name": f"tiny-{kind}",
        "title": f"A tiny study: {kind}",
        "data": {"query": "SELECT * FROM read_csv('records.csv', all_varchar = true)"},
        "columns": {**content, "label": "label", "site": "site"},
        "backbone": {"folder": str(folder / "encoder"), "licence": "Apache-2.0", "training_data": "none"},
        "task": _TASKS[kind],
        "adapter": {"rank": 2, "alpha": 2.0, "last_layers": 1},
        "training": {
            "rounds": 4,
            "steps_per_round": 1,
            "learning_rate": 1.0,
            "server_optimizer": "fedadam",
            "server_learning_rate": 0.2,
        },
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5},
    }
    if kind == "pretraining":
        fields["pretraining"] = {"rounds": 2, "objective": {"kind": "masked-language-modelling", "max_tokens": 16}}
    return from_fields({**fields, **changes})


def _note(dice: Dice) -> list[str]:
    return [str(word) for word in dice.choice(WORDS[3:], size=int(dice.integers(2, 8)))]


def _words(dice: Dice, place: int, folder: Path) -> Row:
    del folder, place
    words = [*_note(dice), "fever" if dice.random() < 0.5 else "pain"]
    dice.shuffle(words)
    return {"text": " ".join(words), "label": " ".join("SIGN" if word in WORDS[:2] else "O" for word in words)}


def _number(dice: Dice, place: int, folder: Path) -> Row:
    del folder, place
    words = _note(dice)
    return {"text": " ".join(words), "label": f"{10 * words.count('severe') / len(words):.2f}"}


def _half_labelled(dice: Dice, place: int, folder: Path) -> Row:
    del folder
    sign = "fever" if dice.random() < 0.5 else "pain"
    return {
        "text": " ".join([*_note(dice), sign]),
        "label": ("" if place % 3 == 0 else "hot" if sign == "fever" else "sore"),
    }


def _image(dice: Dice, place: int, folder: Path) -> Row:
    bright = place % 8 < 4
    shape = (int(dice.integers(12, 30)), int(dice.integers(12, 30)))
    pixels = dice.integers(120, 256, size=shape) if bright else dice.integers(0, 130, size=shape)
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{place}.png")
    return {"path": f"{place}.png", "label": "bright" if bright else "dark"}


def _recording(dice: Dice, place: int, folder: Path) -> Row:
    high = place % 8 < 4
    tone = np.sin(2 * np.pi * (300 if high else 80) * np.arange(240) / _RATE) * dice.uniform(0.3, 0.9)
    with wave.open(str(folder / f"{place}.wav"), "wb") as file:
        file.setparams((1, 2, _RATE, 0, "NONE", ""))
        file.writeframes((tone * 2**15).astype("<i2").tobytes())
    return {"path": f"{place}.wav", "label": "high" if high else "low"}


def _patient(dice: Dice, place: int, folder: Path) -> Row:
    del folder
    ill = place % 8 < 4
    age = f"{dice.integers(50, 90) if ill else dice.integers(20, 60)}"
    return {
        "age": "" if dice.random() < 0.2 else age,
        "sex": str(dice.choice(["f", "m"])),
        "label": "ill" if ill else "well",
    }


_RECORDS: Mapping[str, Callable[[Dice, int, Path], Row]] = {
    "image": _image,
    "audio": _recording,
    "tabular": _patient,
    "tokens": _words,
    "regression": _number,
    "pretraining": _half_labelled,
}
KINDS: Sequence[str] = tuple(_RECORDS)
_FAMILY = {"image": "vit", "audio": "wav2vec2"}
_COLUMNS: Mapping[str, Mapping[str, object]] = {
    "image": {"path": "path"},
    "audio": {"path": "path"},
    "tabular": {"fields": True},
}
_TASKS: Mapping[str, Mapping[str, object]] = {
    "image": {"kind": "image-classification", "labels": ["dark", "bright"], "size": 16},
    "audio": {"kind": "audio-classification", "labels": ["low", "high"], "rate": _RATE, "seconds": 0.24},
    "tabular": {
        "kind": "tabular-classification",
        "labels": ["well", "ill"],
        "max_tokens": 16,
        "numbers": 4,
        "fields": [
            {"kind": "number", "name": "age", "low": 0, "high": 100},
            {"kind": "category", "name": "sex", "levels": ["f", "m"]},
        ],
    },
    "tokens": {"kind": "token-classification", "labels": ["O", "SIGN"], "max_tokens": 16},
    "regression": {"kind": "regression", "low": 0.0, "high": 10.0, "max_tokens": 16},
    "pretraining": {"labels": ["sore", "hot"], "max_tokens": 16},
}
