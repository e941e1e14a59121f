"""Each simulated site's own verdict on a finished study, by a hospital's own code. SIMULATOR ONLY: no site sends it.

A simulator may look at what every site would keep to itself (RULES 9, 11).
"""

from __future__ import annotations

from client.judging import judge
from client.personal import Own
from client.records import HeldOut
from common.adapters import Vector
from common.identity import SiteId
from common.study import Study
from simulations.engines import EntropySource
from simulations.hosting import noise_of
from simulations.metrics import Verdict
from simulations.preparation import Prepared
from simulations.progress import Progress


def verdict_of(site: SiteId, study: Study, prepared: Prepared, vector: Vector, entropy: EntropySource) -> Verdict:
    """Return one site's verdict on a released vector, on its validation records, or where it has none its test records.

    The model is left with another vector.
    """
    side: HeldOut = "validation" if len(prepared.validation[site]) else "test"
    held_out = prepared.validation[site] if side == "validation" else prepared.testing[site]
    noise = noise_of(entropy, f"{site}/verdict")
    own = Own(prepared.model, prepared.training[site], prepared.start, noise, study.training.micro_batch)
    found = judge(study, own, vector, held_out, side=side)
    return Verdict(id=site, units=found.held_out.units, side=side, decision=found.decision)


def verdicts(
    study: Study, prepared: Prepared, vector: Vector, entropy: EntropySource, progress: Progress
) -> tuple[Verdict, ...]:
    """Return every site's verdict, in the order of their names."""
    progress.phase("the sites' own verdicts", len(prepared.sites))
    made = []
    for site in sorted(prepared.training):
        made.append(verdict_of(site, study, prepared, vector, entropy))
        progress.advance()
    return tuple(made)
