"""From an operator's draft to a signed study: what the draft leaves open is worked out, and everything is checked.

The draft is a TOML file like the Study itself, shorter: sites by name, a noise that is calibrated to the epsilon unless
it is given, a clamp that follows from the training, the backbone as the server has it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from common import errors
from common.errors import ConsiliumError
from common.identity import PublicKey
from common.parts import Line, Name, Part
from common.payloads import vector_encoding
from common.privacy.bounds import clamp
from common.privacy.wanted import WantedPrivacy
from common.secagg.terms import Terms
from common.settings import Place, read_settings
from common.study import BackboneManifest, Evaluation, Kind, Purpose, Study, Unit, time_text
from common.task_specs import AnyTask
from common.transfer import AdapterSpec, Personal, Pretraining, Training
from server.config import Backbone
from server.enrolment import Admitted

if TYPE_CHECKING:
    from common.adapters import AdaptedModel


class DraftPrivacy(WantedPrivacy):
    """As people ask for it; of patients, unless it says so."""

    unit: Unit = Unit.PATIENT


class DraftAggregation(Part):
    """As in the Study; ``clamp`` is derived from the training where it is not given."""

    bits: int = 16
    clamp: float | None = Field(default=None, gt=0)
    minimum_cohort: int = Field(default=3, ge=2)
    max_share: float = Field(default=0.9, gt=0, le=1)


class DraftBackbone(Part):
    """What the server's files do not say of themselves: needed unless the backbone is a known package."""

    licence: Line | None = None
    training_data: Line | None = None


class DraftReference(Part):
    """Public texts to which sites compare their own: a file beside the draft, one text a line.

    data  which data they are, with their licence. What is measured of them is signed and sent to every site: no
          patient's text may be among them
    """

    data: Line
    texts: Place


class Draft(Part):
    """A study that is being written. ``sites`` are names of admitted sites; all of them where not given."""

    title: Line
    valid_days: int = Field(default=180, ge=1, le=3650)
    sites: Annotated[tuple[Name, ...], Field(max_length=255)] = ()
    purpose: Purpose
    backbone: DraftBackbone = DraftBackbone()
    task: AnyTask
    adapter: AdapterSpec = AdapterSpec()
    training: Training
    pretraining: Pretraining | None = None
    personal: Personal = Personal()
    reference: DraftReference | None = None
    privacy: DraftPrivacy
    evaluation: Evaluation = Evaluation()
    aggregation: DraftAggregation = DraftAggregation()


def read(path: Path) -> Draft:
    """Read a draft; raises CSL-101 or CSL-102 with the name of the wrong field."""
    return read_settings(Draft, path, unreadable=errors.STUDY_UNREADABLE, invalid=errors.STUDY_INVALID)


def finish(
    draft: Draft,
    *,
    operator: PublicKey,
    admitted: Sequence[Admitted],
    source: Backbone | None,
    now: datetime | None = None,
) -> Study:
    """Work out a draft's study, ready to be signed.

    source  where the server has the backbone
    Raises CSL-122 for a site that is not admitted, CSL-2xx for a guarantee that cannot be reached, CSL-3xx for the
    backbone and the adapter, CSL-404 where not even all sites together could open a sum, CSL-102.
    """
    from common.adapters import attach, ranks, shapes_of
    from common.backbone import load
    from common.tasks import task_for
    from server.product import locate

    roster = _roster(draft, admitted)
    folder = locate(source)
    manifest = _manifest(draft, source, folder)
    stream = secrets.token_hex(32)
    loaded = load(folder, manifest)
    task = task_for(draft.task, loaded, stream)
    model = attach(loaded, draft.adapter, task, stream, pretraining=draft.pretraining)
    dimension, names = model.dimension, [str(member["site"]) for member in roster]
    training = draft.training
    # Beside the rounds some charges for attempts that fail.
    charges = training.rounds + max(2, training.rounds // 10)
    privacy = draft.privacy.stated(training, draft.evaluation, charges=charges)
    smallest = min(int(str(member["band"])) for member in roster)
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    study = Study.from_fields(
        {
            "kind": Kind.DEPLOYMENT.value,
            "title": draft.title,
            "operator": operator.hex(),
            "created": time_text(moment),
            "expires": time_text(moment + timedelta(days=draft.valid_days)),
            "stream": stream,
            "purpose": draft.purpose.model_dump(mode="json"),
            "backbone": manifest.model_dump(mode="json"),
            "task": draft.task.model_dump(mode="json"),
            "adapter": draft.adapter.model_dump(mode="json"),
            "training": draft.training.model_dump(mode="json"),
            "pretraining": None if draft.pretraining is None else draft.pretraining.model_dump(mode="json"),
            "personal": draft.personal.model_dump(mode="json"),
            "reference": None if draft.reference is None else _reference(draft.reference, model),
            "privacy": privacy.model_dump(mode="json"),
            "evaluation": draft.evaluation.model_dump(mode="json"),
            "aggregation": {
                **draft.aggregation.model_dump(mode="json"),
                "blocks": [
                    block.model_dump(mode="json") for block in ranks.blocks(draft.adapter, shapes_of(model), names)
                ],
                "clamp": draft.aggregation.clamp
                or clamp(draft.training, privacy, smallest_band=smallest, dimension=dimension),
            },
            "roster": roster,
        }
    )
    Terms.from_study(study).check_feasible()
    vector_encoding(study, dimension)
    return study


def _roster(draft: Draft, admitted: Sequence[Admitted]) -> list[Mapping[str, object]]:
    known = {site.site: site for site in admitted}
    names = draft.sites or tuple(known)
    for name in names:
        if name not in known:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, f"{name} is not admitted")
    return [{"site": name, "key": known[name].identity, "band": known[name].band} for name in sorted(set(names))]


