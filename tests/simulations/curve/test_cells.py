"""The cells of a curve: what is asked for, what is refused, and what must be said of the figures."""

from __future__ import annotations

from itertools import pairwise

import pytest

from common.errors import ConsiliumError
from common.study import Unit
from common.ways import WAYS
from simulations.curve.cells import (
    MOST_WAYS,
    UNRELEASED,
    UNTUNED,
    Cell,
    Curve,
    Spot,
    cells,
    composed,
    read_epsilons,
    read_labels,
    read_ways,
    variant,
)
from simulations.metrics import SYNTHETIC
from simulations.scenario import from_fields
from tests.simulations.curve.curves import curve, row
from tests.simulations.scenarios import fields


def test_what_is_asked_for_is_read_once_each() -> None:
    assert read_ways("feature-extraction, lora,feature-extraction") == ("feature-extraction", "lora")
    assert read_labels("100,10, 30,10") == (10, 30, 100)
    assert read_epsilons("none,8, 3,none") == (None, 8.0, 3.0)


@pytest.mark.parametrize("text", ["", "lora,", "LORA", "quantum", ",".join(list(WAYS)[: MOST_WAYS + 1])])
def test_ways_that_are_none_or_too_many_are_refused(text: str) -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-511.*--ways"):
        read_ways(text)


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "10,,30", "ten"])
def test_numbers_of_labels_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-511.*--labels"):
        read_labels(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "inf", "nan", "None", "8;3"])
def test_epsilons_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-511.*--epsilon"):
        read_epsilons(text)


def test_every_combination_is_a_cell_and_those_of_one_model_stand_together() -> None:
    made = cells(("lora", "full"), (10, 30), (None, 8.0), (5, 6))
    assert len(set(made)) == 16
    models = [(cell.way, cell.seed) for cell in made]
    assert sum(one != other for one, other in pairwise(models)) == 3


def test_a_cell_changes_way_epsilon_and_seed_and_nothing_else() -> None:
    plain = from_fields(fields(privacy={"noise_multiplier": 2.0}))
    changed = variant(plain, Cell("lora", 10, 3.0, 9))
    assert (changed.adapter.method, changed.privacy.epsilon, changed.seed) == ("lora", 3.0, 9)
    # The noise is calibrated to the epsilon, not taken from the scenario.
    assert changed.privacy.noise_multiplier is None
    assert changed.adapter == plain.adapter.model_copy(update={"method": "lora"})
    same = {"adapter": plain.adapter, "privacy": plain.privacy, "seed": plain.seed}
    assert changed.model_copy(update=same) == plain
    assert variant(plain, Cell("lora", 10, None, 9)).privacy == plain.privacy


def test_a_way_that_the_rest_of_the_scenario_forbids_is_refused() -> None:
    plain = from_fields(fields(training={"server_optimizer": "fedadam"}))
    with pytest.raises(ConsiliumError, match=r"CSL-511 .*--ways: mixed-ranks: .*site_ranks"):
        variant(plain, Cell("mixed-ranks", 10, None, 9))


def test_continued_pretraining_takes_a_quarter_of_the_rounds_where_the_scenario_names_none() -> None:
    plain = from_fields(fields(training={"rounds": 8}))
    changed = variant(plain, Cell("continued-pretraining", 10, None, 9)).pretraining
    assert changed is not None
    assert changed.rounds == 2


def test_the_composed_epsilon_is_the_sum_over_private_cells() -> None:
    rows = [row(cell, 0.5) for cell in cells(("lora",), (10, 30, 100), (None, 8.0, 3.0), (0, 1))]
    said = composed(rows, Unit.PATIENT, 1e-5)
    assert "the 12 private cells would spend epsilon 66 at delta 0.00012 for one patient" in said
    assert "no epsilon bounds the 6 without privacy" in said
    assert "without privacy" not in composed([each for each in rows if each.epsilon], Unit.PATIENT, 1e-5)
    free = composed([each for each in rows if each.epsilon is None], Unit.RECORD, 1e-5)
    assert "no cell is private" in free
    assert "0 private" not in free


def test_figures_on_records_that_were_read_are_marked_and_composed_and_generated_ones_are_marked_so() -> None:
    marks = curve().marks
    assert marks[0] == UNRELEASED
    assert marks[1].startswith("COMPOSED: as studies on the same people, the 4 private cells would spend epsilon 32")
    assert marks[2] == UNTUNED
    hospitals = [{"name": name, "patients": 10} for name in ("a", "b", "c")]
    made = curve(data={"query": None, "corpus": {"kind": "triage", "hospitals": hospitals}}, columns=None)
    assert made.marks == (SYNTHETIC, UNTUNED)
    assert "COMPOSED" not in made.model_dump_json()


def test_a_score_that_is_no_accuracy_is_said_to_be_another() -> None:
    made = curve(task={"kind": "regression", "low": 0.0, "high": 1.0, "labels": None, "max_tokens": 16})
    assert made.marks[-1] == "SCORE: what is called accuracy here is closeness."


def test_a_curve_survives_its_file_with_its_marks() -> None:
    made = curve()
    text = made.model_dump_json()
    assert Curve.model_validate_json(text) == made
    assert all(mark in text for mark in made.marks)


def test_a_spot_is_one_rows_interval_or_the_mean_and_spread_over_seeds() -> None:
    first, second = row(Cell("lora", 10, None, 0), 0.6), row(Cell("lora", 10, None, 1), 0.7)
    assert Spot.of([first]) == Spot(0.6, *first.interval, None)
    both = Spot.of([second, first])
    assert (both.low, both.high) == (first.interval[0], second.interval[1])
    assert both.accuracy == pytest.approx(0.65)
    assert both.spread == pytest.approx(0.0707, abs=1e-4)
    assert curve(labels=(10,)).at("lora", 10, None) is None
