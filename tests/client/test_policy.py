"""The site's policy: every field of it forbids what it should, `review` shows it, and the daemon refuses it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from client import enrolment, shelf
from client.cli import app
from client.config import SiteConfig
from client.gate import Gate, allow
from client.ledger import SqliteLedger
from client.policy import Policy, Rule, violations
from client.purposes import TERMS, beyond_consent
from common.errors import ConsiliumError
from common.identity import Identity
from common.link.inprocess import OPERATOR_NODE, InProcessGrid
from common.messages import OPERATOR, Envelope, Stage
from common.payloads import dump_round
from common.task_specs import TaskKind
from common.transfer import Method
from server.coordinator import Coordinator
from server.witnesses import MemoryWitnesses
from tests.federations import DIMENSION
from tests.hospitals import SITE, WORKED, Hospital, ask, hospital
from tests.policies import METHODS, OPEN, TASKS
from tests.studies import NOW, Signed, signed_study

GRU, HMB, DS, POA, NRES = "DUO:0000042", "DUO:0000006", "DUO:0000007", "DUO:0000011", "DUO:0000004"
NPUNCU, NPU, NCU, IRB, CARE = "DUO:0000018", "DUO:0000045", "DUO:0000046", "DUO:0000021", "DUO:0000043"


@dataclass(frozen=True)
class Case:
    """A study and a policy of which one forbids the other: what is changed in each, as TOML and as fields."""

    old: str = ""
    new: str = ""
    study: Mapping[str, object] | None = None


CASES: dict[Rule, Case] = {
    Rule.POLICY: Case(OPEN, ""),
    Rule.PURPOSE: Case('["DUO:0000042"]', '["DUO:0000011"]'),
    Rule.LICENCE: Case('["Apache-2.0"]', '["MIT"]'),
    Rule.EPSILON: Case("max_epsilon = 20.0", "max_epsilon = 1.0"),
    Rule.DELTA: Case("max_delta = 1e-4", "max_delta = 1e-6"),
    Rule.NOISE: Case("min_noise_multiplier = 0.5", "min_noise_multiplier = 2.0"),
    Rule.UNIT: Case('unit = "record"', 'unit = "patient"'),
    Rule.COHORT: Case("min_cohort = 3", "min_cohort = 5"),
    Rule.BAND: Case("min_band = 1", "min_band = 101"),
    Rule.PATIENTS: Case("min_patients = 1", "min_patients = 101"),
    Rule.ROUNDS: Case("max_rounds = 1000", "max_rounds = 2"),
    Rule.TASK: Case(f"tasks = {TASKS}", 'tasks = ["regression", "retrieval"]'),
    Rule.METHOD: Case(f"methods = {METHODS}", 'methods = ["head-only"]'),
    Rule.PRETRAINING: Case(
        "pretraining = true",
        "pretraining = false",
        {"pretraining": {"rounds": 1, "objective": {"kind": "causal-language-modelling"}}},
    ),
    Rule.BLOCKS: Case(
        "blocks = true",
        "blocks = false",
        {"aggregation": {"blocks": [{"name": "b", "start": 0, "stop": 50, "sites": ["site-000", "site-001"]}]}},
    ),
    Rule.BUDGET: Case(study={"privacy": {"noise_multiplier": 0.6, "epsilon": 100.0}}, old="= 20.0", new="= 100.0"),
    Rule.KIND: Case(study={"kind": "simulation"}),
    Rule.EXPIRY: Case(study={"expires": "2026-11-25T00:00:00Z"}),
    Rule.SOFTWARE: Case(study={"software": ">=9"}),
    Rule.GUARANTEE: Case(study={"privacy": {"epsilon": 0.5}}),
}
"""One case of each rule that a study under the operator's signature can break; two are below: see OPERATOR, ROSTER."""


def placed(home: Path, rule: Rule) -> Hospital:
    case = CASES[rule]
    made = hospital(home, signed_study(4, **{**WORKED, **(case.study or {})}))
    if case.new or case.old:
        made.policy(case.old, case.new)
    made.offer(made.signed)
    made.agree(made.signed)
    return made


