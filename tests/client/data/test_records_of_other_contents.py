"""Images, recordings and rows of fields reach a study as texts do: divided for ever, and the broken ones left out."""

from __future__ import annotations

import logging
import sqlite3
import wave
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client import images as images_module
from client.cli import app
from client.contents import row_of
from client.data import Examples
from client.data_quality import examine
from client.data_report import make_report
from client.records import load
from common.contents import Content, Image, Recording, ordinal
from common.errors import ConsiliumError
from common.study import Study
from common.task_specs import (
    AnyTask,
    AudioClassification,
    CategoryField,
    CausalLanguageModelling,
    ImageClassification,
    MultiLabelClassification,
    NumericField,
    TabularClassification,
)
from common.transfer import Pretraining
from tests.client.data.sites import IDENTITY, Row, site_file, write_notes
from tests.studies import signed_study

pillow = pytest.importorskip("PIL.Image")

BASE = signed_study().study
LABELS = ("no", "yes")
FIELDS = (
    NumericField(name="age", low=0, high=120),
    CategoryField(name="sex", levels=("0", "1"), texts=("female", "male")),
    CategoryField(name="smoker", levels=("never", "ever")),
)
PATHS: dict[str, str | bool] = {"path": "note", "label": "label"}
TEXTS: dict[str, str | bool] = {"text": "note", "label": "label"}
ROWS: dict[str, str | bool] = {"fields": True, "label": "label"}


def study_of(task: AnyTask, **changes: object) -> Study:
    return BASE.model_copy(update={"task": task, **changes})


IMAGES = study_of(ImageClassification(labels=LABELS, size=8))
SOUNDS = study_of(AudioClassification(labels=LABELS, rate=8_000, seconds=0.01))
TABLE = study_of(TabularClassification(labels=LABELS, fields=FIELDS))
PRETRAINED = BASE.model_copy(update={"pretraining": Pretraining(rounds=1)})


def write_image(path: Path, shade: int, side: int = 8) -> None:
    pillow.fromarray(np.full((side, side), shade, dtype=np.uint8)).save(path)


def write_sound(path: Path, level: int, frames: int = 100) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(np.full(frames, level, dtype="<i2").tobytes())


def held(examples: Examples) -> set[bytes]:
    return {ordinal(content) for content in examples.contents}


def same(one: Examples, other: Examples) -> bool:
    return (
        list(map(ordinal, one.contents)) == list(map(ordinal, other.contents))
        and one.labels == other.labels
        and one.units.tolist() == other.units.tolist()
    )


def refused(folder: Path, study: Study, columns: Mapping[str, str | bool]) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as raised:
        load(site_file(folder, columns), study, IDENTITY)
    return raised.value


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for shade in range(60):
        write_image(tmp_path / f"{shade:02}.png", shade * 4)
    write_notes(tmp_path, [(f"p{shade // 2}", f"{shade:02}.png", LABELS[shade % 2], "") for shade in range(60)])
    return tmp_path


def test_images_come_as_pixels_and_recordings_as_samples(images: Path) -> None:
    train, test = load(site_file(images, PATHS), IMAGES, IDENTITY)
    shades = set()
    for content in (*train.contents, *test.contents):
        assert isinstance(content, np.ndarray)
        assert (content.shape, str(content.dtype)) == ((8, 8, 1), "uint8")
        shades.add(int(content[0, 0, 0]))
    assert shades == {4 * shade for shade in range(60)}
    for number in range(40):
        write_sound(images / f"{number}.wav", 100 * number)
    write_notes(images, [("p", f"{number}.wav", "no", "") for number in range(40)])
    for content in load(site_file(images, PATHS), SOUNDS, IDENTITY)[0].contents:
        assert isinstance(content, Recording)
        assert (content.rate, len(content.samples)) == (8_000, 80), "the study uses a hundredth of a second"


