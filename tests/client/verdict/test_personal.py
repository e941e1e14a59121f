"""What a site fits for itself: pulled as far as the study says, chosen on training units, and never in what is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from torch import Tensor

from client.personal import Own, choose_share, local, mixed, personalised
from client.training.features import Batch, Features
from client.training.plain import Fit
from client.workload import ModelWorkload
from common.adapters import AdaptedModel, Vector
from common.identity import SiteId
from common.study import Study
from common.tasks import Encoded
from common.transfer import Personal
from simulations.noise import SeededNoise
from tests.client.verdict.conftest import Learned
from tests.client.verdict.sites import ROTATED, notes, own
from tests.studies import fields

SITE = SiteId("site-000")
METHODS: tuple[Literal["head", "adapter", "interpolation"], ...] = ("head", "adapter", "interpolation")


@pytest.fixture
def site(study_model: Learned) -> Own:
    """A site that writes other labels than those on which the shared vector was learned."""
    training = notes(study_model.task, study_model.model, 60, seed=8, names=ROTATED)
    return own(study_model.model, training, study_model.start)


def head_of(model: AdaptedModel) -> int:
    return sum(parameter.numel() for parameter in model.head.parameters())


def test_none_makes_nothing(site: Own, study_model: Learned) -> None:
    assert personalised(site, Personal(), study_model.shared) is None


def test_a_head_of_ones_own_leaves_the_shared_adapter_as_it_is(site: Own, study_model: Learned) -> None:
    shared = study_model.shared
    found = personalised(site, Personal(method="head", steps=5), shared)
    assert found is not None
    own_head = head_of(site.model)
    assert np.array_equal(found[:-own_head], shared[:-own_head])
    assert not np.allclose(found[-own_head:], shared[-own_head:])


def test_a_pull_without_bound_stays_at_the_shared_vector(site: Own, study_model: Learned) -> None:
    found = personalised(site, Personal(method="adapter", steps=10, strength=1e6), study_model.shared)
    assert found is not None
    assert np.abs(found - study_model.shared).max() < 1e-5


def test_the_stronger_the_pull_the_nearer_the_shared_vector(site: Own, study_model: Learned) -> None:
    distances = []
    for strength in (0.0, 0.5, 5.0, 500.0):
        found = personalised(site, Personal(method="adapter", steps=20, strength=strength), study_model.shared)
        assert found is not None
        distances.append(float(np.linalg.norm(found - study_model.shared)))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 20


def test_an_interpolation_ends_at_the_shared_and_at_the_local_vector(site: Own, study_model: Learned) -> None:
    shared, fitted = study_model.shared, site.fitted(Fit(5, 2.0), study_model.start)
    assert np.array_equal(mixed(shared, fitted, 0.0), shared)
    assert np.array_equal(mixed(shared, fitted, 1.0), fitted)
    assert mixed(shared, fitted, 0.5) == pytest.approx((shared + fitted) / 2, abs=1e-6)


@pytest.mark.parametrize(("better", "share"), [("shared", 0.0), ("local", 1.0)])
def test_the_share_is_what_units_score_best_that_were_not_fitted_to(
    site: Own, study_model: Learned, better: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(_: Own, vector: Vector, held_out: Features) -> float:
        return float(np.array_equal(vector, study_model.shared if better == "shared" else study_model.start))

    monkeypatch.setattr(Own, "score", scored)
    assert choose_share(site, study_model.shared, lambda _: study_model.start, (0.0, 0.5, 1.0)) == share


def test_a_share_is_never_chosen_on_units_that_were_fitted_to(study_model: Learned) -> None:
    training = notes(study_model.task, study_model.model, 11, seed=8, records=3)
    seen: list[tuple[int, ...]] = []
    used: list[int] = []

    def fit(some: Features | None) -> Vector:
        assert some is not None
        used.append(len(some))
        return study_model.start

    class Watched(Own):
        def score(self, vector: Vector, held_out: Features) -> float:
            seen.append(tuple(held_out.lengths.tolist()))
            assert len(held_out) + used[-1] == len(training)
            return 0.0

    watched = Watched(study_model.model, training, study_model.start, SeededNoise(1, "x"), 8)
    assert choose_share(watched, study_model.shared, fit, (0.0, 1.0)) == 0.0
    assert sum(map(len, seen)) == 2 * len(training)
    assert used == [24, 24, 24, 27]


def test_a_site_of_other_labels_learns_them(site: Own, study_model: Learned) -> None:
    held_out = notes(study_model.task, study_model.model, 60, seed=9, names=ROTATED)
    for method in METHODS:
        personal = Personal(method=method, steps=40, learning_rate=4.0, strength=0.0)
        found = personalised(site, personal, study_model.shared)
        assert found is not None
        assert site.score(study_model.shared, held_out) < 0.2
        assert site.score(found, held_out) > 0.5, method


def test_a_baseline_chooses_its_learning_rate(site: Own, study_model: Learned) -> None:
    """At the study's own, far too small, the baseline would hardly leave its start, and any study would look good."""
    held_out = notes(study_model.task, study_model.model, 60, seed=9, names=ROTATED)
    slow = site.score(site.fitted(Fit(40, 0.05), study_model.start), held_out)
    found = site.score(local(site, Personal(steps=40, learning_rate=0.05), head_alone=False), held_out)
    assert found > slow + 0.1
    own_head = head_of(site.model)
    backbone = local(site, Personal(steps=10), head_alone=True)
    assert np.array_equal(backbone[:-own_head], study_model.start[:-own_head])


def test_a_site_with_too_few_units_to_choose_is_fitted_all_the_same(study_model: Learned) -> None:
    few = own(study_model.model, notes(study_model.task, study_model.model, 3, seed=8), study_model.start)
    assert not np.array_equal(local(few, Personal(steps=5), head_alone=False), study_model.start)
    found = personalised(few, Personal(method="interpolation", steps=5), study_model.shared)
    assert found is not None
    assert np.array_equal(found, study_model.shared)


def test_a_record_without_a_finite_loss_is_left_out(
    site: Own, study_model: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Features.losses

    def broken(self: Features, model: AdaptedModel, batch: Batch) -> Tensor:
        return losses(self, model, batch) / (batch.targets != 0)

    monkeypatch.setattr(Features, "losses", broken)
    assert np.isfinite(site.fitted(Fit(5, 1.0), study_model.start)).all()


def test_what_a_site_fits_for_itself_changes_no_bit_of_what_it_sends(
    study_model: Learned, encode: Callable[..., Encoded]
) -> None:
    """The same randomness twice, the second time after all that is personal was fitted on the same model."""
    model, shared = study_model.model, study_model.shared
    study = Study.from_fields(fields()[0])
    testing = Features(model, encode(12), alone=True)
    training = notes(study_model.task, model, 40, seed=2)

    def sent() -> tuple[bytes, bytes]:
        workload = ModelWorkload(study, SITE, model, training=training, testing=testing, noise=SeededNoise(6, "sent"))
        return workload.train(shared, 1).tobytes(), workload.evaluate(shared).tobytes()

    before = sent()
    site = own(model, training, study_model.start)
    for method in METHODS:
        found = personalised(site, Personal(method=method, steps=3), shared)
        assert found is not None
        model.write_vector(found)
    assert sent() == before
