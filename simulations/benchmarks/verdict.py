"""Whether a site's verdict finds the studies that harm it, and how often it accuses one that does not.

Studies of ten sites are drawn from the demo's notes, features of MiniLM under a head: each site gets records of its
own, trains under real DP-SGD with the others, and one of them judges by the product's own code. Planted harm: a site
that records two labels the other way round, or that knows only two of the four. Level: the "shared" model is another
site's own, as good as this one's by construction. Heart disease at its four hospitals, where that scenario is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.judgement import SiteVerdict
from client.judging import fitted, judge, scored, weigh
from client.personal import Own, local
from client.training.features import Features
from client.verdict import ALONE, FALSE_ALARMS, Candidate, Outcome
from common.adapters import Vector
from common.privacy.plan import PrivacyPlan
from common.stopwatch import Stopwatch
from common.study import Study
from common.transfer import AdapterSpec, Personal
from simulations import scenario as scenarios
from simulations.arms import Learner, train_arm
from simulations.audit.bounds import share_interval
from simulations.authoring import Consortium, privacy_of
from simulations.benchmarks._rows import Row, kept, save
from simulations.engines import EntropySource
from simulations.federation import agree, federate
from simulations.hosting import noise_of
from simulations.noise import SeededNoise
from simulations.preparation import Prepared, prepare
from simulations.progress import SilentProgress
from simulations.scenario import Scenario

OUT = Path("runs/bench/verdict.json")
SITES = 10
TRAINING, HELD_OUT = 120, 80
"""Records of each site, one a unit."""
BLOCK = 20
"""Studies of a row."""
STUDIES = {"harmless": 200, "level": 100, "swapped": 40, "coarser": 40}
PERSONAL = Personal(method="head", steps=60)
_PLANTED: Mapping[str, Sequence[int]] = {"swapped": (0, 2, 1, 3), "coarser": (1, 1, 3, 3)}
"""What the planted site records in place of each of the four labels."""
_PACKAGES = ("torch", "numpy", "flwr")


@dataclass(frozen=True, slots=True)
class Notes:
    """Every record that studies are drawn from, and the study that they follow."""

    prepared: Prepared
    study: Study
    everything: Features

    @property
    def plan(self) -> PrivacyPlan:
        """How each site trains: the scenario's plan, for sites of the size that is drawn."""
        plan = PrivacyPlan.for_site(self.study, self.study.roster[0].site_id)
        return replace(plan, population=TRAINING)


def notes(base: Scenario | None = None) -> Notes:
    """Compute the features of the demo's notes (or another scenario's) once, under a head alone."""
    chosen = base or scenarios.load(scenarios.locate("demo"))
    chosen = chosen.model_copy(update={"adapter": AdapterSpec(method="head-only")})
    prepared = prepare(chosen, None, "cpu", SilentProgress(), Stopwatch())
    consortium = Consortium.draw(tuple(prepared.units), EntropySource(None))
    study = agree(chosen, prepared, privacy_of(chosen), consortium).study.model_copy(update={"personal": PERSONAL})
    everything = Features.joined((*prepared.training.values(), *prepared.testing.values()))
    return Notes(prepared, study, everything)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One study's sites as (training, held out), the planted one first, and what else that one's patients would say."""

    sites: tuple[tuple[Features, Features], ...]
    elsewhere: Features


def drawn(whole: Notes, kind: str, index: int) -> Drawn:
    """Return the records of one study; the same each time."""
    dice = np.random.default_rng([sorted(STUDIES).index(kind), index])
    rows = dice.permutation(len(whole.everything))
    taken, rest = np.split(rows, [SITES * (TRAINING + HELD_OUT)])
    sites = tuple(
        (_records(whole, part[:TRAINING]), _records(whole, part[TRAINING:])) for part in np.array_split(taken, SITES)
    )
    elsewhere = _records(whole, rest)
    for side in (*sites[0], elsewhere):
        if kind in _PLANTED:
            side.targets = np.array(_PLANTED[kind], dtype=np.int64)[side.targets]
    return Drawn(sites, elsewhere)


def studied(whole: Notes, kind: str, index: int) -> tuple[SiteVerdict, bool]:
    """Run one study; return its first site's verdict, and whether the shared model really is worse there.

    What is real is read off all notes that the study did not see, many times as many as the site judges by.
    """
    model, start = whole.prepared.model, whole.prepared.start
    made = drawn(whole, kind, index)
    noise = SeededNoise(index, f"verdict/{kind}")
    micro_batch = whole.study.training.micro_batch
    if kind == "level":
        other = Own(model, made.sites[1][0], start, noise, micro_batch)
        shared: Vector = local(other, PERSONAL, head_alone=False)
    else:
        learners = [Learner(training, 1.0, whole.plan) for training, _ in made.sites]
        rate = whole.study.privacy.sampling_rate
        shared = train_arm(model, learners, whole.study.training, start, sampling_rate=rate, noise=noise)
    training, held_out = made.sites[0]
    own = Own(model, training, start, noise, micro_batch)
    candidates = fitted(whole.study, own, shared)
    truth = {name: float(scored(model, vector, made.elsewhere).mean()) for name, vector in candidates.items()}
    is_worse = any(truth[Candidate.SHARED] < truth[name] for name in ALONE if name in truth)
    return weigh(whole.study, own, candidates, held_out), is_worse


def measure(whole: Notes, kind: str, block: int, size: int = BLOCK) -> Row:
    """Return the row of some studies of one kind."""
    found = [studied(whole, kind, block * size + one) for one in range(size)]
    accused = sum(one.decision.outcome is Outcome.HARMED and not is_worse for one, is_worse in found)
    worse = sum(is_worse for _, is_worse in found)
    return {"kind": kind, "block": block, **counted([one for one, _ in found]), "worse": worse, "accused": accused}


def counted(found: Sequence[SiteVerdict]) -> Row:
    """Count outcomes, claims of any kind, and what was kept; means of the candidates' scores."""
    decisions = [one.decision for one in found]
    means = {
        candidate: float(np.mean([one.mean for at in decisions for one in at.standings if one.candidate is candidate]))
        for candidate in {standing.candidate for at in decisions for standing in at.standings}
    }
    return {
        "studies": len(found),
        **{outcome.value: sum(at.outcome is outcome for at in decisions) for outcome in Outcome},
        "claims": sum(any(one.is_better is not None for one in at.comparisons) for at in decisions),
        "another": sum(at.keep is not Candidate.SHARED for at in decisions),
        **{f"mean_{candidate.value.replace(' ', '_')}": means[candidate] for candidate in sorted(means)},
    }


