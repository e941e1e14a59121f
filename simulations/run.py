"""One scenario from its file to its report: prepare, agree, train, compare, write.

The study runs through the real coordinator and the real sites. What is exact (per site, curve, baselines) comes from
the sites' own records, because a simulator may read them; a real operator sees the released figure alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from client.preflight import check
from client.training.precision import Precision, fastest_precision
from client.training.store import FeatureStore
from common.adapters import AdaptedModel
from common.stopwatch import Stopwatch
from server.release import write_release
from simulations import metrics
from simulations.authoring import Consortium, draft, foreseen, privacy_of, sign_and_approve
from simulations.comparison import FEDERATED, Compared, Comparison
from simulations.engines import EntropySource
from simulations.federation import federate
from simulations.hosting import noise_of
from simulations.options import Engine
from simulations.outputs import make_folder
from simulations.preparation import prepare, resolve_device
from simulations.progress import Progress
from simulations.report import write_report
from simulations.scenario import Baseline, Scenario
from simulations.stacked import StackedTraining
from simulations.summary import Conditions, summarise
from simulations.verdicts import verdicts


def run_scenario(
    scenario: Scenario,
    data_dir: Path | None,
    out: Path,
    *,
    baselines: frozenset[str],
    device: str,
    threads: int,
    progress: Progress,
    engine: Engine = Engine.INLINE,
    noise_seed: int | None = None,
    store: FeatureStore | None = None,
    command: str = "",
) -> metrics.Metrics:
    """Run a scenario and write ``metrics.json``, ``report.html`` and the release below ``out``.

    baselines   names of :class:`Baseline`
    device      ``auto``, ``cpu`` or ``cuda:N``
    threads     torch's threads; 0 leaves torch's choice
    engine      how the sites are run; what they agree on and what is released does not depend on it
    noise_seed  None for private noise; a seed makes the run repeatable and NOT PRIVATE, and every output says so. Only
                Python code can give it: no scenario, option or environment variable does (RULES 15).
    store       where frozen prefixes are kept when memory would not hold them; None keeps them in memory

    Raises the coded error of whatever is wrong with the scenario, its data, its backbone or the output folder;
    nothing is written then.
    """
    watch, entropy = Stopwatch(), EntropySource(noise_seed)
    if threads:
        torch.set_num_threads(threads)
    with watch.timed("total"):
        privacy = privacy_of(scenario)
        with watch.timed("setup"):
            # A run that must repeat keeps to one arithmetic; any other takes the fastest that this machine has.
            precision = fastest_precision() if noise_seed is None else Precision.FULL

            def accept(model: AdaptedModel) -> None:
                progress.note(check(model).summary())
                if engine is Engine.STACKED:
                    # Refused here or not at all: what a study trains is known before an hour of tuning.
                    StackedTraining(model, scenario.training, scenario.privacy.noise)

            prepared = prepare(
                scenario,
                data_dir,
                resolve_device(device),
                progress,
                watch,
                precision=precision,
                store=store,
                accept=accept,
            )
        consortium = Consortium.draw(tuple(prepared.units), entropy)
        write = partial(
            draft,
            manifest=prepared.backbone.manifest,
            units=prepared.units,
            dimension=prepared.model.dimension,
            blocks=prepared.blocks,
            privacy=privacy,
            consortium=consortium,
            stream=prepared.stream,
        )
        concerns = foreseen(write(scenario), prepared.tested_units)
        for concern in concerns:
            progress.note(concern)
        comparison = Comparison(scenario, prepared, privacy, progress, noise_of(entropy, "arms"))
        arms = [arm.value for arm in Baseline if arm in baselines and arm is not Baseline.MAJORITY]
        with watch.timed("tuning"):
            settings, tuning = comparison.tune([FEDERATED, *arms])
        scenario = scenario.model_copy(update={"training": settings[FEDERATED]})
        authored = sign_and_approve(write(scenario), consortium)
        federation = federate(prepared, authored, consortium, entropy, progress, engine=engine)
        with watch.timed("verdicts"):
            own = verdicts(authored.study, prepared, federation.vector, entropy, progress) if scenario.judges else ()
        with watch.timed("baselines"):
            compared: dict[str, Compared] = {}
            for arm in arms:
                progress.phase(f"baseline {arm}", comparison.rounds_of(arm))
                compared[arm] = comparison.run(arm, settings[arm])
            majority = comparison.majority() if Baseline.MAJORITY in baselines else None
    result = summarise(
        scenario,
        prepared,
        federation,
        compared,
        majority,
        own,
        tuning,
        watch,
        Conditions(
            resolve_device(device),
            torch.get_num_threads(),
            command,
            private=noise_seed is None,
            engine=engine,
            concerns=concerns,
        ),
    )
    make_folder(out)
    prepared.model.write_vector(federation.vector)
    write_release(out / "release", prepared.model, authored.signed, authored.approvals, private=noise_seed is None)
    metrics.write(result, out / "metrics.json")
    write_report(result, authored.study, out / "report.html")
    return result