def test_a_large_image_is_kept_no_larger_than_the_study_needs(tmp_path: Path) -> None:
    for shade in range(20):
        write_image(tmp_path / f"{shade}.png", shade, side=100)
    write_notes(tmp_path, [("p", f"{shade}.png", "no", "") for shade in range(20)])
    train, _ = load(site_file(tmp_path, PATHS), IMAGES, IDENTITY)
    assert {content.shape for content in train.contents if isinstance(content, np.ndarray)} == {(8, 8, 1)}


def test_files_are_decoded_one_by_one(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held of a file once its pixels are: each is opened after the one before was shrunk."""
    done: list[str] = []
    decode, shrink = images_module.image_of, images_module.shrunk

    def decoding(raw: bytes) -> Image | None:
        done.append("decoded")
        return decode(raw)

    def shrinking(image: Image, size: int) -> Image:
        done.append("shrunk")
        return shrink(image, size)

    monkeypatch.setattr(images_module, "image_of", decoding)
    monkeypatch.setattr(images_module, "shrunk", shrinking)
    load(site_file(images, PATHS), IMAGES, IDENTITY)
    assert done == ["decoded", "shrunk"] * 60


def test_the_side_of_an_image_is_its_own_whatever_it_is_called_and_whatever_else_there_is(images: Path) -> None:
    site = site_file(images, PATHS)
    train, test = load(site, IMAGES, IDENTITY)
    assert len(train) + len(test) == 60
    renamed = [("p", f"{shade:02}-again.png", LABELS[shade % 2], "") for shade in reversed(range(50))]
    for shade in range(50):
        (images / f"{shade:02}.png").rename(images / f"{shade:02}-again.png")
    write_notes(images, renamed)
    fewer, fewer_test = load(site, IMAGES, IDENTITY)
    assert held(fewer) <= held(train)
    assert held(fewer_test) <= held(test)


def test_patients_keep_their_images_together(images: Path) -> None:
    patients = IMAGES.model_copy(update={"privacy": signed_study(privacy={"unit": "patient"}).study.privacy})
    train, test = load(site_file(images, {**PATHS, "unit": "patient"}), patients, IDENTITY)
    assert np.bincount(train.units).tolist() == [2] * (len(train) // 2)
    assert np.bincount(test.units).tolist() == [2] * (len(test) // 2)


def test_a_file_that_cannot_be_read_is_left_out_and_changes_nothing_else(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = site_file(images, PATHS)
    whole = load(site, IMAGES, IDENTITY)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    write_sound(images / "sound.wav", 1)
    rows: list[Row] = [(f"p{shade // 2}", f"{shade:02}.png", LABELS[shade % 2], "") for shade in range(60)]
    bad: list[Row] = [("p", name, "no", "") for name in ("broken.png", "sound.wav", "absent.png", "", None)]
    write_notes(images, [*bad, *rows])
    with caplog.at_level(logging.WARNING, "consilium.records"):
        broken = load(site, IMAGES, IDENTITY)
    assert all(same(one, other) for one, other in zip(whole, broken, strict=True))
    assert caplog.messages == ["5 of 65 records cannot be read and are left out"]


def test_a_path_that_leads_out_of_the_folder_stops_the_site(images: Path) -> None:
    write_notes(images, [("p", "../secret.png", "no", "")])
    error = refused(images, IMAGES, PATHS)
    assert error.code == "CSL-502"
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("study", "columns", "field"),
    [
        (IMAGES, TEXTS, "data.columns.path"),
        (SOUNDS, TEXTS, "data.columns.path"),
        (TABLE, TEXTS, "data.columns.fields"),
        (TABLE, PATHS, "data.columns.fields"),
        (BASE, PATHS, "data.columns.text"),
        (BASE, ROWS, "data.columns.text"),
        (IMAGES, ROWS, "data.columns.path"),
        (BASE, {"text": "note"}, "data.columns.label"),
        (IMAGES, {"path": "note"}, "data.columns.label"),
        (TABLE, ROWS, "data.columns.fields"),
    ],
)
def test_columns_that_do_not_fit_the_study_are_refused_by_name(
    tmp_path: Path, study: Study, columns: dict[str, str | bool], field: str
) -> None:
    write_notes(tmp_path, [("p", "x", "no", "")])
    error = refused(tmp_path, study, columns)
    assert error.code == "CSL-503"
    assert field in str(error)


def write_table(folder: Path, rows: Iterable[tuple[object, ...]], names: str = "age,sex,smoker,label,patient") -> None:
    lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
    (folder / "table.csv").write_text("\n".join([names, *lines]) + "\n")


TABLE_QUERY = "FROM read_csv('table.csv', header = true, types = {'label': 'VARCHAR'})"


def table(people: int = 80) -> list[tuple[object, ...]]:
    return [(20 + i, i % 2, ("never", "ever")[i % 3 == 0], LABELS[i % 2], f"p{i // 2}") for i in range(people)]


def test_a_row_has_the_studys_fields_in_its_order_whatever_the_querys(tmp_path: Path) -> None:
    write_table(tmp_path, table())
    train, test = load(site_file(tmp_path, ROWS, query=TABLE_QUERY), TABLE, IDENTITY)
    wanted: set[Content] = {(str(20 + i), str(i % 2), ("never", "ever")[i % 3 == 0]) for i in range(80)}
    assert {*train.contents, *test.contents} == wanted
    turned = TABLE.model_copy(update={"task": TABLE.task.model_copy(update={"fields": FIELDS[::-1]})})
    for one, other in zip(
        (train, test), load(site_file(tmp_path, ROWS, query=TABLE_QUERY), turned, IDENTITY), strict=True
    ):
        assert {row[::-1] for row in other.contents if isinstance(row, tuple)} == set(one.contents)


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (("63", "1", "ever"), ("63", "1", "ever")),
        ((" 63.5 ", "1.0", " ever "), ("63.5", "1", "ever")),
        (("1e2", "+0", "never"), ("1e2", "0", "never")),
        (("none", "2", "Ever"), (None, None, None)),
        (("nan", "", None), (None, None, None)),
        (("inf", "true", "0"), (None, None, None)),
        (("900", "1", None), ("900", "1", None)),
    ],
)
def test_a_value_that_the_study_cannot_read_is_missing_and_no_other_is(
    values: tuple[str | None, ...], row: tuple[str | None, ...]
) -> None:
    assert row_of(FIELDS, values) == row


def test_a_row_with_no_value_at_all_is_left_out_and_gaps_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*table(60), (None, None, None, "no", "p"), ("old", 7, "?", "no", "p"), (33, None, None, "no", "p99")]
    write_table(tmp_path, rows)
    query = "FROM read_csv('table.csv', header = true, all_varchar = true)"
    with caplog.at_level(logging.WARNING, "consilium.records"):
        sides = load(site_file(tmp_path, ROWS, query=query), TABLE, IDENTITY)
    assert sum(map(len, sides)) == 61
    assert ("33", None, None) in (*sides[0].contents, *sides[1].contents)
    assert caplog.messages == ["2 of 63 records cannot be read and are left out"]


def test_fractions_are_fields_and_never_labels_or_units_and_truths_are_neither(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "table.sqlite") as database:
        database.execute("CREATE TABLE people (age REAL, sex REAL, smoker TEXT, label TEXT, patient TEXT)")
        database.executemany("INSERT INTO people VALUES (?, ?, ?, ?, ?)", table())
    source = 'url = "sqlite:///table.sqlite"'
    train, _ = load(site_file(tmp_path, ROWS, query="SELECT * FROM people", source=source), TABLE, IDENTITY)
    assert {row[:2] for row in train.contents if isinstance(row, tuple)} <= {
        (f"{20 + i}.0", str(i % 2)) for i in range(80)
    }
    write_table(tmp_path, table())
    query = "SELECT age + 0.5 AS age, sex = 1 AS sex, smoker, 'no' AS label FROM read_csv('table.csv')"
    whole = {**TEXTS, "text": "smoker"}
    for study, columns in ((BASE, {**whole, "label": "age"}), (BASE, {**whole, "unit": "age"}), (TABLE, ROWS)):
        with pytest.raises(ConsiliumError, match="CSL-505"):
            load(site_file(tmp_path, columns, query=query), study, IDENTITY)


def test_records_without_a_label_pretrain_and_are_never_among_the_tests(tmp_path: Path) -> None:
    rows: list[Row] = [(f"p{i}", f"note {i}", None if i % 3 else "yes", "") for i in range(120)]
    write_notes(tmp_path, rows)
    train, test = load(site_file(tmp_path, {**TEXTS, "unit": "patient"}), PRETRAINED, IDENTITY)
    assert set(train.labels) == {"", "yes"}
    assert set(test.labels) == {"yes"}
    labelled = [row for row in rows if row[2] is not None]
    write_notes(tmp_path, labelled)
    alone, alone_test = load(site_file(tmp_path, {**TEXTS, "unit": "patient"}), BASE, IDENTITY)
    assert held(alone_test) == held(test)
    assert held(alone) == {
        ordinal(content) for content, label in zip(train.contents, train.labels, strict=True) if label
    }


def test_without_pretraining_a_record_without_a_label_is_left_out(tmp_path: Path) -> None:
    write_notes(tmp_path, [(f"p{i}", f"note {i}", None if i % 2 else "yes", "") for i in range(60)])
    assert sum(map(len, load(site_file(tmp_path, TEXTS), BASE, IDENTITY))) == 30


def test_a_task_without_labels_needs_no_column_of_them(tmp_path: Path) -> None:
    write_notes(tmp_path, [(f"p{i}", f"note {i}", None, "") for i in range(60)])
    study = study_of(CausalLanguageModelling())
    for columns in ({"text": "note"}, TEXTS):
        train, test = load(site_file(tmp_path, columns), study, IDENTITY)
        assert (len(train) + len(test), {*train.labels, *test.labels}) == (60, {""})


def test_where_no_label_is_a_label_none_is_taken_for_unlabelled(tmp_path: Path) -> None:
    """Of several labels at once a record may have none: that is a label, and NULL is still no label."""
    write_notes(tmp_path, [(f"p{i}", f"note {i}", ("", "yes", None)[i % 3], "") for i in range(90)])
    study = study_of(MultiLabelClassification(labels=LABELS), pretraining=Pretraining(rounds=1))
    sides = load(site_file(tmp_path, TEXTS), study, IDENTITY)
    assert sum(map(len, sides)) == 60
    assert "" in sides[1].labels
    assert refused(tmp_path, study, {"text": "note"}).code == "CSL-503"


def test_the_report_reads_recordings_too_and_names_sides_as_a_study_will(tmp_path: Path) -> None:
    for number in range(30):
        write_sound(tmp_path / f"{number}.wav", number * 10)
    write_notes(tmp_path, [("p", f"{number}.wav", "no", "") for number in range(31)])
    site = site_file(tmp_path, PATHS)
    report = make_report(site.data, lambda unit, place: ("train", "test")[int(place[0], 16) % 2])
    assert (report.rows, report.kept.records, report.dropped) == (31, 30, {"file": 1})
    assert set(report.sides) == {"train", "test"}
    write_sound(tmp_path / "0.wav", 7)
    assert make_report(site.data, None).fingerprint != report.fingerprint


def test_of_rows_it_is_said_that_fields_are_not_looked_at(tmp_path: Path) -> None:
    write_table(tmp_path, table())
    site = site_file(tmp_path, {**ROWS, "unit": "patient"}, query=TABLE_QUERY)
    found, _ = examine(site.data, lambda unit, place: "train")
    assert (found.records, found.exact, found.near) == (80, None, None)
    assert "texts" in found.labels.why_not
    report = make_report(site.data, lambda unit, place: "train")
    assert (report.rows, report.kept.units, report.sides["train"].records) == (80, 40, 80)
    for command, said in (("report", "fields: not looked at"), ("quality", "not looked at in rows of fields")):
        done = CliRunner().invoke(app, ["data", command, "--no-sides", "-c", str(tmp_path / "site.toml")])
        assert done.exit_code == 0, done.output
        assert said in done.output
