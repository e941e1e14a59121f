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
from client.judging import judge
from client.personal import Own, local
from client.training.features import Features
from client.verdict import FALSE_ALARMS, Candidate, Outcome
from common import errors
from common.adapters import Vector
from common.errors import ConsiliumError
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
STUDIES = {"harmless": 200, "level": 200, "swapped": 40, "coarser": 40}
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


def drawn(whole: Notes, kind: str, index: int) -> list[tuple[Features, Features]]:
    """Return (training, held out) of each site of one study; the first is the planted one. The same each time."""
    dice = np.random.default_rng([sorted(STUDIES).index(kind), index])
    rows = dice.permutation(len(whole.everything))[: SITES * (TRAINING + HELD_OUT)]
    sites = []
    for number, part in enumerate(np.array_split(rows, SITES)):
        sides = (_records(whole, part[:TRAINING]), _records(whole, part[TRAINING:]))
        if number == 0 and kind in _PLANTED:
            for side in sides:
                side.targets = np.array(_PLANTED[kind], dtype=np.int64)[side.targets]
        sites.append(sides)
    return sites


def studied(whole: Notes, kind: str, index: int) -> SiteVerdict:
    """Run one study and return the verdict of its first site."""
    model, start = whole.prepared.model, whole.prepared.start
    sites = drawn(whole, kind, index)
    noise = SeededNoise(index, f"verdict/{kind}")
    micro_batch = whole.study.training.micro_batch
    if kind == "level":
        other = Own(model, sites[1][0], start, noise, micro_batch)
        shared: Vector = local(other, PERSONAL, head_alone=False)
    else:
        learners = [Learner(training, 1.0, whole.plan) for training, _ in sites]
        rate = whole.study.privacy.sampling_rate
        shared = train_arm(model, learners, whole.study.training, start, sampling_rate=rate, noise=noise)
    training, held_out = sites[0]
    return judge(whole.study, Own(model, training, start, noise, micro_batch), shared, held_out)


def measure(whole: Notes, kind: str, block: int, size: int = BLOCK) -> Row:
    """Return the row of some studies of one kind."""
    found = [studied(whole, kind, block * size + one) for one in range(size)]
    return {"kind": kind, "block": block, **counted(found)}


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
        "claimed": sum(any(one.is_better is not None for one in at.comparisons) for at in decisions),
        "kept_another": sum(at.keep is not Candidate.SHARED for at in decisions),
        **{f"mean_{candidate.value.replace(' ', '_')}": means[candidate] for candidate in sorted(means)},
    }


def heart(data_dir: Path | None) -> list[Row]:
    """Return a row for each hospital of the heart-disease scenario; none where that scenario is not there yet."""
    try:
        chosen = scenarios.load(scenarios.locate("heart"))
    except ConsiliumError as error:
        if error.fault is not errors.SCENARIO_UNREADABLE:
            raise
        return []
    return federated(chosen, data_dir)


def federated(chosen: Scenario, data_dir: Path | None) -> list[Row]:
    """Run a whole scenario and return each site's verdict on it, by its test records."""
    entropy, progress = EntropySource(None), SilentProgress()
    prepared = prepare(chosen, data_dir, "cpu", progress, Stopwatch())
    consortium = Consortium.draw(tuple(prepared.units), entropy)
    authored = agree(chosen, prepared, privacy_of(chosen), consortium)
    outcome = federate(prepared, authored, consortium, entropy, progress).coordinator.outcome
    study, rows = authored.study.model_copy(update={"personal": PERSONAL}), []
    for site, training in prepared.training.items():
        own = Own(prepared.model, training, prepared.start, noise_of(entropy, site), study.training.micro_batch)
        found = judge(study, own, outcome.vector, prepared.testing[site], side="test")
        rows.append({"kind": chosen.name, "block": site, "said": found.decision.said, **counted([found])})
    return rows


def cells() -> list[tuple[str, int]]:
    """Return (kind, block) of every row."""
    return [(kind, block) for kind, studies in STUDIES.items() for block in range(studies // BLOCK)]


def table(rows: Sequence[Row]) -> str:
    """Return one line a kind: how many verdicts said what, with the 95 % interval of harm."""
    lines = [
        f"{'kind':>9} {'studies':>7} {'harmed':>6} {'interval':>15} {'any claim':>9} {'helped':>6} "
        f"{'kept another':>12} {'shared':>7} {'local':>7}"
    ]
    for kind in dict.fromkeys(str(row["kind"]) for row in rows):
        found = [row for row in rows if row["kind"] == kind]
        studies, harmed, claimed, helped, other = (
            sum(int(row[name] or 0) for row in found)
            for name in ("studies", "harmed", "claimed", "helped", "kept_another")
        )
        low, high = share_interval(harmed, studies, 0.05)
        shared, alone = (
            sum(float(row[name] or 0) * int(row["studies"] or 0) for row in found) / studies
            for name in ("mean_shared", "mean_local_only")
        )
        lines.append(
            f"{kind:>9} {studies:>7} {harmed:>6} {100 * low:>6.1f} to {100 * high:>4.1f} % {claimed:>9} {helped:>6} "
            f"{other:>12} {100 * shared:>6.1f}% {100 * alone:>6.1f}%"
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
        found = heart(chosen.data)
        rows += found
        if found:
            save(chosen.out, rows, "make bench NAME=verdict", _PACKAGES, {"sites": SITES, "records": TRAINING})
        else:
            print("heart: that scenario is not there yet")
    print(table(rows))
    return 0


def _records(whole: Notes, rows: NDArray[np.int64]) -> Features:
    return whole.everything.subset(rows, np.arange(len(rows), dtype=np.int64))