def _reference(wanted: DraftReference, model: AdaptedModel) -> Mapping[str, object]:
    from common.reference import measure_reference

    try:
        lines = wanted.texts.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConsiliumError(errors.STUDY_INVALID, f"reference.texts: {type(error).__name__}") from error
    texts = [line for line in lines if line.strip()]
    return measure_reference(model, texts, data=wanted.data).model_dump(mode="json")


def _manifest(draft: Draft, source: Backbone | None, folder: Path) -> BackboneManifest:
    from common import backbone as backbones

    if source is not None and source.package == backbones.MINILM_PACKAGE:
        return backbones.MINILM
    licence, training_data = draft.backbone.licence, draft.backbone.training_data
    if licence is None or training_data is None:
        raise ConsiliumError(errors.STUDY_INVALID, "backbone.licence and backbone.training_data: the study states them")
    name = folder.name if source is None or source.package is None else source.package
    return backbones.describe(
        folder, name=name, source=name, revision="as hashed", licence=licence, training_data=training_data
    )


TEMPLATE = """\
# A study in the making. consilium-server study sign works out what is left open here.
title = "{title}"
valid_days = 180
sites = [{sites}]

[purpose]
duo = ["DUO:0000042"]            # GA4GH data use: general research use
statement = "What the adapter is for, in a sentence that an ethics board can read."

[task]
labels = ["no", "yes"]
label_texts = ["A note without the finding.", "A note with the finding."]
max_tokens = 128
# kind = "image-classification"  # of texts where none is named; docs/operators.md has each kind, with examples

[adapter]
method = "ffa-lora"              # or lora, rolora, ia3, bitfit, layer-norm, bottleneck, full, head-only
rank = 4
last_layers = 2
# site_ranks = {{ small = 2 }}     # what sites train that train less; to each rank enough must contribute

[training]
rounds = 25
steps_per_round = 1
learning_rate = 1.0
server_optimizer = "fedadam"
server_learning_rate = 0.4
micro_batch = 32

[privacy]
unit = "patient"
max_records_per_unit = 2
epsilon = 8.0                    # the noise is calibrated to it
delta = 1e-5
sampling_rate = 0.5
clip_norm = 0.5

# [pretraining]                  # rounds that learn from texts before any label is looked at
# rounds = 5
# objective = {{ kind = "masked-language-modelling" }}

# [personal]                     # what a site may fit for itself after the last round; nothing of it leaves
# method = "head"                # or adapter, interpolation

# [reference]                    # lets each site see how far its texts are from these
# data = "PubMed abstracts, public domain"
# texts = "public.txt"           # beside this file, one PUBLIC text a line: what is measured of them goes to all

# [backbone]                     # needed for a folder of your own
# licence = "Apache-2.0"
# training_data = "What it was pretrained on."
"""
