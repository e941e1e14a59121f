"""The release: the adapter that a study ends with, and what must travel with it.

A folder with the adapter in PEFT's format and the head, the signed study, and a card that says what it is, under which
guarantee it was made and what it was not tested for.
"""

from __future__ import annotations

from pathlib import Path

from common import agreement, errors
from common.adapters import AdaptedModel
from common.adapters.release import save_release
from common.agreement import Approval, SignedStudy
from common.errors import ConsiliumError
from common.privacy.statement import statement
from common.study import Study
from common.task_words import task_in_words

_CARD = """\
---
base_model: {base}
library_name: peft
license: {licence}
---

# {title}

{warning}An adapter for `{base}` (revision `{revision}`, {licence}), trained by {sites} sites under one signed study,
`{digest}`. Method: {method}{layers}. It was trained to {task}.

Purpose agreed: {purpose} ({duo}). It was made for that purpose and judged on the sites' own held-out records; it is not
a medical device, and nothing is known of how it does elsewhere.

## Use

The encoder's adapter loads with `PeftModel.from_pretrained`; `head.safetensors` holds the linear head over mean-pooled,
normalised features, and `task.json` the labels and the tokeniser's length.

## Privacy statement

{statement}
"""


def write_release(
    folder: Path,
    model: AdaptedModel,
    signed: SignedStudy,
    approvals: tuple[Approval, ...],
    *,
    private: bool,
) -> None:
    """Write the release of a model that holds the final vector; raises CSL-610 where the folder cannot be written.

    private   false when the noise was seeded: the card then opens with NOT PRIVATE
    """
    study = Study.from_canonical(signed.canonical)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_release(model, folder, study=study.digest)
        agreement.write(folder / "agreement", signed, approvals)
        (folder / "README.md").write_text(card(study, private=private), encoding="utf-8")
    except OSError as error:
        raise ConsiliumError(errors.RELEASE_INVALID, f"{folder}: {error.strerror}") from error


def card(study: Study, *, private: bool) -> str:
    """Return the model card of a study's release, as Markdown with Hugging Face metadata."""
    adapter, backbone = study.adapter, study.backbone
    head_only = adapter.method == "head-only"
    layers = "" if head_only else f", rank {adapter.rank}, {_layers(adapter.last_layers)}"
    return _CARD.format(
        base=backbone.name,
        licence=backbone.licence,
        revision=backbone.revision,
        title=study.title,
        warning="" if private else "**NOT PRIVATE: made with seeded noise, for tests.**\n\n",
        sites=len(study.roster),
        digest=study.digest,
        method=adapter.method,
        layers=layers,
        task=task_in_words(study.task),
        purpose=study.purpose.statement,
        duo=", ".join(study.purpose.duo),
        statement=statement(study),
    )


def _layers(last: int) -> str:
    return f"in the last {last} layers" if last else "in all layers"
