"""What a backbone's pooled features are like on public texts: the reference that a study carries for its sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common import errors
from common.adapters import AdaptedModel
from common.errors import ConsiliumError
from common.transfer import FeatureReference

_BATCH = 32
_DIGITS = 6
"""Of each figure: the study is signed as text, and nobody needs more."""


@torch.no_grad()
def measure_reference(model: AdaptedModel, texts: Sequence[str], *, data: str, longest: int) -> FeatureReference:
    """Return mean and deviation of each feature that enters the head; raises CSL-504 for fewer than two texts.

    model    as the study starts it, so that its features are the backbone's own
    texts    PUBLIC data and nothing else: what is measured of them is signed, and sent to every site
    data     which data they are, with their licence
    longest  tokens that the study reads of a text
    """
    if len(texts) < 2:
        raise ConsiliumError(errors.DATA_EMPTY, "a reference needs two public texts or more")
    tokenizer = model.backbone.tokenizer
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(
            list(texts[start : start + _BATCH]), truncation=True, max_length=longest, padding=True, return_tensors="pt"
        )
        ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
        parts.append(model.features_of(ids, mask).double().cpu())
    features = torch.cat(parts)
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    return FeatureReference(
        data=data,
        mean=tuple(round(value, _DIGITS) for value in mean.tolist()),
        deviation=tuple(round(value, _DIGITS) for value in deviation.tolist()),
    )
