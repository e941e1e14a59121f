"""A record that nothing can be made of counts as zero, on the real step, and keeps no site out (RULES 13)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.step import clipped_sum
from common.adapters import AdaptedModel, attach
from common.backbone import Backbone
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec
from tests.client.conftest import shaken

Encode = Callable[..., Encoded]
CLIP = 0.2


@contextmanager
def unreadable(backbone: Backbone, token: int) -> Iterator[None]:
    """Let every text that holds a token become NaN in the first layer."""
    embeddings = next(value for name, value in backbone.model.named_parameters() if "word_embeddings" in name)
    before = embeddings.detach()[token].clone()
    try:
        with torch.no_grad():
            embeddings[token] = float("nan")
        yield
    finally:
        with torch.no_grad():
            embeddings[token] = before


def summed(model: AdaptedModel, features: Features, rows: list[int]) -> NDArray[np.float64]:
    with PerExampleGradients(model, model.trainable()) as gradients:
        units = np.arange(len(features))
        return clipped_sum(model, features, np.array(rows), units, CLIP, gradients, micro_batch=4)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("method", ["ffa-lora", "head-only"])
def test_records_that_become_nan_count_as_zero_and_refuse_no_site(
    backbone: Backbone, task: Task, encode: Encode, method: str, cache: bool
) -> None:
    layers = {"rank": 2, "last_layers": 2} if method == "ffa-lora" else {}
    model = shaken(attach(backbone, AdapterSpec.model_validate({"method": method, **layers}), task, "5a" * 32))
    encoded = encode(12)
    special = {int(row[0]) for row in encoded.inputs} | {int(row[-1]) for row in encoded.inputs}
    shortest = int(np.argmin([len(row) for row in encoded.inputs]))
    token = next(int(value) for value in encoded.inputs[shortest] if int(value) not in special)
    bad = [row for row in range(12) if token in encoded.inputs[row]]
    good = [row for row in range(12) if row not in bad]
    assert bad
    assert good
    with unreadable(backbone, token):
        features = Features(model, encoded, cache=cache)
        everyone, readable = summed(model, features, list(range(12))), summed(model, features, good)
        nobody = summed(model, features, bad)
    assert np.isfinite(everyone).all()
    assert np.any(readable)
    assert np.allclose(everyone, readable, atol=1e-6)
    assert not nobody.any()


@pytest.mark.parametrize("cache", [True, False])
def test_records_without_tokens_move_a_step_by_at_most_the_clip_norm(
    model: AdaptedModel, encode: Encode, cache: bool
) -> None:
    some = encode(5)
    empty = (np.zeros(0, dtype=np.int32),)
    encoded = Encoded(some.inputs + empty, np.append(some.targets, 0), np.arange(6))
    features = Features(model, encoded, cache=cache)
    with_it, without = summed(model, features, list(range(6))), summed(model, features, list(range(5)))
    alone = summed(model, features, [5])
    assert np.isfinite(with_it).all()
    assert np.linalg.norm(with_it - without) <= CLIP * (1 + 1e-5)
    assert np.linalg.norm(alone) <= CLIP * (1 + 1e-9)


def test_a_record_for_which_the_cache_is_too_coarse_keeps_no_site_out(
    model: AdaptedModel, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is judged on invented records: one of a site's own would decide whether the site takes part."""
    encoded = encode(12)
    longest = max(encoded.inputs, key=len)
    odd = torch.from_numpy(longest.astype(np.int64))
    honest = model.run_through

    def beyond_float16(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = honest(ids, mask)
        for row in range(len(ids)):
            if ids.shape[1] >= len(odd) and torch.equal(ids[row, : len(odd)], odd):
                hidden[row, 1:] *= 1e7
        return hidden

    monkeypatch.setattr(model, "run_through", beyond_float16)
    features, whole = Features(model, encoded), Features(model, encoded, cache=False)
    rows = np.arange(len(encoded))
    with torch.no_grad():
        cached, direct = (made.outputs(model, made.batch(rows)) for made in (features, whole))
    assert float(((cached - direct).norm(dim=1) / direct.norm(dim=1)).max()) > 0.02
    assert np.isfinite(summed(model, features, rows.tolist())).all()
