"""A hospital's records: every unit on one side for ever, and a broken record harms nobody else's."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from client.config import SiteConfig
from client.data import Examples
from client.records import SPLIT_PURPOSE, load, load_for_verdict, side_of
from common.errors import ConsiliumError
from common.identity import Identity
from common.study import Study
from tests.sitefile import opening
from tests.studies import signed_study

IDENTITY = Identity.from_private_bytes(bytes(31) + b"\x07")
RECORDS = signed_study().study
PATIENTS = signed_study(privacy={"unit": "patient", "max_records_per_unit": 4}).study
Row = tuple[object, object, object, object]


def config(folder: Path, **columns: str) -> SiteConfig:
    named = "".join(f'{role} = "{name}"\n' for role, name in {"text": "note", "label": "label", **columns}.items())
    (folder / "site.toml").write_text(f"""{opening("north", "5a" * 32)}[data]
folder = "."
query = "FROM read_csv('notes.csv', all_varchar = true, nullstr = 'NULL', quote = '\\"')"
[data.columns]
{named}
""")
    return SiteConfig.load(folder / "site.toml")


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Write (patient, note, label, side); None is NULL."""

    def field(value: object) -> str:
        return "NULL" if value is None else f'"{value}"'

    lines = [",".join(field(value) for value in row) for row in rows]
    (folder / "notes.csv").write_text("\n".join(["patient,note,label,side", *lines]) + "\n", encoding="utf-8")


def many(patients: int = 300) -> list[Row]:
    return [
        (f"p{patient}", f"note {patient} {visit}", "yes" if patient % 2 else "no", "train")
        for patient in range(patients)
        for visit in range(1 + patient % 3)
    ]


def loaded(folder: Path, rows: Iterable[Row], study: Study = PATIENTS, **columns: str) -> tuple[Examples, Examples]:
    write(folder, rows)
    return load(config(folder, **({"unit": "patient"} if study is PATIENTS else {}), **columns), study, IDENTITY)


def refused(folder: Path, rows: Iterable[Row], study: Study = PATIENTS, **columns: str) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as raised:
        loaded(folder, rows, study, **columns)
    return raised.value


def triples(examples: Examples) -> set[tuple[str, str]]:
    return set(zip(map(str, examples.contents), examples.labels, strict=True))


def test_a_patient_is_one_unit_with_all_its_records_on_one_side(tmp_path: Path) -> None:
    rows = many()
    owner = {str(note): str(patient) for patient, note, _, _ in rows}
    train, test = loaded(tmp_path, rows)
    assert len(train) + len(test) == len(rows)
    for examples in (train, test):
        pairs = {
            (owner[text], unit) for text, unit in zip(map(str, examples.contents), examples.units.tolist(), strict=True)
        }
        units = {unit for _, unit in pairs}
        assert units == set(range(len(pairs)))
    assert not {owner[text] for text in map(str, train.contents)} & {owner[text] for text in map(str, test.contents)}


def test_a_record_is_one_unit_where_the_study_hides_records(tmp_path: Path) -> None:
    train, test = loaded(tmp_path, many(), RECORDS)
    for examples in (train, test):
        assert np.array_equal(examples.units, np.arange(len(examples)))
    together, _ = loaded(tmp_path, many(), RECORDS, unit="patient")
    assert np.array_equal(together.units, np.arange(len(together)))


def test_with_a_unit_column_the_sides_are_the_same_whatever_the_study_hides(tmp_path: Path) -> None:
    _, patients = loaded(tmp_path, many())
    _, records = loaded(tmp_path, many(), RECORDS, unit="patient")
    assert triples(patients) == triples(records)


@pytest.mark.parametrize("study", [PATIENTS, RECORDS])
def test_a_side_is_for_ever_whatever_else_the_query_returns(tmp_path: Path, study: Study) -> None:
    _, first = loaded(tmp_path, many(300), study)
    train, second = loaded(tmp_path, [*reversed(many(600)), ("new", "new note", "yes", "train")], study)
    assert triples(first) <= triples(second)
    assert not triples(first) & triples(train)


@pytest.mark.parametrize("study", [PATIENTS, RECORDS])
def test_the_order_of_the_rows_changes_nothing(tmp_path: Path, study: Study) -> None:
    forward, backward = loaded(tmp_path, many(), study), loaded(tmp_path, reversed(many()), study)
    for one, other in zip(forward, backward, strict=True):
        assert (one.contents, one.labels, one.units.tolist()) == (other.contents, other.labels, other.units.tolist())


def test_removing_a_patient_moves_no_record_of_another(tmp_path: Path) -> None:
    rows = many()
    for kept, fewer in zip(
        loaded(tmp_path, rows), loaded(tmp_path, [row for row in rows if row[0] != "p7"]), strict=True
    ):
        assert triples(kept) - triples(fewer) <= {
            (str(note), str(label)) for owner, note, label, _ in rows if owner == "p7"
        }
        assert triples(fewer) <= triples(kept)


def test_the_fraction_is_met_and_a_larger_one_moves_units_one_way() -> None:
    """20,000 units: a fraction is off by more than 5 standard deviations once in two million."""
    key = IDENTITY.derive_key(SPLIT_PURPOSE)
    names = [f"patient {number}" for number in range(20_000)]
    few, more = ({name for name in names if side_of(key, name, "", test=test) == "test"} for test in (0.2, 0.3))
    for found, wanted in ((few, 0.2), (more, 0.3)):
        assert abs(len(found) / len(names) - wanted) < 5 * (wanted * (1 - wanted) / len(names)) ** 0.5
    assert few < more


