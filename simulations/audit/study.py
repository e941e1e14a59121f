"""One audit from its scenario to its findings: prepare, plant, play, judge.

The study is prepared, authored and trained by the code that runs it; what is the audit's own are canaries at one site
and what the attacker reads of its deltas. Coins and noise come from the operating system.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.preflight import check
from client.training.features import Features
from client.training.precision import Precision
from common import errors
from common.adapters import Vector
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.plan import PrivacyPlan
from common.stopwatch import Stopwatch
from common.study import Study, TrainingNoise
from simulations.audit.bounds import best_bound
from simulations.audit.canaries import plant
from simulations.audit.coins import Coins, Observed
from simulations.audit.findings import GAME_LEVEL, TEST_LEVEL, Audit, Game, MechanismTest, Membership, Sabotage
from simulations.audit.game import is_exact, play
from simulations.audit.mechanism import NoiseTest, WeightTest
from simulations.audit.membership import attack, gains
from simulations.audit.power import Rules, replay
from simulations.audit.sabotage import trainer_for
from simulations.authoring import Consortium, privacy_of
from simulations.engines import EntropySource
from simulations.federation import agree
from simulations.hosting import noise_of
from simulations.preparation import Prepared, prepare, resolve_device
from simulations.progress import Progress
from simulations.scenario import Scenario

_NOT_EXACT = (
    "several local steps or Adam: a delta is no noised sum, so the guesses rest on its direction alone; the mechanism "
    "is tested on the same study with single SGD steps, whose sampling, clipping and noise are the same code"
)
_POWER_SEED = 0


def audit_scenario(
    scenario: Scenario,
    data_dir: Path | None,
    *,
    canaries: int,
    site: SiteId | None = None,
    sabotage: Sabotage | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress: Progress,
    command: str = "",
    noise_seed: int | None = None,
) -> Audit:
    """Audit one site of a scenario.

    canaries    patients to plant; half have one coin for the study, half one for each round
    site        which one; by default the smallest, where a canary has the least company
    sabotage    break its mechanism in this way first
    command     how to run it again, for the page
    noise_seed  None draws coins and noise from the operating system; only Python code can give one

    Raises CSL-511 for a site that is not there, too many canaries to hold, or a sabotage that the study has no room
    for, and what is wrong with scenario, data or backbone.
    """
    entropy = EntropySource(noise_seed)
    if threads:
        torch.set_num_threads(threads)
    privacy = privacy_of(scenario)
    prepared = prepare(scenario, data_dir, resolve_device(device), progress, Stopwatch())
    audited = _choose(prepared, site)
    progress.note(check(prepared.model).summary())
    consortium = Consortium.draw(tuple(prepared.units), entropy)
    study = agree(scenario, prepared, privacy, consortium).study
    plan = PrivacyPlan.for_site(study, audited)
    real = within_cap(prepared.training[audited], plan.max_records_per_unit)
    planted = plant(
        prepared,
        canaries,
        unit=plan.unit,
        most_records=plan.max_records_per_unit,
        seed=scenario.seed,
        precision=Precision.FULL,
        alone=study.privacy.noise is TrainingNoise.DISCRETE,
    )
    fixed = canaries // 2
    tosser = noise_of(entropy, "audit/coins")
    noises = {name: noise_of(entropy, name) for name in prepared.training}

    def played(agreed: Study) -> tuple[Observed, Vector]:
        return play(
            prepared,
            agreed,
            audited,
            real,
            planted,
            Coins.toss(fixed, canaries - fixed, agreed.training.rounds, tosser),
            trainer_for(agreed, audited, prepared.model, prepared.testing[audited], noises[audited], sabotage),
            {other: source for other, source in noises.items() if other != audited},
            progress,
        )

    observed, vector = played(study)
    single = observed if is_exact(study.training) else played(in_single_steps(study))[0]
    log_odds, inside = observed.charge_log_odds(), observed.coins.fresh.ravel()
    return Audit(
        title=scenario.title,
        command=command,
        site=audited,
        unit=plan.unit,
        epsilon=study.privacy.epsilon,
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        rounds=study.training.rounds,
        patients=real.unit_count.on_site(),
        canaries=canaries,
        sabotage=sabotage,
        games=_games(observed, plan),
        tests=_tests(single),
        membership=_membership(prepared, audited, real, vector, plan.delta),
        notes=() if is_exact(study.training) else (_NOT_EXACT,),
        log_odds_in=tuple(log_odds[inside].tolist()),
        log_odds_out=tuple(log_odds[~inside].tolist()),
    )


def in_single_steps(study: Study) -> Study:
    """Return a study that differs in nothing but that a round is one SGD step, whose delta is a noised sum."""
    single = {"optimizer": "sgd", "steps_per_round": 1, "momentum": 0.0}
    return study.model_copy(update={"training": study.training.model_copy(update=single)})


def within_cap(features: Features, most: int) -> Features:
    """Return the records of which no patient has more than ``most``: an attacker then knows what each one adds."""
    order = np.argsort(features.units, kind="stable")
    units = features.units[order]
    rank = np.arange(len(units)) - np.searchsorted(units, units)
    rows = np.sort(order[rank < most])
    return features if len(rows) == len(features) else features.subset(rows, features.units[rows])


def _choose(prepared: Prepared, site: SiteId | None) -> SiteId:
    if site is None:
        return min(prepared.units, key=lambda name: (prepared.units[name], name))
    if site not in prepared.training:
        raise ConsiliumError(errors.SCENARIO_INVALID, f"audit: no site is called {site!r}")
    return site


def _games(observed: Observed, plan: PrivacyPlan) -> tuple[Game, ...]:
    charge = plan.epsilon_of_part(steps=plan.steps_per_charge, releases=0)
    whole = plan.epsilon_of_part(steps=plan.steps_per_charge * len(observed.readings), releases=0)
    fixed = len(observed.coins.fixed)
    return (
        _game("whole study", observed, plan, whole, observed.coins.fixed, observed.study_log_odds(), slice(fixed)),
        _game(
            "one charge",
            observed,
            plan,
            charge,
            observed.coins.fresh.ravel(),
            observed.charge_log_odds(),
            slice(fixed, None),
        ),
    )


def _game(
    name: str,
    observed: Observed,
    plan: PrivacyPlan,
    claim: float,
    coins: NDArray[np.bool_],
    log_odds: NDArray[np.float64],
    chosen: slice,
) -> Game:
    """Judge one game's coins. ``chosen`` are its canaries among those of a reading."""
    bound = best_bound(log_odds, coins, plan.delta, GAME_LEVEL)
    rules = Rules(plan.delta, plan.sampling_rate, GAME_LEVEL)
    dice, fresh = np.random.default_rng(_POWER_SEED), name == "one charge"
    amplitudes = [reading.amplitudes[chosen] for reading in observed.readings]
    faint = [reading.faint[chosen] for reading in observed.readings]
    ideal = [np.full(len(row), 1.0 / plan.noise_multiplier) for row in amplitudes]
    return Game.model_validate(
        {
            "name": name,
            "bits": len(coins),
            "guesses": bound.guesses,
            "right": bound.right,
            "bound": bound.epsilon,
            "claim": claim,
            "typical": replay(amplitudes, rules, dice, fresh=fresh).typical_bound(),
            "ideal": replay(ideal, rules, dice, fresh=fresh).typical_bound(),
            "noticed": replay(faint, rules, dice, fresh=fresh).chance_above(claim),
        }
    )


def _tests(observed: Observed) -> tuple[MechanismTest, ...]:
    noise, weight = NoiseTest.of(observed.readings, TEST_LEVEL), WeightTest.of(observed.readings, TEST_LEVEL)
    return (
        MechanismTest(
            name="noise",
            measured=noise.measured,
            low=noise.interval[0],
            high=noise.interval[1],
            notices=noise.noticed_below,
            alarm=noise.alarm,
        ),
        MechanismTest(
            name="weight of a canary",
            measured=weight.measured,
            low=weight.interval[0],
            high=weight.interval[1],
            notices=weight.noticed_above,
            alarm=weight.alarm,
        ),
    )


def _membership(
    prepared: Prepared, site: SiteId, real: Features, vector: NDArray[np.float32], delta: float
) -> Membership:
    members = gains(prepared.model, real, prepared.start, vector)
    others = gains(prepared.model, prepared.testing[site], prepared.start, vector)
    found = attack(members, others, delta, np.random.default_rng(_POWER_SEED))
    return Membership(
        members=found.members,
        others=found.others,
        auc=found.auc,
        low=found.low,
        high=found.high,
        at_1=found.true_rates[0],
        at_5=found.true_rates[1],
        epsilon=found.epsilon,
    )
