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
from common.task_specs import TokenClassification
from common.transfer import PEFT_METHODS
from common.wording import does, facts, has_head

_CARD = """\
---
base_model: {base}
library_name: {library}
license: {licence}
---

# {title}

{warning}An adapter for `{base}` (revision `{revision}`, {licence}), trained by {sites} sites under one signed study,
`{digest}`. It {does}.

Purpose agreed: {purpose} ({duo}). It was made for that purpose and judged on the sites' own held-out records; it is not
a medical device, and nothing is known of how it does elsewhere.

## What was learned and how

{facts}{labels}

## Use

- {encoder}
{head}- `task.json` holds all that the study says of how a record is prepared.

`common.adapters.release.load_release` reads them together.

## Privacy statement

{statement}
"""
_IN_PEFT = "The encoder's adapter loads with `PeftModel.from_pretrained` over the backbone."
_PLAIN = "`encoder.safetensors` holds what was trained in the encoder, by the names that the backbone gives it."
_UNCHANGED = "The encoder is the backbone as it is."
_HEAD = "- `head.safetensors` holds the head over pooled, normalised features.\n"
_TOKENS_HEAD = "- `head.safetensors` holds the head over each token's normalised features.\n"


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
    backbone, task, method = study.backbone, study.task, study.adapter.method
    labels = ", ".join(f"`{label}`" for label in task.known_labels)
    return _CARD.format(
        base=backbone.name,
        library="peft" if method in PEFT_METHODS else "consilium",
        licence=backbone.licence,
        revision=backbone.revision,
        title=study.title,
        warning="" if private else "**NOT PRIVATE: made with seeded noise, for tests.**\n\n",
        sites=len(study.roster),
        digest=study.digest,
        does=does(task),
        labels=f"\n- **Labels.** {labels}" if labels else "",
        facts="\n".join(f"- **{heading}.** {said}" for heading, said in facts(study) if heading != "Labels"),
        encoder=_IN_PEFT if method in PEFT_METHODS else _UNCHANGED if method == "head-only" else _PLAIN,
        head=_head(study),
        purpose=study.purpose.statement,
        duo=", ".join(study.purpose.duo),
        statement=statement(study),
    )


def _head(study: Study) -> str:
    """Say what the head's file holds; nothing where the task has no head of its own."""
    if not has_head(study.task, study.adapter):
        return ""
    return _TOKENS_HEAD if isinstance(study.task, TokenClassification) else _HEAD
