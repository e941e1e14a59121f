"""The cached prefix is the model's own, takes no padding, and dividing a batch changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from common.adapters import AdaptedModel, attach
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec
from tests.client.conftest import shaken

Encode = Callable[..., Encoded]


def test_cached_and_direct_losses_agree(model: AdaptedModel, encode: Encode) -> None:
    encoded = encode(12)
    cached, direct = Features(model, encoded), Features(model, encoded, cache=False)
    assert cached.is_cached
    assert not direct.is_cached
    rows = np.arange(12)
    with torch.no_grad():
        near = cached.losses(model, cached.batch(rows))
        exact = direct.losses(model, direct.batch(rows))
    assert torch.allclose(near, exact, rtol=5e-3, atol=5e-3)
    assert not torch.equal(exact[:6], exact[6:])


def test_the_cache_takes_two_bytes_a_value_and_no_padding(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(9))
    assert features.cache_bytes == 2 * 32 * features.lengths.sum()


def test_a_head_alone_trains_on_one_row_a_record(backbone: Backbone, task: Task, encode: Encode) -> None:
    model = shaken(attach(backbone, AdapterSpec(method="head-only"), task, "5a" * 32))
    encoded = encode(7)
    cached, direct = Features(model, encoded), Features(model, encoded, cache=False)
    assert cached.cache_bytes == 7 * 32 * 4
    rows = np.arange(7)
    with torch.no_grad():
        near = cached.outputs(model, cached.batch(rows))
        assert torch.allclose(near, direct.outputs(model, direct.batch(rows)), atol=1e-4)
    with PerExampleGradients(model, model.trainable()) as gradients:
        one = gradients.rows(cached.losses(model, cached.batch(rows)))
        two = gradients.rows(direct.losses(model, direct.batch(rows)))
    assert torch.allclose(one, two, atol=1e-4)


def test_a_model_without_a_frozen_prefix_is_not_cached(backbone: Backbone, task: Task, encode: Encode) -> None:
    model = attach(backbone, AdapterSpec(rank=2, last_layers=0), task, "5a" * 32)
    assert not Features(model, encode(3)).is_cached


def test_building_leaves_the_model_as_it_was(model: AdaptedModel, encode: Encode) -> None:
    before = model.read_vector()
    Features(model, encode(5))
    assert np.array_equal(model.read_vector(), before)


def test_a_suffix_that_is_not_the_rest_of_the_model_is_refused(
    model: AdaptedModel, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.prefix
    monkeypatch.setattr(model, "prefix", lambda ids, mask: whole(ids, mask).roll(1, dims=1))
    before = model.read_vector()
    with pytest.raises(ConsiliumError, match=r"CSL-330.*frozen prefix"):
        Features(model, encode(6))
    assert np.array_equal(model.read_vector(), before)


def test_a_model_with_another_prefix_cannot_use_the_cache(
    model: AdaptedModel, backbone: Backbone, task: Task, encode: Encode
) -> None:
    features = Features(model, encode(4))
    other = attach(backbone, AdapterSpec(rank=2, last_layers=1), task, "5a" * 32)
    with pytest.raises(ConsiliumError, match="CSL-330"):
        features.outputs(other, features.batch(np.arange(2)))


def test_joined_features_hold_every_record_and_keep_units_apart(model: AdaptedModel, encode: Encode) -> None:
    one, two = Features(model, encode(5, [0, 0, 1, 2, 2])), Features(model, encode(3, [0, 1, 1], seed=1))
    whole = Features.joined((one, two))
    assert whole.units.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert whole.unit_count.on_site() == 5
    assert whole.cache_bytes == one.cache_bytes + two.cache_bytes
    with torch.no_grad():
        joined = whole.losses(model, whole.batch(np.array([1, 6])))
        apart = torch.cat([f.losses(model, f.batch(np.array([1]))) for f in (one, two)])
    assert torch.allclose(joined, apart, atol=1e-5)


def test_a_site_without_records_has_features(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(0))
    assert len(features) == 0
    assert features.unit_count.on_site() == 0
    assert list(features.micro_batches(np.arange(0), 4)) == []


def test_micro_batches_hold_every_row_once(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(40))
    rows = np.arange(3, 38)
    parts = list(features.micro_batches(rows, 8))
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()
    assert max(len(part) for part in parts) <= 8
