"""Reduced precision is asked for, moves gradients little, and lets no example into another's row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.precision import Precision, fastest_precision
from common.adapters import AdaptedModel
from common.tasks import Encoded

Encode = Callable[..., Encoded]


def rows_of(model: AdaptedModel, features: Features, chosen: NDArray[np.int64]) -> torch.Tensor:
    with PerExampleGradients(model, model.trainable()) as gradients:
        return gradients.rows(features.losses(model, features.batch(chosen)))


def test_full_precision_is_the_default(model: AdaptedModel, encode: Encode) -> None:
    encoded, rows = encode(4), np.arange(4)
    default, full = Features(model, encoded), Features(model, encoded, precision=Precision.FULL)
    assert torch.equal(rows_of(model, default, rows), rows_of(model, full, rows))


def test_reduced_precision_stays_close(model: AdaptedModel, encode: Encode) -> None:
    encoded, rows = encode(8), np.arange(8)
    full = rows_of(model, Features(model, encoded), rows)
    reduced = rows_of(model, Features(model, encoded, precision=Precision.REDUCED), rows)
    assert reduced.dtype == torch.float32
    error = (full - reduced).norm(dim=1) / full.norm(dim=1)
    assert 0.0 < float(error.max()) < 0.1


def test_in_reduced_precision_an_example_changes_no_other_row(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(8), precision=Precision.REDUCED)
    # The last row is replaced by one that is as long or shorter, so that the padding stays.
    order = np.argsort(-features.lengths)
    first = rows_of(model, features, order[[0, 1, 2]])
    second = rows_of(model, features, order[[0, 1, 5]])
    assert torch.equal(first[:2], second[:2])
    assert not torch.equal(first[2], second[2])


def test_predictions_are_always_in_full_precision(model: AdaptedModel, encode: Encode) -> None:
    encoded = encode(5)
    reduced, full = Features(model, encoded, precision=Precision.REDUCED), Features(model, encoded)
    batch = full.batch(np.arange(5))
    with torch.no_grad():
        assert torch.equal(reduced.outputs(model, batch), full.outputs(model, batch))


def test_the_fastest_precision_is_one_of_the_two() -> None:
    assert fastest_precision(64) in set(Precision)
