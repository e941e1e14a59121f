"""Invented runs, for tests of what is said about runs."""

from __future__ import annotations

import math

import numpy as np

from client.verdict import Candidate, decide
from common.study import Study
from simulations.metrics import (
    Baseline,
    Baselines,
    Config,
    CurvePoint,
    Group,
    LocalOnly,
    Metrics,
    PrivacyMetrics,
    Released,
    Score,
    Seconds,
    SiteMetrics,
    Traffic,
    Trial,
    Tuning,
    Verdict,
    standing_warnings,
)
from tests.studies import fields

STATEMENT = """# What this study guarantees

Each site guarantees **(8, 10^-5)-differential privacy** to each patient, for its whole
participation, by `DP-SGD` on its own machine.

## Numbers
| | |
|---|---|
| unit | patient |
| epsilon | 7.9931 |

- Neighbours: two data sets that differ by all records of one patient.
- Sampling: Poisson, q = 0.05,
  empty batches included.

What remains: taking part or not is visible to the operator.
"""


def study(sites: int = 4, **changes: object) -> Study:
    """Return a study of the size asked for, with the fields a report prints."""
    told: dict[str, object] = {
        "title": "Triage of notes in four hospitals",
        "purpose": {"duo": ["DUO:0000007"], "statement": "Route incoming notes to the right team."},
        "backbone": {
            "name": "all-MiniLM-L6-v2",
            "source": "sentence-transformers/all-MiniLM-L6-v2",
            "revision": "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
            "training_data": "one billion sentence pairs from public sources; no clinical text known",
        },
        "task": {"labels": ["urgent", "routine", "refer", "advise"], "max_tokens": 128},
        "adapter": {"rank": 8, "last_layers": 2},
        "training": {"rounds": 20, "steps_per_round": 8},
        "privacy": {"unit": "patient", "max_records_per_unit": 4, "max_charges": 24, "sampling_rate": 0.05},
    } | changes
    made = fields(sites, **told)[0]
    if isinstance(told["task"], dict) and "kind" in told["task"]:
        # Of another kind, nothing is left of the usual task.
        made["task"] = told["task"]
    return Study.from_fields(made)


