from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.data import Examples
from common.contents import Recording
from common.errors import ConsiliumError
from common.task_specs import CategoryField, TabularClassification
from simulations import scenario as scenarios
from simulations.benchmarks._files import lay_out
from simulations.cohort import divide, load_sites, site_name
from simulations.corpora import generate
from simulations.preparation import locate_backbone
from simulations.records import Records
from simulations.scenario import BackboneChoice, Scenario, Split
from tests.encoders import write_encoder
from tests.simulations.scenarios import fields, write_csv


def records_of(rows: Sequence[tuple[int, int, int]]) -> tuple[Records, NDArray[np.int64], NDArray[np.int64]]:
    """Return records, their sites and their units (dense) of rows (site, unit within the site, group)."""
    texts = tuple(str(i) for i in range(len(rows)))
    groups = tuple(str(group) for _, _, group in rows)
    sites = np.asarray([site for site, _, _ in rows])
    _, units = np.unique([1000 * site + unit for site, unit, _ in rows], return_inverse=True)
    return Records(texts, texts, groups=groups), sites, units.astype(np.int64)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=60),
    seed=st.integers(0, 1000),
    validation=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_no_unit_and_no_group_is_on_two_sides(rows: list[tuple[int, int, int]], seed: int, validation: float) -> None:
    records, sites, units = records_of(rows)
    splits = divide(Split(test=0.3, validation=validation), records, sites, units, seed)
    assert splits.shape == (len(rows),)
    assert set(splits.tolist()) <= ({0, 1, 2} if validation else {0, 2})
    for owners in (units.tolist(), records.groups or ()):
        assert len(set(owners)) == len(set(zip(owners, splits.tolist(), strict=True)))


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(20, 200), min_size=3, max_size=5), seed=st.integers(0, 1000))
def test_fractions_hold_at_every_site_when_nothing_binds_records_together(sizes: list[int], seed: int) -> None:
    sites = np.repeat(np.arange(len(sizes)), sizes)
    texts = tuple(str(i) for i in range(len(sites)))
    splits = divide(Split(test=0.25, validation=0.1), Records(texts, texts), sites, np.arange(len(sites)), seed)
    for site, size in enumerate(sizes):
        held = np.bincount(splits[sites == site], minlength=3)
        assert np.abs(held - np.array([0.65, 0.1, 0.25]) * size).max() <= 2


def test_another_seed_divides_otherwise() -> None:
    records, sites, units = records_of([(i % 3, i, i) for i in range(90)])
    rule = Split()
    same, other = (divide(rule, records, sites, units, seed) for seed in (1, 2))
    assert (divide(rule, records, sites, units, 1) == same).all()
    assert (other != same).any()


def test_a_given_split_column_is_kept_and_validation_comes_from_train_alone() -> None:
    given_splits = ("train",) * 60 + ("test",) * 30
    texts = tuple(str(i) for i in range(90))
    records = Records(texts, texts, splits=given_splits)
    splits = divide(Split(column="split", validation=0.2), records, np.arange(90) % 3, np.arange(90), 0)
    assert set(splits[60:].tolist()) == {2}
    assert Counter(splits[:60].tolist()) == {0: 48, 1: 12}


def test_a_given_split_column_that_tears_a_group_apart_is_refused() -> None:
    records = Records(("a", "b"), ("x", "x"), groups=("g", "g"), splits=("train", "test"))
    with pytest.raises(ConsiliumError, match="CSL-505"):
        divide(Split(column="split"), records, np.zeros(2, dtype=np.int64), np.arange(2), 0)


def test_a_given_split_must_be_one_of_three_words() -> None:
    records = Records(("a", "b"), ("x", "x"), splits=("train", "dev"))
    with pytest.raises(ConsiliumError, match=r"CSL-505.*'dev'"):
        divide(Split(column="split"), records, np.zeros(2, dtype=np.int64), np.arange(2), 0)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    write_csv(tmp_path / "notes.csv", rows=120)
    chosen = scenarios.from_fields(fields())
    backwards = scenarios.from_fields(
        fields(data={"query": "SELECT * FROM read_csv('notes.csv', all_varchar = true) ORDER BY text DESC"})
    )
    for one, other in zip(load_sites(chosen, tmp_path), load_sites(backwards, tmp_path), strict=True):
        assert one.site == other.site
        assert (one.train.contents, one.validation.contents) == (other.train.contents, other.validation.contents)
        assert (one.train.units == other.train.units).all()


