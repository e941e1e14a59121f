"""A site judges a study by its own records: candidates are fitted, scored and compared, and a mismatch is measured.

After the last shared round, or before the first, on this machine alone (RULES 9, 11): what is computed here is shown to
the site's own people. A contract of the import linter keeps it from whatever answers the operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from client.evaluation import scores
from client.judgement import Side, SiteVerdict
from client.mismatch import (
    FeatureDistance,
    LabelShift,
    Mismatch,
    Vocabulary,
    calibration,
    feature_distance,
    label_shift,
    vocabulary,
)
from client.personal import Own, local, personalised
from client.preparing import OwnRecords
from client.records import HeldOut
from client.training.features import Features
from client.training.noise import NoiseSource
from client.training.pooled import head_inputs, logits_of
from client.verdict import Candidate, Scores, decide, unit_means
from common.adapters import AdaptedModel, Vector
from common.contents import Content
from common.study import Study, Unit, time_text
from common.task_specs import TextClassification
from common.tasks.texts import TextTask


def judge(study: Study, own: Own, shared: Vector, held_out: Features, *, side: HeldOut = "validation") -> SiteVerdict:
    """Return the site's verdict on a released vector; raises CSL-504 without held-out records.

    own       the training records, and the start that every site had
    held_out  records that neither the study nor any candidate was fitted to
    side      on which they are
    """
    return weigh(study, own, fitted(study, own, shared), held_out, side=side)


def weigh(
    study: Study, own: Own, candidates: Mapping[Candidate, Vector], held_out: Features, *, side: HeldOut = "validation"
) -> SiteVerdict:
    """Return the verdict on candidates that are fitted already; as :func:`judge` does."""
    return SiteVerdict(
        study=study.digest,
        made=time_text(datetime.now(UTC)),
        unit="patient" if study.privacy.unit is Unit.PATIENT else "record",
        side=side,
        training=_side(own.training),
        held_out=_side(held_out),
        personal=study.personal.method,
        decision=decide({name: scored(own.model, vector, held_out) for name, vector in candidates.items()}),
        domain=_domain(study, own.model, own.start, own.training),
        labels=_labels(study, own.model, own.training, held_out),
    )


def fitted(study: Study, own: Own, shared: Vector) -> Mapping[Candidate, Vector]:
    """Return each candidate's vector; backbone only and local only are one where the head alone trains."""
    found = {Candidate.SHARED: shared}
    if own.model.has_adapter:
        found[Candidate.BACKBONE] = local(own, study.personal, head_alone=True)
    found[Candidate.LOCAL] = local(own, study.personal, head_alone=False)
    personal = personalised(own, study.personal, shared)
    if personal is not None:
        found[Candidate.PERSONAL] = personal
    return found


def own_of(study: Study, records: OwnRecords, noise: NoiseSource) -> Own:
    """Return what a site fits with, from its model as the study starts it."""
    model = records.model
    return Own(model, records.training, model.read_vector(), noise, study.training.micro_batch)


def mismatch(study: Study, records: OwnRecords) -> Mismatch:
    """Return how far a site's training records are from what a study was made for; the model is as the study starts.

    Held-out records are looked at for their labels' shares alone.
    """
    model, training = records.model, records.training
    task = study.task
    zero_shot = isinstance(task, TextClassification) and task.label_texts is not None
    return Mismatch(
        study=study.digest,
        units=training.unit_count.on_site(),
        records=len(training),
        features=_domain(study, model, model.read_vector(), training),
        labels=_labels(study, model, training, records.judging),
        vocabulary=_vocabulary(model, records.train.contents),
        calibration=calibration(logits_of(model, training), training.targets.astype(np.int64)) if zero_shot else None,
    )


def scored(model: AdaptedModel, vector: Vector, held_out: Features) -> Scores:
    """Return what a vector scores on each unit, in order of the units' numbers."""
    model.write_vector(vector)
    return unit_means(scores(model, held_out), held_out.units)


def _domain(study: Study, model: AdaptedModel, start: Vector, training: Features) -> FeatureDistance | None:
    if study.reference is None:
        return None
    model.write_vector(start)
    return feature_distance(head_inputs(model, training), training.units, study.reference)


def _labels(study: Study, model: AdaptedModel, training: Features, held_out: Features) -> LabelShift | None:
    """Return how labels' shares differ, for a task that chooses among them."""
    if not model.task.classes:
        return None
    known = study.task.known_labels
    return label_shift(training.targets.astype(np.int64), held_out.targets.astype(np.int64), known)


def _vocabulary(model: AdaptedModel, contents: Sequence[Content]) -> Vocabulary | None:
    """Return what the tokeniser makes of a site's texts, None where its records are something else."""
    task, texts = model.task, [content for content in contents if isinstance(content, str)]
    if not isinstance(task, TextTask) or not texts:
        return None
    tokeniser = task.tokenizer

    def tokenise(part: Sequence[str]) -> Sequence[Sequence[int]]:
        rows: Sequence[Sequence[int]] = tokeniser(list(part), add_special_tokens=False)["input_ids"]
        return rows

    special = tokeniser.num_special_tokens_to_add()
    return vocabulary(texts, tokenise, unknown=tokeniser.unk_token_id, longest=task.max_tokens - special)


def _side(features: Features) -> Side:
    units: NDArray[np.int64] = np.unique(features.units)
    return Side(units=len(units), records=len(features))
