"""From what a run left behind to its metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from client.data import Examples
from client.evaluation import Judged
from common.identity import SiteId
from common.privacy.accounting import accountant_version
from common.privacy.plan import PrivacyPlan
from common.privacy.released import released_accuracy
from common.privacy.statement import NEIGHBOUR, statement
from common.stopwatch import Stopwatch
from common.study import Study
from common.transfer import RANKED
from simulations import metrics as m
from simulations.arms import Quality
from simulations.comparison import Compared
from simulations.federation import Federation
from simulations.options import Engine
from simulations.preparation import Prepared
from simulations.scenario import Baseline, Scenario

_SOFTWARE = ("consilium", "flwr", "torch", "opacus", "transformers", "peft", "cryptography", "dp-accounting", "duckdb")


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a run was made, for whoever repeats it.

    concerns  what was said of the study before it was signed
    """

    device: str
    threads: int
    command: str
    private: bool
    engine: Engine
    concerns: tuple[str, ...] = ()


def summarise(
    scenario: Scenario,
    prepared: Prepared,
    federation: Federation,
    compared: Mapping[str, Compared],
    majority: Quality | None,
    verdicts: tuple[m.Verdict, ...],
    tuning: m.Tuning | None,
    watch: Stopwatch,
    conditions: Conditions,
) -> m.Metrics:
    """Return the metrics of a finished run."""
    study = federation.authored.study
    own = own_tests(prepared, federation)
    pooled = Quality.pooled(own.values())
    return m.Metrics(
        study_digest=federation.authored.agreement.digest,
        scenario=scenario.name,
        title=scenario.title,
        rounds=study.training.rounds,
        warnings=(
            *m.standing_warnings(private=conditions.private, synthetic=scenario.synthetic, tuned=tuning is not None),
            *conditions.concerns,
            *filter(None, (federation.coordinator.outcome.not_evaluated,)),
        ),
        pooled=m.Score(accuracy=pooled.accuracy, macro_f1=pooled.macro_f1, examples=pooled.examples),
        released=_released(study, federation),
        sites=tuple(_site(site, prepared, federation, compared, own[site]) for site in sorted(own)),
        verdicts=verdicts,
        baselines=_baselines(compared, majority),
        curve=federation.curve,
        privacy=_privacy(study, conditions.private),
        traffic=_traffic(study, federation),
        seconds=m.Seconds(
            total=watch.seconds("total"),
            setup=watch.seconds("setup") - watch.seconds("features"),
            tuning=watch.seconds("tuning"),
            features=watch.seconds("features"),
            training=federation.seconds["training"],
            secagg=federation.seconds["secagg"] + federation.coordinator.watch.seconds("secagg"),
            transport=federation.seconds["transport"],
            evaluation=federation.seconds["evaluation"],
            verdicts=watch.seconds("verdicts"),
            baselines=watch.seconds("baselines"),
        ),
        tuning=tuning,
        software={name: version(name) for name in _SOFTWARE} | {"python": sys.version.split()[0]},
        config=_config(scenario, prepared, conditions),
    )


def own_tests(prepared: Prepared, federation: Federation) -> dict[SiteId, Quality]:
    """Return each site's exact quality, from what its own record says."""
    return {
        site: Quality.of(judged, prepared.testing[site], prepared.task.classes)
        for site, judged in federation.judged.items()
    }


def _released(study: Study, federation: Federation) -> m.Released | None:
    counts = federation.coordinator.outcome.counts
    if counts is None:
        return None
    value, low, high = released_accuracy(counts.values.astype(np.int64), len(counts.survivors), study)
    return m.Released(accuracy=value, low=low, high=high, note="discrete Gaussian noise at each site; 95 % interval")


def _site(
    site: SiteId,
    prepared: Prepared,
    federation: Federation,
    compared: Mapping[str, Compared],
    quality: Quality,
) -> m.SiteMetrics:
    data = next(data for data in prepared.sites if data.site == site)
    plan = PrivacyPlan.for_site(federation.authored.study, site)
    local = compared.get(Baseline.LOCAL_ONLY)
    return m.SiteMetrics(
        id=site,
        accuracy=quality.accuracy,
        macro_f1=quality.macro_f1,
        accuracy_local_only=local.own[site].accuracy if local else None,
        accuracy_local_only_on_pooled=local.pooled[site].accuracy if local else None,
        accuracy_federated_nonprivate=_own_accuracy(compared, Baseline.FEDERATED_NONPRIVATE, site),
        accuracy_centralised=_own_accuracy(compared, Baseline.CENTRALISED_NONPRIVATE, site),
        epsilon=plan.epsilon(),
        delta=plan.delta,
        train_examples=len(data.train),
        test_examples=len(data.test),
        units=prepared.units[site],
        subgroups=_subgroups(data.test, federation.judged[site]),
    )