def found(made: Hospital, *, now: datetime = NOW) -> set[Rule]:
    return {one.rule for one in violations(made.signed.study, made.config, book=None, now=now)}


def test_there_is_a_case_of_every_rule() -> None:
    assert CASES.keys() | {Rule.OPERATOR, Rule.ROSTER} == set(Rule)


def test_a_study_within_the_policy_is_not_forbidden_and_runs(tmp_path: Path) -> None:
    made = hospital(tmp_path)
    made.agree(made.signed)
    assert found(made) == set()
    reply = ask(made.daemon(), made.signed)
    assert reply.has_content()
    assert made.spent() > 0


@pytest.mark.parametrize("rule", CASES)
def test_each_violation_is_shown_by_review(rule: Rule, tmp_path: Path) -> None:
    made = placed(tmp_path, rule)
    result = CliRunner().invoke(app, ["study", "review", made.signed.study.digest, "--home", str(tmp_path), "--json"])
    assert result.exit_code == 2, result.output
    shown = json.loads(result.stdout)["violations"]
    assert [one["rule"] for one in shown] == [rule.value] * len(shown)
    assert all(one["found"] and one["allowed"] for one in shown)


@pytest.mark.parametrize("rule", CASES)
def test_each_violation_is_refused_by_the_daemon_before_anything_is_charged(
    rule: Rule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = placed(tmp_path, rule)
    before = made.spent()
    reply = ask(made.daemon(), made.signed)
    assert reply.has_error()
    assert reply.error.reason == "CSL-600 site: unavailable. Mend: ask the site"
    assert (made.spent(), made.left) == (before, [])
    # What the ledger alone decides comes last; nothing else even makes a model.
    assert (made.made == [SITE]) is (rule is Rule.BUDGET)
    said = capsys.readouterr().out
    codes = {
        Rule.KIND: "CSL-108",
        Rule.EXPIRY: "CSL-106",
        Rule.SOFTWARE: "CSL-109",
        Rule.BUDGET: "CSL-204",
    }
    assert codes.get(rule, f"policy forbids the study: {rule.value}:") in said


def test_a_study_of_another_operator_or_without_this_site_is_forbidden(tmp_path: Path) -> None:
    made = hospital(tmp_path)
    other = Identity.generate().public_key.hex()
    made.policy(made.signed.operator.public_key.hex(), other)
    assert found(made) == {Rule.OPERATOR}
    made.policy(other, made.signed.operator.public_key.hex())
    made.policy('site = "site-000"', 'site = "site-009"')
    assert found(made) == {Rule.ROSTER}


def test_a_budget_that_another_study_has_used_forbids_a_second(tmp_path: Path) -> None:
    made = hospital(tmp_path)
    made.agree(made.signed)
    ask(made.daemon(), made.signed)
    second = signed_study(4, **WORKED, title="Another", privacy={"noise_multiplier": 0.8, "epsilon": 20.0})
    folder = made.offer(second)
    result = CliRunner().invoke(app, ["study", "review", str(folder), "--home", str(tmp_path), "--json"])
    assert [one["rule"] for one in json.loads(result.stdout)["violations"]] == ["budget"]


FIELDS = [line for line in OPEN.splitlines() if " = " in line]


@pytest.mark.parametrize("line", FIELDS)
def test_no_field_of_a_policy_has_a_default(line: str, tmp_path: Path) -> None:
    made = hospital(tmp_path)
    made.policy(line + "\n", "")
    with pytest.raises(ConsiliumError, match=f"CSL-531.*policy.{line.split()[0]}: "):
        _ = made.config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["DUO:0000042"]', "[]"),
        ('["DUO:0000042"]', '["DUO:9999999"]'),
        ('["DUO:0000042"]', '["DUO:0000018"]'),
        ('["Apache-2.0"]', '["*"]'),
        ("max_epsilon = 20.0", "max_epsilon = inf"),
        ('["00:00-24:00"]', "[]"),
        (f"tasks = {TASKS}", "tasks = []"),
        (f"tasks = {TASKS}", 'tasks = ["any"]'),
        (f"methods = {METHODS}", 'methods = ["*"]'),
        ('["00:00-24:00"]', '["09:00-09:00"]'),
        ('["00:00-24:00"]', '["24:00-06:00"]'),
        ("blocks = true", "blocks = true\nanything = true"),
    ],
)
def test_a_policy_that_says_nothing_or_everything_is_refused(old: str, new: str, tmp_path: Path) -> None:
    made = hospital(tmp_path)
    made.policy(old, new)
    with pytest.raises(ConsiliumError, match="CSL-531"):
        _ = made.config