def heart(data_dir: Path) -> list[Row]:
    """Return a row for each hospital of the heart-disease scenario, with one layer and half its rounds.

    Every site fits an adapter of its own at three rates and once more, which is most of some ten minutes on one core.
    """
    chosen = scenarios.load(scenarios.locate("heart"))
    adapter = chosen.adapter.model_copy(update={"last_layers": 1})
    training = chosen.training.model_copy(update={"rounds": 15})
    changed = chosen.model_copy(update={"adapter": adapter, "training": training})
    return federated(changed, data_dir, PERSONAL.model_copy(update={"steps": 30}))


def federated(chosen: Scenario, data_dir: Path | None, personal: Personal) -> list[Row]:
    """Run a whole scenario and return each site's verdict on it, by its test records."""
    entropy, progress = EntropySource(None), SilentProgress()
    prepared = prepare(chosen, data_dir, "cpu", progress, Stopwatch())
    consortium = Consortium.draw(tuple(prepared.units), entropy)
    authored = agree(chosen, prepared, privacy_of(chosen), consortium)
    outcome = federate(prepared, authored, consortium, entropy, progress).coordinator.outcome
    study, rows = authored.study.model_copy(update={"personal": personal}), []
    for site, training in prepared.training.items():
        own = Own(prepared.model, training, prepared.start, noise_of(entropy, site), study.training.micro_batch)
        found = judge(study, own, outcome.vector, prepared.testing[site], side="test")
        rows.append({"kind": chosen.name, "block": site, "said": found.decision.said, **counted([found])})
    return rows


def cells() -> list[tuple[str, int]]:
    """Return (kind, block) of every row."""
    return [(kind, block) for kind, studies in STUDIES.items() for block in range(studies // BLOCK)]


def table(rows: Sequence[Row]) -> str:
    """Return one line a kind.

    worse    studies whose shared model really is worse; accused those called harmed that are not, with the interval of
             their share, 95 %. Not known of real data
    claims   studies of which any difference was claimed; another those after which another candidate was kept
    """
    names = ("worse", "harmed", "accused", "claims", "helped", "another")
    head = " ".join(f"{name:>7}" for name in names)
    lines = [f"{'kind':>9} {'studies':>7} {head} {'accused of all':>15} {'shared':>7} {'local':>7}"]
    for kind in dict.fromkeys(str(row["kind"]) for row in rows):
        found = [row for row in rows if row["kind"] == kind]
        studies = sum(int(row["studies"] or 0) for row in found)
        counts = {name: _summed(found, name) for name in names}
        accused = counts["accused"]
        low, high = (0.0, 1.0) if accused is None else share_interval(accused, studies, 0.05)
        shared, alone = (
            sum(float(row[name] or 0) * int(row["studies"] or 0) for row in found) / studies
            for name in ("mean_shared", "mean_local_only")
        )
        shown = " ".join(f"{'-' if counts[name] is None else counts[name]:>7}" for name in names)
        lines.append(
            f"{kind:>9} {studies:>7} {shown} {100 * low:>5.1f} to {100 * high:>4.1f} % {100 * shared:>6.1f}% "
            f"{100 * alone:>6.1f}%"
        )
    return "\n".join([*lines, f"stated: any claim at all in at most {FALSE_ALARMS:.0%} of studies that change nothing"])


def main(argv: Sequence[str]) -> int:
    """Run the studies that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=verdict")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--data", type=Path, help="folder with the public data sets, for heart disease")
    chosen = parser.parse_args(argv)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["kind"], row["block"]) for row in rows}
    missing = [cell for cell in cells() if cell not in done]
    whole = notes() if missing else None
    for kind, block in missing:
        assert whole is not None, "computed above"
        rows.append(measure(whole, kind, block))
        save(chosen.out, rows, "make bench NAME=verdict", _PACKAGES, {"sites": SITES, "records": TRAINING})
        print(f"{kind}, studies {block * BLOCK + 1} to {(block + 1) * BLOCK}: done", flush=True)
    if not any(row["kind"] == "heart" for row in rows):
        if chosen.data is None:
            print("heart: give the folder of the public data sets with --data")
        else:
            rows += heart(chosen.data)
            save(chosen.out, rows, "make bench NAME=verdict", _PACKAGES, {"sites": SITES, "records": TRAINING})
    print(table(rows))
    return 0


def _records(whole: Notes, rows: NDArray[np.int64]) -> Features:
    return whole.everything.subset(rows, np.arange(len(rows), dtype=np.int64))


def _summed(rows: Sequence[Row], name: str) -> int | None:
    """Return the sum of a count; None where a row does not know it."""
    found = [row.get(name) for row in rows]
    return None if None in found else sum(int(value or 0) for value in found)
