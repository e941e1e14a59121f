"""The statement says what the plan says, and never less than what a hospital must know.

Numbers are computed here again, by dp-accounting itself and from the Study's own fields, and compared with what is
printed; a number that nobody asked for is a failure too.
"""

from __future__ import annotations

import math
import re

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.identity import SiteId, fingerprint
from common.privacy.accounting import accountant_version
from common.privacy.groups import epsilon_for_group
from common.privacy.plan import PrivacyPlan, cell_bound, expected_half_width
from common.privacy.statement import NEIGHBOUR, statement
from common.study import Study, TrainingNoise, Unit
from tests.studies import fields

PATIENTS = {"unit": "patient", "max_records_per_unit": 3}
SITE = SiteId("site-002")
CONSTANTS = {"95", "10", "0.1", "1", "2", "9.49", "256", "64", "32", "2012", "2020", "800", "226", "2025"}
"""Numbers of the prose: percentages, counts of records and sites, names of formats, ciphers and papers."""
ITEMS = {
    "unit": r"\| unit of privacy \| (record|patient) \|",
    "neighbour relation": r"\| neighbouring data sets \| add or remove one",
    "epsilon": r"\| epsilon recomputed here \| \d",
    "delta": r"\| delta \| \d",
    "accountant and its version": r"\| accountant \| PLD \(dp-accounting\) \d+\.\d",
    "sampling": r"Poisson sampling at rate \d",
    "composition scope": r"\| scope \| one site's whole participation",
    "composition within and across studies": r"one accountant composes all.*Across studies.*epsilons and deltas add",
    "account": r"a patient population that the hospital names",
    "charges against rounds": r"sums are planned and \d+ charges allowed",
    "aborted attempts": r"aborted after a site has charged for it stays charged",
    "a crash": r"so is what replaces a request that a site's crash left unanswered",
    "trust model": r"the operator, all other sites together and the\s+network may be hostile",
    "who sees what": r"\*\*The operator and the other sites\*\* see one sum",
    "evaluation cells": r"\| cells of a release \|",
    "evaluation sensitivity": r"\| L2 sensitivity \| \d",
    "evaluation releases": r"\| releases \| \d",
    "weights are public bands": r"weight of a site.*public band",
    "data-dependent outputs": r"## Outputs that depend on data",
    "randomness": r"## Randomness",
    "several sites": r"known to k sites.*k guarantees",
    "other studies": r"\*\*Other studies\*\*",
    "presence and timing": r"Whether a site takes part, when it answers, and how long it takes",
    "what joining costs": r"commits the epsilon and delta above to its account when it joins",
    "restored storage": r"put back to an older copy refuses to train.*spend twice what it then knows of",
    "the ledger's head": r"where the ledger ends, in each reply \| encrypted anew",
    "how settings were chosen": r"how they were chosen is outside",
    "refusals": r"told to the operator as `unavailable` and no more",
}


def study(**changes: object) -> Study:
    return Study.from_fields(fields(4, **changes)[0])