def test_the_policy_of_a_new_home_is_read_and_forbids_more_than_an_open_one(tmp_path: Path) -> None:
    enrolment.make_home(tmp_path / "home", site=SITE, passphrase=b"p", source="env:P", data="", backbone="")
    fields = tomllib.loads((tmp_path / "home" / enrolment.FILE).read_text())["policy"]
    strict = Policy.model_validate_json(json.dumps(fields))
    config = hospital(tmp_path / "site").config.model_copy(update={"policy": strict})
    assert {one.rule for one in violations(signed_study(4, **WORKED).study, config, book=None, now=NOW)} >= {
        Rule.PURPOSE,
        Rule.EPSILON,
        Rule.DELTA,
        Rule.UNIT,
    }


@pytest.mark.parametrize(
    ("purpose", "consent", "allowed"),
    [
        ([DS], [GRU], True),
        ([DS], [HMB], True),
        ([HMB], [DS], False),
        ([GRU], [HMB], False),
        ([POA], [HMB], False),
        ([POA], [GRU], True),
        ([GRU], [NRES], True),
        ([NRES], [GRU], False),
        ([DS, POA], [HMB], False),
        ([HMB], [HMB, NPUNCU], False),
        ([HMB, NPUNCU], [HMB, NPUNCU], True),
        ([HMB, NPU, NCU], [HMB, NPUNCU], True),
        ([HMB, NCU], [HMB, NPUNCU], False),
        ([HMB, NPUNCU], [HMB, NCU], True),
        ([HMB, IRB], [HMB], True),
        ([HMB], [HMB, IRB], False),
        ([HMB, CARE], [HMB], False),
        ([HMB, CARE], [HMB, CARE], True),
        ([NPUNCU], [NRES], False),
        ([HMB, "DUO:9999999"], [NRES], False),
    ],
)
def test_a_purpose_is_within_a_consent_as_duo_orders_them(
    purpose: list[str], consent: list[str], allowed: bool
) -> None:
    assert (not beyond_consent(purpose, consent)) is allowed


@given(st.sets(st.sampled_from(sorted(TERMS)), min_size=1), st.sets(st.sampled_from(sorted(TERMS))))
def test_a_condition_more_in_the_consent_never_allows_more(purpose: set[str], consent: set[str]) -> None:
    conditions = {code for code in consent if not TERMS[code].permission}
    if beyond_consent(purpose, consent - conditions):
        assert beyond_consent(purpose, consent)


