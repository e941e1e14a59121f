from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import ConsiliumError
from simulations import scenario as scenarios
from simulations.cohort import divide, load_sites, site_name
from simulations.corpora import generate
from simulations.records import Records
from simulations.scenario import Scenario, Split
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
