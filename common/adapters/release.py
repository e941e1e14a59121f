"""An adapter on disk: PEFT's folder for the encoder, safetensors for the head, JSON for the task.

The encoder's part loads with ``PeftModel.from_pretrained`` over the plain backbone; with the head it gives the same
logits as the model that was trained. No machine's path is written.
"""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common import errors
from common.adapters import AdaptedModel, attach, sharing_copy
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.study import AdapterSpec, Digest, Hex32, Part, TextClassification, describe
from common.tasks import task_for

HEAD_FILE = "head.safetensors"
TASK_FILE = "task.json"
_ANY_STREAM = "0" * 64


class ReleasedTask(Part):
    """What ``task.json`` holds: what it takes to use the adapter and the head."""

    task: TextClassification
    adapter: AdapterSpec
    backbone: str
    backbone_files: dict[str, Hex32]
    study: Digest


def save_release(model: AdaptedModel, folder: Path, *, study: Digest) -> None:
    """Write a model that holds the released vector into an existing folder.

    With the method head-only there is no PEFT adapter to write: the backbone is used as it is.
    """
    manifest = model.backbone.manifest
    if model.peft_model is not None:
        for config in model.peft_model.peft_config.values():
            config.base_model_name_or_path = manifest.name
            config.inference_mode = True
        model.peft_model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    head = {name: tensor.detach().cpu().contiguous() for name, tensor in model.head.state_dict().items()}
    save_file(head, folder / HEAD_FILE)
    released = ReleasedTask(
        task=model.task.spec,
        adapter=model.spec,
        backbone=manifest.name,
        backbone_files=manifest.files,
        study=study,
    )
    text = json.dumps(released.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / TASK_FILE).write_text(text + "\n", encoding="utf-8")


def load_release(folder: Path, backbone: Backbone) -> AdaptedModel:
    """Read a release over its backbone; raises CSL-610 for files that cannot be read or another backbone's release."""
    try:
        released = ReleasedTask.model_validate_json((folder / TASK_FILE).read_bytes())
        if released.backbone_files != backbone.manifest.files:
            raise ConsiliumError(errors.RELEASE_INVALID, "it was made for another backbone")
        task = task_for(released.task, backbone.tokenizer)
        if released.adapter.method == "head-only":
            model = attach(backbone, released.adapter, task, _ANY_STREAM)
        else:
            encoder = PeftModel.from_pretrained(sharing_copy(backbone.model), str(folder), local_files_only=True)
            first = backbone.layers - (released.adapter.last_layers or backbone.layers)
            model = AdaptedModel(backbone, released.adapter, task, encoder, first)
        model.head.load_state_dict(load_file(folder / HEAD_FILE))
    except ValidationError as error:
        raise ConsiliumError(errors.RELEASE_INVALID, describe(error)) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConsiliumError(errors.RELEASE_INVALID, f"{folder.name}: {type(error).__name__}") from error
    return model.eval()