RELAXED: dict[str, object] = {
    "purposes": (NRES,),
    "licences": ("Apache-2.0", "MIT"),
    "max_epsilon": 1e6,
    "max_delta": 0.5,
    "min_noise_multiplier": 1e-6,
    "unit": "record",
    "min_cohort": 3,
    "min_band": 1,
    "min_patients": 1,
    "max_rounds": 10**6,
    "tasks": get_args(TaskKind),
    "methods": get_args(Method),
    "pretraining": True,
    "blocks": True,
    "hours": ("00:00-24:00",),
    "manual_rounds": False,
}
STRICT: dict[Rule, dict[str, object]] = {
    Rule.PURPOSE: {"purposes": (POA,)},
    Rule.LICENCE: {"licences": ("MIT",)},
    Rule.EPSILON: {"max_epsilon": 0.1},
    Rule.DELTA: {"max_delta": 1e-9},
    Rule.NOISE: {"min_noise_multiplier": 50.0},
    Rule.UNIT: {"unit": "patient"},
    Rule.COHORT: {"min_cohort": 100},
    Rule.BAND: {"min_band": 10**6},
    Rule.PATIENTS: {"min_patients": 10**6},
    Rule.ROUNDS: {"max_rounds": 1},
    Rule.TASK: {"tasks": ("image-classification",)},
    Rule.METHOD: {"methods": ("full", "bitfit")},
    Rule.PRETRAINING: {"pretraining": False},
    Rule.BLOCKS: {"blocks": False},
}
BLOCKED = signed_study(4, **WORKED, **{**(CASES[Rule.BLOCKS].study or {}), **(CASES[Rule.PRETRAINING].study or {})})
"""A study that breaks every rule of :data:`STRICT`."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    return hospital(tmp_path_factory.mktemp("base"), BLOCKED).config


@given(rule=st.sampled_from(sorted(STRICT)), others=st.sets(st.sampled_from(sorted(STRICT))))
def test_what_one_field_forbids_stays_forbidden_however_lenient_or_strict_the_others_are(
    base: SiteConfig, rule: Rule, others: set[Rule]
) -> None:
    fields = dict(RELAXED)
    for strict in {rule, *others}:
        fields |= STRICT[strict]
    config = base.model_copy(update={"policy": Policy.model_validate_json(json.dumps(fields))})
    assert {one.rule for one in violations(BLOCKED.study, config, book=None, now=NOW)} == {rule, *others}


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 12, 1, hour, minute)


@pytest.mark.parametrize(
    ("hours", "moment", "trains"),
    [
        ("00:00-24:00", at(0), True),
        ("00:00-24:00", at(23, 59), True),
        ("09:00-17:00", at(9), True),
        ("09:00-17:00", at(16, 59), True),
        ("09:00-17:00", at(17), False),
        ("09:00-17:00", at(8, 59), False),
        ("22:00-06:00", at(23), True),
        ("22:00-06:00", at(5, 59), True),
        ("22:00-06:00", at(6), False),
        ("22:00-06:00", at(21, 59), False),
    ],
)
def test_hours_hold_their_first_minute_and_not_their_end_also_over_midnight(
    hours: str, moment: datetime, trains: bool
) -> None:
    policy = Policy.model_validate_json(json.dumps({**RELAXED, "hours": [hours]}))
    assert policy.trains_at(moment) is trains


def gate(tmp_path: Path, signed: Signed, *, now: datetime = NOW, is_here: bool = True, **changes: object) -> Gate:
    policy = Policy.model_validate_json(json.dumps({**RELAXED, **changes}))
    return Gate(policy, signed.study, tmp_path, is_here=lambda: is_here, clock=lambda: now)


def fit(signed: Signed, index: int) -> Envelope:
    return Envelope(signed.study.digest, Stage.FIT, 1, 0, OPERATOR, SITE, {"round": dump_round(index)})


def test_a_round_waits_for_the_hand_that_allows_it_and_no_other_round_does(tmp_path: Path) -> None:
    signed = signed_study()
    made = gate(tmp_path, signed, manual_rounds=True)
    with pytest.raises(ConsiliumError, match=r"CSL-162.*round 2 "):
        made(Stage.FIT, fit(signed, 1))
    allow(tmp_path, signed.study.digest, rounds=[2], evaluation=False)
    made(Stage.FIT, fit(signed, 1))
    with pytest.raises(ConsiliumError, match=r"CSL-162.*round 3 "):
        made(Stage.FIT, fit(signed, 2))
    counts = Envelope(signed.study.digest, Stage.COUNTS, 4, 0, OPERATOR, SITE, {})
    with pytest.raises(ConsiliumError, match=r"CSL-162.*evaluation"):
        made(Stage.COUNTS, counts)
    allow(tmp_path, signed.study.digest, rounds=[], evaluation=True)
    made(Stage.COUNTS, counts)
    made(Stage.FIT, fit(signed, 1))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"study":"' + b"0" * 64 + b'","rounds":[1,2,3]}'])
def test_a_file_that_is_not_this_studys_allows_nothing(content: bytes, tmp_path: Path) -> None:
    signed = signed_study()
    allow(tmp_path, signed.study.digest, rounds=[1], evaluation=False)
    (file,) = (tmp_path / "allowed").iterdir()
    file.write_bytes(content)
    with pytest.raises(ConsiliumError, match="CSL-162"):
        gate(tmp_path, signed, manual_rounds=True)(Stage.FIT, fit(signed, 0))


def test_outside_the_hours_of_this_machine_nothing_is_computed(tmp_path: Path) -> None:
    signed = signed_study()
    now = datetime(2026, 12, 1, 12, tzinfo=UTC)
    local = now.astimezone()
    open_, shut = f"{local:%H}:00-{local:%H}:59", f"{(local.hour + 2) % 24:02d}:00-{(local.hour + 3) % 24:02d}:00"
    gate(tmp_path, signed, now=now, hours=[open_])(Stage.FIT, fit(signed, 0))
    with pytest.raises(ConsiliumError, match="CSL-161"):
        gate(tmp_path, signed, now=now, hours=[shut])(Stage.FIT, fit(signed, 0))


def test_a_study_that_was_withdrawn_while_it_was_open_is_computed_for_no_more(tmp_path: Path) -> None:
    signed = signed_study()
    with pytest.raises(ConsiliumError, match="CSL-107"):
        gate(tmp_path, signed, is_here=False)(Stage.FIT, fit(signed, 0))


def rounds_of(
    tmp_path: Path, change: Callable[[Hospital], None], after: Callable[[Hospital, int], None] = lambda *_: None
) -> tuple[Hospital, list[bool]]:
    """Run a study among five hospitals' daemons; returns the last of them, and in which rounds its update was."""
    signed = signed_study(5, **WORKED)
    places = [hospital(tmp_path / site, signed, site=site) for site in sorted(signed.sites)]
    last = places[-1]
    change(last)
    for place in places:
        place.agree(signed)
    daemons = [place.daemon() for place in places]
    coordinator = Coordinator(
        signed.agreement,
        signed.operator,
        np.zeros(DIMENSION, dtype=np.float32),
        witnesses=MemoryWitnesses(),
        on_round=lambda record, _vector: after(last, record.round_index),
    )
    nodes = {OPERATOR_NODE + 1 + at: cast(ClientApp, daemon) for at, daemon in enumerate(daemons)}
    outcome = coordinator.run(InProcessGrid(nodes))
    for daemon in daemons:
        daemon.close()
    return last, [last.site in record.survivors for record in outcome.rounds]