def rows(text: str) -> dict[str, str]:
    """Return the tables' rows: what stands in the first cell, and the rest."""
    cells = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def spent(agreed: Study, *, steps: int, releases: int) -> float:
    """Return epsilon by dp-accounting, on a finer grid than the house's."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 5e-4)
    privacy = agreed.privacy
    if steps:
        step = dp_accounting.GaussianDpEvent(privacy.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(privacy.sampling_rate, step), steps)
    if releases:
        accountant.compose(dp_accounting.GaussianDpEvent(agreed.evaluation.noise_multiplier), releases)
    return float(accountant.get_epsilon(privacy.delta))


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_a_privacy_statement_is_there(item: str, unit: Unit) -> None:
    text = statement(study(kind="deployment", privacy=PATIENTS if unit is Unit.PATIENT else {}), SITE)
    assert re.search(ITEMS[item], text, re.DOTALL), item


@pytest.mark.parametrize("unit", list(Unit))
def test_it_is_a_document_of_one_to_two_pages(unit: Unit) -> None:
    text = statement(study(kind="deployment", privacy=PATIENTS if unit is Unit.PATIENT else {}), SITE)
    assert 700 < len(text.split()) < 1200


@given(
    patients=st.booleans(),
    rate=st.integers(1, 1000).map(lambda x: x / 1000),
    noise=st.integers(800, 9999).map(lambda x: x / 1000),
    clip=st.integers(1, 900).map(lambda x: x / 100),
    steps=st.integers(1, 5),
    spare=st.integers(0, 20),
    releases=st.integers(0, 3),
    multiplier=st.integers(10, 600).map(lambda x: x / 10),
    delta=st.integers(1, 9999).map(lambda x: x * 1e-9),
    band=st.integers(1, 100_000),
    own=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_no_placeholder_is_left_and_every_number_is_the_studys(
    patients: bool,
    rate: float,
    noise: float,
    clip: float,
    steps: int,
    spare: int,
    releases: int,
    multiplier: float,
    delta: float,
    band: int,
    own: bool,
) -> None:
    privacy = {
        **(PATIENTS if patients else {}),
        "epsilon": 1e6,
        "delta": delta,
        "sampling_rate": rate,
        "noise_multiplier": noise,
        "clip_norm": clip,
        "max_charges": 3 + spare,
    }
    raw, _, _ = fields(
        4,
        privacy=privacy,
        training={"steps_per_round": steps},
        evaluation={"releases": releases, "noise_multiplier": multiplier},
    )
    members = raw["roster"]
    assert isinstance(members, list)
    raw["roster"] = [{**members[0], "band": band}, *members[1:]]
    agreed = Study.from_fields(raw)
    site = agreed.roster[0].site_id if own else None
    text = statement(agreed, site)
    assert not re.search(r"[{}]|\bNone\b|\bnan\b", text)

    plan = PrivacyPlan.for_site(agreed, agreed.roster[0].site_id)
    printed = rows(text)
    epsilon = float(printed["epsilon recomputed here"])
    assert plan.epsilon() <= epsilon <= plan.epsilon() + 1e-4
    whole = spent(agreed, steps=plan.steps, releases=releases)
    assert whole <= epsilon + 1e-9
    assert epsilon <= whole * 1.01 + 0.01
    for row, parts in (("training alone", (plan.steps, 0)), ("evaluation alone", (0, releases))):
        shown = float(printed[row].split()[1])
        assert spent(agreed, steps=parts[0], releases=parts[1]) <= shown + 1e-9 if sum(parts) else shown == 0
        assert shown <= epsilon

    said = (
        f"{3 + spare} training charges of {steps} steps and {releases} evaluation release(s)",
        f"rate {rate:.10g}, each unit's gradient clipped to L2 norm {clip:.10g}, Gaussian noise of standard deviation "
        f"{noise:.10g} times",
        f"3 sums are planned and {3 + spare} charges allowed, so {spare} may be repeated",
        f"| steps charged | {steps * (3 + spare)},",
        f"| delta | {delta:.10g} |",
    )
    assert [words for words in said if words not in text] == []

    bands = [member.band for member in agreed.roster]
    sensitivity = 4096 * math.sqrt(2)
    known = [
        *(f"{value:.10g}" for value in (rate, noise, clip, delta, multiplier, 1e6, 2 * delta, 4 * delta)),
        *map(str, (steps, 3 + spare, spare, 3, releases, steps * (3 + spare), 4, 3 if patients else 1)),
        *(f"{value:,}" for value in (min(bands), max(bands), cell_bound(agreed), 4096)),
        *(f"{value:.1f}" for value in (sensitivity, multiplier * sensitivity, 100 * expected_half_width(agreed))),
        f"{math.ceil(round(19.6 * math.sqrt(8) * multiplier * math.sqrt(2), 6)):,}",
        printed["epsilon recomputed here"],
        *(printed[row].split()[1] for row in ("training alone", "evaluation alone")),
        *(f"{math.ceil(k * plan.epsilon() * 1e4) / 1e4:.4f}" for k in (2, 4)),
        f"{math.ceil(plan.epsilon() * 100) / 100:.2f}".rstrip("0").rstrip("."),
    ]
    if own:
        known += [f"{band:,}", f"{rate * band:.10g}"]
    if not patients:
        known += [printed[count].split()[0] for count in ("1", "2", "10")]
    prose = text.replace(agreed.digest, "").replace(accountant_version(), "").replace("e^", " ")
    prose = re.sub(r"site-\d+|[0-9a-f]{4}(-[0-9a-f]{4}){4}", "", prose)
    found = set(re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", prose))
    strange = {number.rstrip(",") for number in found} - set(known) - CONSTANTS
    assert not strange


def test_a_statement_without_evaluation_says_that_nothing_is_released() -> None:
    text = statement(study(evaluation={"releases": 0}))
    assert "Nothing about quality is released." in text
    assert "95 %" not in text


@pytest.mark.parametrize("unit", list(Unit))
def test_unit_and_neighbour_relation_stand_where_epsilon_stands(unit: Unit) -> None:
    text = statement(study(privacy=PATIENTS if unit is Unit.PATIENT else {}))
    assert NEIGHBOUR[unit] in text
    assert f"| unit of privacy | {unit.value} |" in text


def test_a_record_level_study_says_what_it_means_for_a_person_with_many_records() -> None:
    agreed = study()
    plan, text = PrivacyPlan.for_site(agreed, SiteId("site-000")), statement(agreed)
    for records in (1, 2, 10):
        row = next(line for line in text.splitlines() if line.startswith(f"| {records} |"))
        assert float(row.split("|")[2].split()[0]) >= epsilon_for_group(plan, records)
    assert "no protection to speak of" in text
    patients = statement(study(privacy=PATIENTS))
    assert "records of one person" not in patients
    assert "however many records" in patients


def test_a_patient_at_several_sites_reads_what_becomes_of_their_guarantee() -> None:
    agreed = study(privacy=PATIENTS)
    epsilon = PrivacyPlan.for_site(agreed, SITE).epsilon()
    found = re.search(r"at two sites (\S+) and (\S+), at all 4 sites\s+(\S+) and (\S+)\.", statement(agreed))
    assert found
    two, two_delta, everywhere, all_delta = map(float, found.groups())
    assert 0 <= two - 2 * epsilon <= 1e-4
    assert 0 <= everywhere - 4 * epsilon <= 1e-4
    assert (two_delta, all_delta) == (2e-5, 4e-5)


def test_the_statement_of_one_site_names_it_its_band_and_its_key() -> None:
    agreed = study(kind="deployment")
    text = statement(agreed, SITE)
    assert "for site-002: band 100, 25 records expected in a step" in text
    assert fingerprint(agreed.member(SITE).public_key) in text
    assert "Read and approved for site-002" in text
    assert "Read and approved" not in statement(agreed)


def test_an_epsilon_is_never_printed_smaller_than_it_is() -> None:
    for noise in (1.31, 1.57, 2.03):
        agreed = study(privacy={**PATIENTS, "noise_multiplier": noise})
        epsilon = PrivacyPlan.for_site(agreed, SITE).epsilon()
        text = statement(agreed)
        found = re.search(r"factor of e\^([\d.]+),", text)
        assert found
        assert epsilon <= float(found.group(1)) <= epsilon + 0.01
        assert epsilon <= float(rows(text)["epsilon recomputed here"]) <= epsilon + 1e-4


def test_a_simulation_is_said_to_be_one() -> None:
    assert "simulation study" in statement(study())
    assert "simulation study" not in statement(study(kind="deployment"))


def test_a_title_cannot_break_the_page() -> None:
    text = statement(study(title="A {title}\n# with | marks {0}"))
    assert '"A {title} # with | marks {0}", study' in text


@pytest.mark.parametrize(
    "topic", ["compose", "other studies", "Mironov", "how long it takes", "older copy", "outside this"]
)
def test_residual_leaks_are_stated(topic: str) -> None:
    assert topic.lower() in statement(study(kind="deployment")).lower()


@pytest.mark.parametrize("noise", TrainingNoise)
def test_it_says_which_noise_holds_and_whether_rounding_is_within_the_proof(noise: TrainingNoise) -> None:
    agreed = study(kind="deployment", privacy={"noise": noise})
    text = statement(agreed)
    is_discrete = noise is TrainingNoise.DISCRETE
    assert ("discrete Gaussian noise" in rows(text)["mechanism"]) == is_discrete
    assert ("No rounding\nis left outside the proof" in text) == is_discrete
    assert ("rounding is not covered by the proof" in text) != is_discrete
    assert agreed.digest != study(kind="deployment", privacy={"noise": "gaussian"}).digest or not is_discrete


def test_a_study_that_spends_more_than_it_states_has_no_statement() -> None:
    with pytest.raises(ConsiliumError, match="CSL-203"):
        statement(study(privacy={"epsilon": 0.5}))


def test_noise_that_drowns_the_evaluation_is_foreseen() -> None:
    assert expected_half_width(study()) > 0.3
    assert expected_half_width(study(evaluation={"noise_multiplier": 0.5})) < 0.1
    assert expected_half_width(study(evaluation={"noise_multiplier": 500.0})) == 1.0