def run(
    agreed: Study,
    *,
    private: bool = False,
    synthetic: bool = True,
    baselines: bool = True,
    released: bool = True,
    tuned: bool = True,
    judged: bool = False,
    names: tuple[str, ...] = (),
    title: str = "",
    command: str = "consilium-sim run demo.toml --data . --out runs/demo --baselines all",
) -> Metrics:
    """Return metrics of a run of `agreed`, with smooth invented figures."""
    ids = names or tuple(member.site for member in agreed.roster)
    rounds = agreed.training.rounds
    chooses = agreed.task.kind in ("text-classification", "image-classification")
    nonprivate = Baseline(accuracy=0.8846, macro_f1=0.8701)
    return Metrics(
        study_digest=agreed.digest,
        scenario="demo",
        title=title or agreed.title,
        rounds=rounds,
        warnings=standing_warnings(private=private, synthetic=synthetic, tuned=tuned),
        pooled=Score(accuracy=0.8731, macro_f1=0.8572 if chooses else None, examples=1812),
        released=Released(accuracy=0.8702, low=0.8511, high=0.8893, note="discrete Gaussian at each site, 95%")
        if released
        else None,
        sites=tuple(site(index, name, len(ids), baselines=baselines) for index, name in enumerate(ids)),
        verdicts=tuple(verdict(index, name) for index, name in enumerate(ids)) if judged else (),
        baselines=Baselines(
            majority=Baseline(accuracy=0.4127, macro_f1=0.1461),
            local_only=LocalOnly(accuracy=0.8093, own_test_accuracy=0.8274, macro_f1=0.7811),
            federated_nonprivate=nonprivate,
            centralised_nonprivate=Baseline(accuracy=0.8921),
        )
        if baselines
        else Baselines(),
        curve=tuple(
            CurvePoint(
                round=number,
                accuracy=0.88 - 0.5 * math.exp(-number / 4) + 0.008 * math.sin(3 * number),
                learning_rate=0.05 * (1 + math.cos(math.pi * number / rounds)) if number else None,
                update_norm=0.9 * math.exp(-number / 9) + 0.05 * math.cos(5 * number) ** 2 if number else None,
            )
            for number in range(rounds + 1)
        ),
        privacy=PrivacyMetrics(
            unit="patient",
            neighbour="add or remove one patient with all their records",
            epsilon=7.9931,
            delta=1e-5,
            noise_multiplier=0.7312,
            sampling_rate=0.05,
            steps=192,
            clip_norm=1.0,
            accountant="PLD, dp-accounting 0.6.0",
            evaluation_noise_multiplier=5.0 if released else None,
            statement=STATEMENT,
            private=private,
        ),
        traffic=Traffic(
            bytes_up_per_site_round=55_312,
            bytes_down_per_site_round=101_977,
            vector_parameters=26_124,
            bits=16,
            messages=1_288,
        ),
        seconds=Seconds(
            total=171.3,
            setup=4.2,
            features=31.7,
            tuning=0.4 if tuned else 0.0,
            training=62.4,
            secagg=6.1,
            transport=2.2,
            evaluation=7.9,
            baselines=55.0 if baselines else 0.0,
        ),
        tuning=Tuning(
            trials=(
                Trial(arm="federated", settings={"learning_rate": 0.5}, accuracy=0.861, chosen=False),
                Trial(arm="federated", settings={"learning_rate": 1.0}, accuracy=0.874, chosen=True),
                Trial(arm="local_only", settings={"learning_rate": 0.5}, accuracy=0.822, chosen=True),
            )
        )
        if tuned
        else None,
        software={"consilium": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0", "python": "3.11.2"},
        config=Config(
            backbone=agreed.backbone.name,
            revision=agreed.backbone.revision,
            licence=agreed.backbone.licence,
            method=agreed.adapter.method,
            rank=agreed.adapter.rank,
            layers="last 2 of 6",
            sites=len(ids),
            task=agreed.task.kind,
            score=agreed.task.score,
            labels=len(agreed.task.known_labels),
            data="synthetic triage notes, 4 hospitals" if synthetic else "medquad.parquet by one SELECT",
            synthetic=synthetic,
            seed=7,
            command=command,
        ),
    )


def site(index: int, name: str, of: int, *, baselines: bool) -> SiteMetrics:
    """Return one invented site; with several, the last loses a little by federation."""
    wave = math.sin(1.7 * index)
    mine = 0.865 + 0.05 * wave
    tests = 60 + (index * 97) % 400
    alone = mine - 0.065 + 0.03 * math.cos(2.3 * index) if index < of - 1 else mine + 0.012
    return SiteMetrics(
        id=name,
        accuracy=mine,
        macro_f1=mine - 0.02,
        accuracy_local_only=alone if baselines else None,
        accuracy_local_only_on_pooled=alone - 0.02 if baselines else None,
        accuracy_federated_nonprivate=mine + 0.011 if baselines else None,
        accuracy_centralised=mine + 0.019 - 0.01 * wave if baselines else None,
        epsilon=7.9931,
        delta=1e-5,
        train_examples=4 * tests,
        test_examples=tests,
        units=2 * tests,
        subgroups={
            "age": {
                "under 18": Group(accuracy=mine - 0.03, examples=tests // 9),
                "18 to 64": Group(accuracy=mine, examples=tests // 2),
                "65 and over": Group(accuracy=mine + 0.01, examples=tests // 3),
            },
            "interpreter": {"yes": Group(accuracy=0.7, examples=5), "no": Group(accuracy=mine, examples=tests - 5)},
        },
    )


def verdict(index: int, name: str) -> Verdict:
    """Return one invented site's verdict, by turns a good, a bad and an open one; the fourth has no personal model."""
    shared, other = (0.9, 0.6) if index % 3 == 0 else (0.5, 0.9) if index % 3 == 1 else (0.7, 0.7)
    scores = {Candidate.SHARED: shared, Candidate.BACKBONE: other, Candidate.LOCAL: other, Candidate.PERSONAL: shared}
    if index == 3:
        del scores[Candidate.PERSONAL]
    units = 40 + index
    found = {candidate: np.arange(units) < share * units for candidate, share in scores.items()}
    decision = decide({candidate: hits.astype(np.float64) for candidate, hits in found.items()})
    return Verdict(id=name, units=units, side="test" if index == 2 else "validation", decision=decision)
