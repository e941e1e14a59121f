"""What a backbone's pooled features are like on public texts: the reference that a study carries for its sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common import errors
from common.adapters import AdaptedModel
from common.anatomy import mean_over_tokens
from common.errors import ConsiliumError
from common.tasks.texts import TextTask
from common.transfer import FeatureReference

_BATCH = 32
_DIGITS = 6
"""Of each figure: the study is signed as text, and nobody needs more."""


@torch.no_grad()
def measure_reference(model: AdaptedModel, texts: Sequence[str], *, data: str) -> FeatureReference:
    """Return mean and deviation of each feature that enters the head.

    Raises CSL-504 for fewer than two texts, CSL-322 where the task reads something else.

    model    as the study starts it, so that its features are the backbone's own
    texts    PUBLIC data and nothing else: what is measured of them is signed, and sent to every site
    data     which data they are, with their licence
    """
    if len(texts) < 2:
        raise ConsiliumError(errors.DATA_EMPTY, "a reference needs two public texts or more")
    task = model.task
    if not isinstance(task, TextTask):
        raise ConsiliumError(errors.TASK_UNSUPPORTED, "a reference is of texts")
    parts, tokens = [], task.tokens(texts)
    for start in range(0, len(texts), _BATCH):
        ids, mask = (part.to(model.device) for part in task.pad(tokens[start : start + _BATCH]))
        found = model.features_of(ids, mask)
        parts.append((found if task.pools else mean_over_tokens(found, mask)).double().cpu())
    features = torch.cat(parts)
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    return FeatureReference(
        data=data,
        mean=tuple(round(value, _DIGITS) for value in mean.tolist()),
        deviation=tuple(round(value, _DIGITS) for value in deviation.tolist()),
    )
