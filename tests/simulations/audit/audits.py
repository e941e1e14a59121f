"""Findings of an audit as tests need them, without playing one."""

from __future__ import annotations

import numpy as np

from common.study import Unit
from simulations.audit.findings import Audit, Game, MechanismTest, Membership, Sabotage


def game(name: str, *, bound: float, claim: float) -> Game:
    """Return one game's findings."""
    return Game.model_validate(
        {"name": name, "bits": 60, "guesses": 21, "right": 14, "bound": bound, "claim": claim,
         "typical": 0.41, "ideal": 0.86, "noticed": 0.3}
    )  # fmt: skip


def findings(
    *,
    title: str = "Triage",
    site: str = "North",
    bound: float = 0.31,
    noise: float = 1.002,
    sabotage: Sabotage | None = None,
    notes: tuple[str, ...] = (),
    command: str = "consilium-sim audit demo",
) -> Audit:
    """Return the findings of an audit; ``bound`` is the whole study's, ``noise`` the measured share of the claimed."""
    dice = np.random.default_rng(4)
    tests = (
        MechanismTest(
            name="noise", measured=noise, low=noise - 0.01, high=noise + 0.01, notices=0.98, alarm=noise < 0.9
        ),
        MechanismTest(name="weight of a canary", measured=0.95, low=0.5, high=1.4, notices=1.9, alarm=False),
    )
    return Audit(
        title=title,
        command=command,
        site=site,
        unit=Unit.PATIENT,
        epsilon=8.0,
        delta=1e-5,
        noise_multiplier=1.31,
        sampling_rate=0.5,
        rounds=30,
        patients=144,
        canaries=120,
        sabotage=sabotage,
        games=(game("whole study", bound=bound, claim=7.94), game("one charge", bound=0.1, claim=1.69)),
        tests=tests,
        membership=Membership(
            members=144, others=61, auc=0.44, low=0.36, high=0.53, at_1=0.014, at_5=0.03, epsilon=0.0
        ),
        notes=notes,
        log_odds_in=tuple(dice.normal(0.1, 0.6, 300).tolist()),
        log_odds_out=tuple(dice.normal(-0.1, 0.6, 300).tolist()),
    )
