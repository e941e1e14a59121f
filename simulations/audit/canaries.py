"""Canary patients: invented people whose records an attacker would know anywhere.

A canary's text is a few rare words in an order that nobody writes, under the label that the starting model believes in
least: its gradient is long, so that clipping leaves exactly one clip norm, and points where few others do. Each canary
patient has several times the records that the cap lets in, all alike: an honest step takes at most the cap's number and
clips their sum, so that which ones it took makes no difference, while a step without a cap shows them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from client.training.features import Features, device_of
from client.training.precision import Precision
from common import errors
from common.adapters import Vector
from common.errors import ConsiliumError
from common.study import Unit
from common.task_specs import TextClassification
from simulations.preparation import Prepared

WORDS = 4
"""Rare words in a canary's text."""
RECORDS_OVER_CAP = 4
"""Records of a canary patient, in caps."""
_LETTERS = 4


@dataclass(frozen=True, slots=True)
class Canaries:
    """The canary patients of an audit.

    features  one record of each, whose unit is its own number
    records   how many copies of it each patient has at the site
    """

    features: Features
    records: int

    def __len__(self) -> int:
        return len(self.features)

    def among(self, real: Features, inside: NDArray[np.bool_]) -> Features:
        """Return a site's training records with those of the canaries that are inside.

        inside  (canaries,) which patients are in the site's data
        """
        chosen = np.flatnonzero(inside)
        owners = np.repeat(np.arange(len(chosen)), self.records)
        return Features.joined((real, self.features.subset(np.repeat(chosen, self.records), owners)))


def plant(
    prepared: Prepared, count: int, *, unit: Unit, most_records: int, seed: int, precision: Precision, alone: bool
) -> Canaries:
    """Invent canary patients for a prepared study.

    count         how many, at least 1
    most_records  the study's cap; a record-level study's canaries have one record each
    seed          of the choice of words, which is no secret
    alone         compute each record's prefix by itself, as discrete noise needs it

    Raises CSL-511 for another task than text classification.
    """
    spec, tokenizer = prepared.task.spec, prepared.backbone.tokenizer
    if not isinstance(spec, TextClassification) or tokenizer is None:
        raise ConsiliumError(errors.SCENARIO_INVALID, f"audit: canaries are texts with a label, not {spec.kind}")
    if len(prepared.model.phases()) > 1:
        raise ConsiliumError(errors.SCENARIO_INVALID, "audit: every round must train the same weights")
    texts = invented_texts(tokenizer, count, seed)
    labels = [spec.labels[0]] * count
    encoded = prepared.task.encode(texts, labels, np.arange(count, dtype=np.int64))
    blank = Features(prepared.model, encoded)
    unlikely = replace(encoded, targets=_least_likely(prepared, blank, prepared.start))
    features = Features(prepared.model, unlikely, precision=precision, alone=alone)
    return Canaries(features, RECORDS_OVER_CAP * most_records if unit is Unit.PATIENT else 1)


def invented_texts(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[str]:
    """Return texts of a few words each from the rarer half of a vocabulary, which lists frequent words first.

    Raises CSL-511 for a vocabulary without words.
    """
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    plain = [token.strip("Ġ▁") for token, _ in entries]
    words = [word for word in plain if word.isalpha() and len(word) >= _LETTERS]
    rare = words[len(words) // 2 :]
    if not rare:
        raise ConsiliumError(errors.SCENARIO_INVALID, "audit: the backbone's vocabulary has no words for canaries")
    dice = np.random.default_rng([seed, count])
    return [" ".join(dice.choice(rare, WORDS)) for _ in range(count)]


@torch.no_grad()
def _least_likely(prepared: Prepared, features: Features, vector: Vector) -> NDArray[np.int64]:
    prepared.model.write_vector(vector)
    least = np.zeros(len(features), dtype=np.int64)
    for rows in features.micro_batches(np.arange(len(features)), 64):
        batch = features.batch(rows, device_of(prepared.model))
        least[rows] = features.outputs(prepared.model, batch).argmin(dim=-1).cpu().numpy()
    return least
