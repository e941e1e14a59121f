"""Hospitals whose records are texts, images, recordings or rows, as files, and studies of them on tiny checkpoints."""

from __future__ import annotations

import csv
import json
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

from client.config import SiteConfig
from client.preparing import adapted
from common.adapters import ranks, shapes_of
from common.contents import Content, Recording
from common.identity import SiteId
from common.study import BackboneManifest, Study
from common.task_specs import TabularClassification
from server.config import Backbone
from tests.encoders import write_encoder
from tests.sitefile import opening
from tests.studies import Signed, fields, signed_as
from tests.ways.records import records_of, spec_of

Cell = str | None


@dataclass(frozen=True)
class Checkpoint:
    """A tiny backbone in its folder."""

    family: str
    folder: Path
    manifest: BackboneManifest

    @property
    def source(self) -> Backbone:
        """The ``[backbone]`` of an operator who has it."""
        return Backbone.model_validate_json(json.dumps({"folder": str(self.folder)}))


def checkpoint(folder: Path, family: str) -> Checkpoint:
    """Write a tiny backbone of two layers."""
    return Checkpoint(family, folder, write_encoder(folder, family, layers=2))


def deployed(task: str, backbone: Checkpoint, sites: int = 4, **changes: object) -> Signed:
    """Return a study as hospitals sign it: of patients, on a tiny backbone, with the blocks of its ranks."""
    wanted: dict[str, object] = {
        "kind": "deployment",
        "expires": "2099-01-01T00:00:00Z",
        "backbone": backbone.manifest.model_dump(mode="json"),
        "training": {"rounds": 2, "steps_per_round": 1, "learning_rate": 0.1},
        "privacy": {"unit": "patient", "max_records_per_unit": 2, "sampling_rate": 0.5, "noise_multiplier": 2.0},
    }
    raw, operator, keys = fields(sites, **{**wanted, **changes})
    raw["task"] = spec_of(task, backbone.family).model_dump(mode="json")
    study = Study.from_fields(raw)
    found = ranks.blocks(study.adapter, shapes_of(adapted(study, backbone.folder)), list(keys))
    aggregation = study.aggregation.model_copy(update={"blocks": found})
    return signed_as({**raw, "aggregation": aggregation.model_dump(mode="json")}, operator, keys)


def write_site(
    folder: Path,
    study: Study,
    backbone: Path,
    site: SiteId,
    records: int,
    *,
    unlabelled: int = 0,
    broken: Sequence[tuple[Cell, ...]] = (),
) -> SiteConfig:
    """Write a hospital's folder with records of a study's task, two a patient, and return its file.

    unlabelled  texts beside them that have no label
    broken      rows as they stand in the table: patient, label, and the content's columns
    """
    task = study.task
    (folder / "data").mkdir(parents=True)
    contents, labels = records_of(task.kind, records + unlabelled, seed=int.from_bytes(site.encode()) % 2**32)
    named: list[Cell] = [label if number < records else None for number, label in enumerate(labels)]
    if isinstance(task, TabularClassification):
        columns, role = [one.name for one in task.fields], "fields = true"
    elif task.content == "text":
        columns, role = ["note"], 'text = "note"'
    else:
        columns, role = ["file"], 'path = "file"'
    rows = [
        (f"p{number // 2}", label, *_cells(folder / "data", number, content))
        for number, (content, label) in enumerate(zip(contents, named, strict=True))
    ]
    _write_table(folder / "data" / "records.csv", ["patient", "answer", *columns], [*rows, *broken])
    label_column = ', label = "answer"' if task.reads_labels else ""
    (folder / "site.toml").write_text(f"""{opening(site, study.operator)}[data]
folder = "data"
query = "FROM read_csv('records.csv', all_varchar = true, nullstr = 'NULL')"
columns = {{ {role}{label_column}, unit = "patient" }}
[backbone]
folder = {json.dumps(str(backbone))}
""")
    return SiteConfig.load(folder / "site.toml")


def _write_table(path: Path, names: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([["NULL" if value is None else value for value in row] for row in rows])


def _cells(folder: Path, number: int, content: Content) -> tuple[Cell, ...]:
    """Write a record's file where it has one, and return what stands for it in the table."""
    if isinstance(content, str):
        return (content,)
    if isinstance(content, tuple):
        return content
    if isinstance(content, Recording):
        name = f"{number:03}.wav"
        with wave.open(str(folder / name), "wb") as file:
            file.setparams((1, 2, content.rate, 0, "NONE", ""))
            file.writeframes(np.rint(content.samples * 32767).astype("<i2").tobytes())
        return (name,)
    name = f"{number:03}.png"
    Pictures.fromarray(content[..., 0] if content.shape[2] == 1 else content).save(folder / name)
    return (name,)