def test_every_record_is_at_its_own_site_in_exactly_one_split(tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "notes.csv", rows=120)
    sites = load_sites(scenarios.from_fields(fields()), tmp_path)
    assert [site.site for site in sites] == ["North-1", "South-2", "West"]
    found = [
        (site.site, text)
        for site in sites
        for part in (site.train, site.validation, site.test)
        for text in part.contents
    ]
    assert sorted(found) == sorted((row["site"].replace(" ", "-"), row["text"]) for row in rows)


def test_units_are_dense_and_patients_stay_whole(tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "notes.csv", rows=120)
    patients = fields(privacy={"unit": "patient", "max_records_per_unit": 4}, columns={"unit": "patient"})
    owner = {row["text"]: row["patient"] for row in rows}
    for site in load_sites(scenarios.from_fields(patients), tmp_path):
        parts = (site.train, site.validation, site.test)
        held = [{owner[text] for text in map(str, part.contents)} for part in parts]
        assert not held[0] & held[1]
        assert not held[0] & held[2]
        assert not held[1] & held[2]
        for part, people in zip(parts, held, strict=True):
            assert sorted(set(part.units.tolist())) == list(range(len(people)))


def test_subgroups_travel_with_their_records(tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "notes.csv", rows=120)
    sex = {row["text"]: row["sex"] for row in rows}
    for site in load_sites(scenarios.from_fields(fields(columns={"subgroups": ["sex"]})), tmp_path):
        assert list(site.test.subgroups["sex"]) == [sex[text] for text in map(str, site.test.contents)]


@pytest.mark.parametrize("rule", ["iid", "dirichlet", "quantity"])
def test_a_partition_covers_every_record_once(rule: str, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "notes.csv", rows=400)
    chosen = fields(partition={"rule": rule, "sites": 4, "alpha": 1.0}, columns={"site": None, "unit": "patient"})
    sites = load_sites(scenarios.from_fields(chosen), tmp_path)
    assert [site.site for site in sites] == [f"site-{i:03d}" for i in range(4)]
    found = [t for site in sites for part in (site.train, site.validation, site.test) for t in map(str, part.contents)]
    assert sorted(found) == sorted(row["text"] for row in rows)


@pytest.mark.parametrize("name", ["operator", "anyone", "!!!", ""])
def test_a_name_that_no_study_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ConsiliumError, match="CSL-505"):
        site_name(name)


def test_two_sites_whose_names_become_one_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "notes.csv", rows=60, sites=("A b", "A-b", "C", "D"))
    with pytest.raises(ConsiliumError, match="CSL-505"):
        load_sites(scenarios.from_fields(fields()), tmp_path)


def test_two_sites_are_too_few(tmp_path: Path) -> None:
    write_csv(tmp_path / "notes.csv", rows=60, sites=("A", "B"))
    with pytest.raises(ConsiliumError, match="CSL-512"):
        load_sites(scenarios.from_fields(fields()), tmp_path)


def test_a_site_that_the_scenario_does_not_declare_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "notes.csv", rows=60)
    with pytest.raises(ConsiliumError, match=r"CSL-505.*West"):
        load_sites(scenarios.from_fields(fields(data={"sites": ["North 1", "South 2"]})), tmp_path)


def test_the_demo_holds_every_note_of_its_corpus_and_patients_of_one_hospital_only() -> None:
    demo = scenarios.load(scenarios.locate("demo"))
    assert demo.data.corpus is not None
    sites = load_sites(demo, None)
    held = sum(len(part) for site in sites for part in (site.train, site.validation, site.test))
    assert held == len(generate(demo.data.corpus, demo.seed))
    assert min(len(site.validation) for site in sites) > 10


