"""The game: coins decide which canary patients are in, the site trains, the attacker reads what leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from client.training.features import Features, device_of
from client.training.gradients import PerExampleGradients
from client.training.noise import NoiseSource
from client.training.step import privacy_units
from client.workload import ModelWorkload
from common import errors
from common.adapters import AdaptedModel, Vector
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.plan import PrivacyPlan
from common.study import Study
from common.transfer import Training
from server.aggregation import server_optimizer
from simulations.audit.canaries import Canaries
from simulations.audit.coins import Coins, Observed
from simulations.audit.reading import Lens
from simulations.audit.sabotage import Trainer
from simulations.preparation import Prepared
from simulations.progress import Progress

MOST_VALUES = 1 << 27
"""Values of the known gradients that are held at once: 1 GB."""


def play(
    prepared: Prepared,
    study: Study,
    site: SiteId,
    real: Features,
    canaries: Canaries,
    coins: Coins,
    trainer: Trainer,
    noises: Mapping[SiteId, NoiseSource],
    progress: Progress,
) -> tuple[Observed, Vector]:
    """Run a study with canaries at one site and read each of that site's outgoing deltas.

    Returns what was observed, and the global vector at the end, which the study would release.

    real     the audited site's real training records, none of a patient beyond the cap
    trainer  how the audited site trains
    noises   the other sites' sources of sampling and noise

    The other sites train as they would; the deltas are averaged in clear, because what masks hide is not what the
    guarantee rests on. Raises CSL-511 if the known gradients would not fit.
    """
    model, training = prepared.model, study.training
    plan = PrivacyPlan.for_site(study, site)
    check_size(real, canaries, model.dimension)
    others = {
        other: ModelWorkload(
            study,
            other,
            model,
            training=prepared.training[other],
            testing=prepared.testing[other],
            noise=noises[other],
        )
        for other in prepared.training
        if other != site
    }
    bands = {member.site_id: member.band for member in study.roster}
    optimizer = server_optimizer(training)
    vector, readings = prepared.start.copy(), []
    progress.phase("audited rounds", training.rounds)
    for round_index in range(training.rounds):
        inside = coins.inside(round_index)
        rows = known_rows(model, real, canaries, plan, vector)
        lens = Lens(rows, len(rows) - len(canaries), plan.sampling_rate, plan.noise_multiplier)
        delta = trainer(canaries.among(real, inside), vector, round_index)
        readings.append(lens.read(outgoing_sum(delta, plan, training, round_index), inside))
        deltas = {other: workload.train(vector, round_index) for other, workload in others.items()} | {site: delta}
        mean = sum(bands[name] * update.astype(np.float64) for name, update in deltas.items())
        vector = optimizer.step(vector, np.asarray(mean) / sum(bands.values()), round_index)
        progress.advance()
    return Observed(coins, tuple(readings)), vector


def known_rows(
    model: AdaptedModel, real: Features, canaries: Canaries, plan: PrivacyPlan, vector: Vector
) -> NDArray[np.float64]:
    """Return what each patient adds to a step's sum, in clip norms: real patients, then canaries; (n, dimension)."""
    model.write_vector(vector)
    taken = min(canaries.records, plan.max_records_per_unit)
    units = privacy_units(real, plan)
    return np.concatenate(
        [
            _clipped(_gradients(model, real), units, plan.clip_norm),
            _clipped(taken * _gradients(model, canaries.features), np.arange(len(canaries)), plan.clip_norm),
        ]
    )


def outgoing_sum(delta: Vector, plan: PrivacyPlan, training: Training, round_index: int) -> NDArray[np.float64]:
    """Return a delta as the noised sum it came from, in clip norms.

    With one SGD step a round this takes learning rate and divisor out exactly. Otherwise the sum cannot be had; the
    delta is scaled to the length that the noise would have, and only its direction is read.
    """
    update = -delta.astype(np.float64)
    if is_exact(training):
        return update * (plan.divisor / (training.site_rate(round_index / training.rounds) * plan.clip_norm))
    length = float(np.linalg.norm(update)) or 1.0
    return update * (plan.noise_multiplier * math.sqrt(len(update)) / length)


def is_exact(training: Training) -> bool:
    """Return whether a delta is a noised sum times a public constant: with one SGD step a round."""
    return training.optimizer == "sgd" and training.steps_per_round == 1


def check_size(real: Features, canaries: Canaries, dimension: int) -> None:
    """Raise CSL-511 if the known gradients would not fit into memory."""
    patients = real.unit_count.on_site() + len(canaries)
    values = patients * dimension
    if values > MOST_VALUES:
        raise ConsiliumError(
            errors.SCENARIO_INVALID,
            f"audit: {patients} patients times {dimension} coordinates are too many to hold; "
            "choose a smaller site, fewer canaries or a smaller adapter",
        )


def _gradients(model: AdaptedModel, features: Features) -> NDArray[np.float64]:
    """Return each record's own gradient, (records, dimension)."""
    rows = np.zeros((len(features), model.dimension))
    device = device_of(model)
    with PerExampleGradients(model, model.trainable()) as gradients:
        for part in features.micro_batches(np.arange(len(features)), 64):
            rows[part] = gradients.rows(features.losses(model, features.batch(part, device))).double().cpu().numpy()
    return rows


def _clipped(rows: NDArray[np.float64], units: NDArray[np.int64], clip_norm: float) -> NDArray[np.float64]:
    """Return each unit's summed gradient, clipped, over the clip norm; zeros where it is not finite (RULES 13)."""
    sums = np.zeros((int(units.max()) + 1 if len(units) else 0, rows.shape[1]))
    np.add.at(sums, units, rows)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    finite = np.isfinite(norms)
    return np.where(finite, sums / np.maximum(norms, clip_norm), 0.0)