def test_another_site_divides_the_same_patients_otherwise(tmp_path: Path) -> None:
    mine, theirs = (
        [side_of(identity.derive_key(SPLIT_PURPOSE), f"p{number}", "", test=0.5) for number in range(100)]
        for identity in (IDENTITY, Identity.from_private_bytes(bytes(31) + b"\x08"))
    )
    assert 20 < sum(one == other for one, other in zip(mine, theirs, strict=True)) < 80


def test_a_unit_and_a_text_of_one_name_are_not_hashed_alike() -> None:
    key = IDENTITY.derive_key(SPLIT_PURPOSE)
    sides = {(side_of(key, name, "", test=0.5), side_of(key, "", name, test=0.5)) for name in map(str, range(100))}
    assert len(sides) == 4


BROKEN: list[Row] = [
    (None, "no patient", "yes", "train"),
    ("", "an empty patient", "yes", "train"),
    ("q", None, "yes", "train"),
    ("q", "  ", "yes", "train"),
    ("q", "no label", None, "train"),
    ("q", "no side", "yes", None),
]


def test_a_record_that_cannot_be_read_is_left_out_and_changes_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*many(40), *((f"t{number}", f"test {number}", "no", "test") for number in range(5))]
    whole = loaded(tmp_path, rows, split="side")
    with caplog.at_level(logging.WARNING, "consilium.records"):
        broken = loaded(tmp_path, [*BROKEN, *rows], split="side")
    for one, other in zip(whole, broken, strict=True):
        assert (one.contents, one.labels, one.units.tolist()) == (other.contents, other.labels, other.units.tolist())
    assert caplog.messages == [f"{len(BROKEN)} of {len(rows) + len(BROKEN)} records cannot be read and are left out"]


def test_a_split_column_decides_and_validation_is_on_neither_side(tmp_path: Path) -> None:
    rows: list[Row] = [("a", "one", "yes", "train"), ("b", "two", "no", "validation"), ("c", "three", "no", "test")]
    train, test = loaded(tmp_path, rows, split="side")
    assert (train.contents, test.contents) == (("one",), ("three",))


def test_a_unit_on_two_sides_or_an_unknown_side_is_refused(tmp_path: Path) -> None:
    torn: list[Row] = [("a", "one", "yes", "train"), ("a", "two", "no", "test")]
    unknown: list[Row] = [("a", "one", "yes", "secret")]
    for rows in (torn, unknown):
        error = refused(tmp_path, rows, split="side")
        assert error.code == "CSL-505"
        assert "secret" not in str(error)


def test_a_label_that_the_study_does_not_have_is_refused_without_showing_it(tmp_path: Path) -> None:
    error = refused(tmp_path, [*many(), ("a", "one", "the patient's own words", "train")])
    assert error.code == "CSL-321"
    assert "words" not in str(error)


def test_a_study_of_patients_needs_their_column(tmp_path: Path) -> None:
    write(tmp_path, many())
    for columns in ({}, {"unit": "absent"}):
        with pytest.raises(ConsiliumError) as raised:
            load(config(tmp_path, **columns), PATIENTS, IDENTITY)
        assert raised.value.code == "CSL-503"
        assert "data.columns.unit" in str(raised.value)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    write(tmp_path, many())
    made = config(tmp_path, unit="patient")
    query = "SELECT note, label, 1.5 AS patient FROM read_csv('notes.csv')"
    with pytest.raises(ConsiliumError) as raised:
        load(made.model_copy(update={"data": made.data.model_copy(update={"query": query})}), PATIENTS, IDENTITY)
    assert raised.value.code == "CSL-505"


def test_a_side_without_records_is_said(tmp_path: Path) -> None:
    assert refused(tmp_path, [], split="side").code == "CSL-504"
    assert refused(tmp_path, [("a", "one", "yes", "test")], split="side").code == "CSL-504"
    assert refused(tmp_path, [("a", "one", "yes", "train")], split="side").code == "CSL-504"


def test_a_study_that_never_evaluates_needs_no_test_records(tmp_path: Path) -> None:
    never = signed_study(evaluation={"releases": 0}).study
    train, test = loaded(tmp_path, [("a", "one", "yes", "train")], never, split="side")
    assert (len(train), len(test)) == (1, 0)


def test_a_verdict_is_made_on_validation_records_and_without_any_on_the_test_records(tmp_path: Path) -> None:
    rows = [(f"p{n}", f"note {n}", "no", side) for n, side in enumerate(["train"] * 4 + ["validation"] * 3 + ["test"])]
    for shown, side in ((rows, "validation"), ([row for row in rows if row[3] != "validation"], "test")):
        write(tmp_path, shown)
        train, held_out, named = load_for_verdict(config(tmp_path, unit="patient", split="side"), PATIENTS, IDENTITY)
        assert (len(train), len(held_out), named) == (4, 3 if side == "validation" else 1, side)
    write(tmp_path, rows[:4])
    with pytest.raises(ConsiliumError, match="CSL-504"):
        load_for_verdict(config(tmp_path, unit="patient", split="side"), PATIENTS, IDENTITY)


def test_a_verdict_without_a_split_column_sees_the_sides_that_the_study_sees(tmp_path: Path) -> None:
    train, tests = loaded(tmp_path, many())
    again, held_out, side = load_for_verdict(config(tmp_path, unit="patient"), PATIENTS, IDENTITY)
    assert (again.contents, held_out.contents, side) == (train.contents, tests.contents, "test")