def of_real(name: str, real_data: Path) -> tuple[Scenario, tuple[int, int, int], set[str]]:
    chosen = scenarios.load(scenarios.locate(name))
    sites = load_sites(chosen, real_data)
    sizes = [
        sum(len(part) for part in parts)
        for parts in zip(*((s.train, s.validation, s.test) for s in sites), strict=True)
    ]
    return chosen, (sizes[0], sizes[1], sizes[2]), {str(site.site) for site in sites}


@pytest.mark.realdata
def test_medquad_gives_six_institutes_and_no_disease_is_on_two_sides(real_data: Path) -> None:
    chosen, sizes, names = of_real("medquad", real_data)
    assert names == {"CancerGov", "GARD", "GHR", "MPlus", "NIDDK", "NINDS"}
    assert sum(sizes) == 13_557
    assert abs(sizes[2] / sum(sizes) - 0.2) < 0.01
    assert len(chosen.task.known_labels) == 8


@pytest.mark.realdata
def test_sst2_has_the_dev_set_as_its_test_set(real_data: Path) -> None:
    _, sizes, names = of_real("sst2", real_data)
    assert sizes[2] == 872
    assert 32_000 < sizes[0] + sizes[1] < 35_500
    assert len(names) == 10


@pytest.mark.realdata
def test_full_sst2_reads_every_training_text(real_data: Path) -> None:
    sites = load_sites(scenarios.load(scenarios.locate("sst2"), full=True), real_data)
    assert sum(len(site.train) + len(site.validation) for site in sites) == 67_349


@pytest.mark.realdata
def test_heart_has_four_hospitals_whose_rows_have_gaps(real_data: Path) -> None:
    chosen = scenarios.load(scenarios.locate("heart"))
    assert isinstance(chosen.task, TabularClassification)
    sites = load_sites(chosen, real_data)
    held = {str(site.site): [*site.train.contents, *site.validation.contents, *site.test.contents] for site in sites}
    assert {name: len(rows) for name, rows in held.items()} == {
        "cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200,
    }  # fmt: skip
    diseased = {
        str(site.site): [*site.train.labels, *site.validation.labels, *site.test.labels].count("yes") for site in sites
    }
    assert diseased == {"cleveland": 139, "hungarian": 106, "switzerland": 115, "va": 149}
    at = [one.name for one in chosen.task.fields].index("chol")
    assert all(isinstance(row, tuple) and row[at] is None for row in held["switzerland"]), "no cholesterol was taken"
    assert not any(isinstance(row, tuple) and row[at] is None for row in held["cleveland"])
    for place, one in enumerate(chosen.task.fields):
        found = {row[place] for rows in held.values() for row in rows if isinstance(row, tuple)}
        assert len(found - {None}) > 1, f"{one.name} is read"
        if isinstance(one, CategoryField):
            assert found <= {None, *one.levels}
        else:
            outside = [value for value in found if value is not None and not one.low <= float(value) <= one.high]
            assert len(outside) <= 1, f"{one.name}: bounds that cut nearly nothing"


@pytest.fixture(scope="module")
def files(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    assert lay_out(real_data, folder) == {"pneumonia": 5_232, "digits": 2_500}
    return folder


@pytest.mark.realdata
def test_pneumonia_has_the_published_validation_images_as_its_test_set(files: Path) -> None:
    _, sizes, names = of_real("pneumonia", files)
    assert len(names) == 5
    assert sizes[2] == 524
    assert sizes[0] + sizes[1] == 4_708
    assert abs(sizes[1] / 4_708 - 0.1) < 0.01
    image = load_sites(scenarios.load(scenarios.locate("pneumonia")), files)[0].train.contents[0]
    assert isinstance(image, np.ndarray)
    assert image.shape == (28, 28, 1)


@pytest.mark.realdata
def test_digits_has_a_speaker_a_site_and_the_published_test_set(files: Path) -> None:
    chosen, sizes, names = of_real("digits", files)
    assert names == {"jackson", "lucas", "nicolas", "theo", "yweweler"}
    assert (sizes[0] + sizes[1], sizes[2]) == (2_250, 250)
    for site in load_sites(chosen, files):
        assert Counter(site.test.labels) == dict.fromkeys(chosen.task.known_labels, 5)
        for recording in site.train.contents:
            assert isinstance(recording, Recording)
            assert recording.rate == 8_000
            assert 0 < len(recording.samples) <= 8_000


@pytest.mark.realdata
def test_files_are_laid_out_once_and_a_damaged_one_is_made_again(files: Path, real_data: Path) -> None:
    index, hurt = files / "digits" / "index.csv", files / "digits" / "theo" / "3_7.wav"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (index, hurt)}
    hurt.write_bytes(b"RIFF")
    lay_out(real_data, files)
    assert index.stat().st_mtime_ns == before[index][0]
    assert hurt.read_bytes() == before[hurt][1]


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["pneumonia", "digits"])
def test_the_backbone_of_a_shipped_scenario_is_found_below_the_data(name: str, files: Path) -> None:
    folder = scenarios.load(scenarios.locate(name)).backbone.folder
    assert folder is not None
    assert (files / folder / "config.json").is_file()