def _own_accuracy(compared: Mapping[str, Compared], arm: str, site: SiteId) -> float | None:
    return compared[arm].own[site].accuracy if arm in compared else None


def _subgroups(examples: Examples, judged: Judged) -> dict[str, dict[str, m.Group]]:
    right = judged.scores
    groups: dict[str, dict[str, m.Group]] = {}
    for column, values in examples.subgroups.items():
        column_values = np.asarray(values)
        groups[column] = {
            str(value): m.Group(
                accuracy=float(right[column_values == value].mean()), examples=int((column_values == value).sum())
            )
            for value in np.unique(column_values)
        }
    return groups


def _baselines(compared: Mapping[str, Compared], majority: Quality | None) -> m.Baselines:
    def score(quality: Quality) -> m.Baseline:
        return m.Baseline(accuracy=quality.accuracy, macro_f1=quality.macro_f1)

    def pooled(arm: str) -> m.Baseline | None:
        return score(next(iter(compared[arm].pooled.values()))) if arm in compared else None

    local = compared.get(Baseline.LOCAL_ONLY)
    return m.Baselines(
        majority=score(majority) if majority is not None else None,
        local_only=m.LocalOnly(
            accuracy=float(np.mean([quality.accuracy for quality in local.pooled.values()])),
            macro_f1=_mean(quality.macro_f1 for quality in local.pooled.values()),
            own_test_accuracy=float(np.mean([quality.accuracy for quality in local.own.values()])),
        )
        if local
        else None,
        federated_nonprivate=pooled(Baseline.FEDERATED_NONPRIVATE),
        centralised_nonprivate=pooled(Baseline.CENTRALISED_NONPRIVATE),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _privacy(study: Study, private: bool) -> m.PrivacyMetrics:
    plan = PrivacyPlan.for_site(study, study.roster[0].site_id)
    return m.PrivacyMetrics(
        unit=study.privacy.unit.value,
        neighbour=NEIGHBOUR[study.privacy.unit],
        epsilon=plan.epsilon(),
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        steps=plan.steps,
        clip_norm=plan.clip_norm,
        accountant=accountant_version(),
        evaluation_noise_multiplier=plan.evaluation_noise_multiplier,
        statement=statement(study),
        private=private,
    )


def _traffic(study: Study, federation: Federation) -> m.Traffic:
    rounds = federation.coordinator.outcome.rounds
    answers = sum(len(record.survivors) for record in rounds)
    return m.Traffic(
        bytes_up_per_site_round=round(sum(record.bytes_up for record in rounds) / answers),
        bytes_down_per_site_round=round(sum(record.bytes_down for record in rounds) / answers),
        vector_parameters=len(federation.vector),
        bits=study.aggregation.bits,
        messages=federation.coordinator.traffic.messages,
    )


def _config(scenario: Scenario, prepared: Prepared, conditions: Conditions) -> m.Config:
    adapter, manifest = scenario.adapter, prepared.backbone.manifest
    layers = f"last {adapter.last_layers} of {prepared.backbone.layers}" if adapter.last_layers else "all"
    return m.Config(
        backbone=manifest.name,
        revision=manifest.revision,
        licence=manifest.licence,
        method=adapter.method,
        rank=adapter.rank if adapter.method in RANKED else 0,
        layers="none: the head alone" if adapter.method == "head-only" else layers,
        sites=len(prepared.sites),
        task=scenario.task.kind,
        score=scenario.task.score,
        labels=len(scenario.task.known_labels),
        data="generated: synthetic triage notes" if scenario.synthetic else "one query over files",
        synthetic=scenario.synthetic,
        seed=scenario.seed,
        command=conditions.command,
        device=conditions.device,
        threads=conditions.threads,
        engine=conditions.engine.value,
    )