def charges(place: Hospital) -> list[Stage]:
    with SqliteLedger(place.config.ledger_file) as ledger:
        return [key.stage for key in ledger.charges(place.signed.study.digest)]


def test_a_site_is_in_those_rounds_that_were_allowed_by_hand_and_pays_for_no_other(tmp_path: Path) -> None:
    def change(last: Hospital) -> None:
        last.policy("manual_rounds = false", "manual_rounds = true")
        allow(last.config.state, last.signed.study.digest, rounds=[2], evaluation=True)

    last, took_part = rounds_of(tmp_path, change)
    assert took_part == [False, True, False]
    assert charges(last) == [Stage.FIT, Stage.COUNTS]


def test_a_site_outside_its_hours_is_in_no_round_and_pays_for_none(tmp_path: Path) -> None:
    local = NOW.astimezone()
    shut = f"{(local.hour + 2) % 24:02d}:00-{(local.hour + 3) % 24:02d}:00"
    last, took_part = rounds_of(tmp_path, lambda place: place.policy("00:00-24:00", shut))
    assert took_part == [False, False, False]
    assert charges(last) == []


def test_a_site_that_withdraws_between_two_rounds_is_in_none_that_follows(tmp_path: Path) -> None:
    def after(last: Hospital, index: int) -> None:
        if index == 0:
            shelf.withdraw(last.config, shelf.find(last.config, last.signed.study.digest), NOW)

    last, took_part = rounds_of(tmp_path, lambda _: None, after)
    assert took_part == [True, False, False]
    assert charges(last) == [Stage.FIT]