ROW: dict[str, object] = {
    "kind": "tabular-classification",
    "labels": ["calm", "grave"],
    "fields": [
        {"kind": "number", "name": "age", "low": 0, "high": 120},
        {"kind": "category", "name": "sex", "levels": ["f", "m"]},
    ],
}
PICTURE: dict[str, object] = {"kind": "image-classification", "labels": ["calm", "grave"], "size": 8}
SOUND: dict[str, object] = {"kind": "audio-classification", "labels": ["calm", "grave"], "rate": 8_000}
LABELS = ("calm", "grave")


def of_other_contents(task: dict[str, object], columns: dict[str, object], **changes: object) -> Scenario:
    table = {**fields(), "task": task, "columns": {"label": "label", "site": "site", **columns}}
    return scenarios.from_fields({**table, **changes})


def write_index(folder: Path, rows: Sequence[tuple[object, ...]]) -> None:
    lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
    (folder / "notes.csv").write_text("\n".join(["path,label,site,patient,age,sex", *lines]) + "\n")


def write_pictures(folder: Path, count: int = 90) -> list[tuple[object, ...]]:
    pillow = pytest.importorskip("PIL.Image")
    rows: list[tuple[object, ...]] = []
    for i in range(count):
        pillow.fromarray(np.full((20, 24), i, dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append((f"{i}.png", LABELS[i % 2], "ABC"[(i // 2) % 3], f"p{i // 2}", 20 + i, "fm"[i % 2]))
    write_index(folder, rows)
    return rows


def shades(examples: Examples) -> list[int]:
    return [int(content[0, 0, 0]) for content in examples.contents if isinstance(content, np.ndarray)]


def test_pictures_reach_their_sites_once_whatever_the_order_of_the_index(tmp_path: Path) -> None:
    rows = write_pictures(tmp_path)
    chosen = of_other_contents(PICTURE, {"path": "path", "unit": "patient"})
    sites = load_sites(chosen, tmp_path)
    held = {str(site.site): shades(site.train) + shades(site.validation) + shades(site.test) for site in sites}
    assert {name: sorted(found) for name, found in held.items()} == {
        name: [i for i in range(90) if "ABC"[(i // 2) % 3] == name] for name in "ABC"
    }
    for site in sites:
        owners = [{shade // 2 for shade in shades(part)} for part in (site.train, site.validation, site.test)]
        assert sum(map(len, owners)) == len(set.union(*owners))
    write_index(tmp_path, rows[::-1])
    for one, other in zip(sites, load_sites(chosen, tmp_path), strict=True):
        assert shades(one.train) == shades(other.train)
        assert one.train.labels == other.train.labels


def test_a_rule_divides_pictures_as_it_does_texts(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    chosen = of_other_contents(
        PICTURE, {"path": "path"} | {"site": None}, partition={"rule": "dirichlet", "sites": 3, "alpha": 5.0}
    )
    sites = load_sites(chosen, tmp_path)
    found = [shade for site in sites for part in (site.train, site.validation, site.test) for shade in shades(part)]
    assert sorted(found) == list(range(90))


def test_a_picture_that_cannot_be_read_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_pictures(tmp_path)
    (tmp_path / "7.png").write_bytes(b"torn")
    write_index(tmp_path, [*rows, ("absent.png", "calm", "A", "q", 1, "f")])
    with caplog.at_level(logging.WARNING, "consilium.simulations.query"):
        sites = load_sites(of_other_contents(PICTURE, {"path": "path"}), tmp_path)
    assert sum(len(part) for site in sites for part in (site.train, site.validation, site.test)) == 89
    assert caplog.messages == ["2 of 91 records cannot be read and are left out"]
    with pytest.raises(ConsiliumError, match="CSL-504"):
        load_sites(of_other_contents(SOUND, {"path": "path"}), tmp_path)
    write_index(tmp_path, [("../out.png", "calm", "A", "q", 1, "f")])
    with pytest.raises(ConsiliumError, match="CSL-502"):
        load_sites(of_other_contents(PICTURE, {"path": "path"}), tmp_path)


def test_rows_have_the_tasks_fields_and_none_where_a_value_cannot_be_read(tmp_path: Path) -> None:
    rows = [
        ("", LABELS[i % 2], "ABC"[i % 3], f"p{i}", (20 + i, None, "old")[i % 5 % 3], "fmx"[i % 7 % 3])
        for i in range(60)
    ]
    write_index(tmp_path, rows)
    sites = load_sites(of_other_contents(ROW, {"fields": True}), tmp_path)
    found = [row for site in sites for part in (site.train, site.validation, site.test) for row in part.contents]
    wanted = [
        (None if not isinstance(age, int) else str(age), None if sex == "x" else str(sex)) for *_, age, sex in rows
    ]
    assert sorted(map(str, found)) == sorted(str(row) for row in wanted if row != (None, None))


def test_records_without_a_label_train_and_are_never_judged(tmp_path: Path) -> None:
    write_index(tmp_path, [(f"note {i}", None if i % 3 else "calm", "ABC"[i % 4 % 3], "", "", "") for i in range(180)])
    table = fields(columns={"text": "path"}, pretraining={"rounds": 1})
    sites = load_sites(scenarios.from_fields(table), tmp_path)
    assert all(set(site.train.labels) == {"", "calm"} for site in sites)
    assert all({*site.validation.labels, *site.test.labels} == {"calm"} for site in sites)
    with pytest.raises(ConsiliumError, match="CSL-505"):
        load_sites(scenarios.from_fields(fields(columns={"text": "path"})), tmp_path)


@pytest.mark.parametrize(
    ("task", "columns", "said"),
    [
        (PICTURE, {"text": "path"}, "columns: path"),
        (SOUND, {"fields": True}, "columns: path"),
        (ROW, {"path": "path"}, "columns: fields"),
        (PICTURE, {"path": "path", "label": None}, "columns.label"),
        (PICTURE, {"path": "path", "text": "path"}, "one of text, path and fields"),
        (PICTURE, {}, "one of text, path and fields"),
    ],
)
def test_columns_that_do_not_fit_the_task_are_refused(
    task: dict[str, object], columns: dict[str, object], said: str
) -> None:
    with pytest.raises(ConsiliumError, match="CSL-511") as raised:
        of_other_contents(task, columns)
    assert said in str(raised.value)


def test_a_task_without_labels_needs_no_column_of_them(tmp_path: Path) -> None:
    write_csv(tmp_path / "notes.csv", rows=60)
    chosen = of_other_contents({"kind": "causal-language-modelling"}, {"text": "text", "label": None})
    sites = load_sites(chosen, tmp_path)
    assert sum(len(site.train) + len(site.validation) + len(site.test) for site in sites) == 60
    assert {label for site in sites for label in site.test.labels} == {""}


def test_a_backbones_folder_is_looked_for_below_the_data_where_it_is_not_found_as_given(tmp_path: Path) -> None:
    write_encoder(tmp_path / "weights" / "small")
    choice = BackboneChoice(folder="weights/small", licence="MIT", training_data="none")
    folder, manifest = locate_backbone(choice, tmp_path)
    assert folder == tmp_path / "weights" / "small"
    assert manifest.source == "folder small"
    with pytest.raises(ConsiliumError, match="CSL-301"):
        locate_backbone(choice)
