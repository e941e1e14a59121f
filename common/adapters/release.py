"""An adapter on disk: PEFT's folder for the encoder, safetensors for the head, JSON for the task.

The encoder's part loads with ``PeftModel.from_pretrained`` over the plain backbone; with the head it gives the same
logits as the model that was trained. PEFT has no BitFit and no bottleneck: for these, what trains in the encoder is one
safetensors file, which :func:`load_release` reads. No machine's path is written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from common import errors
from common.adapters import AdaptedModel, Vector, attach, sharing_copy
from common.adapters.wrapping import read_peft
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.parts import Digest, Hex32, Part, describe
from common.task_specs import AnyTask
from common.tasks import task_for
from common.transfer import AdapterSpec

ENCODER_FILE = "encoder.safetensors"
HEAD_FILE = "head.safetensors"
TASK_FILE = "task.json"
_ANY_STREAM = "0" * 64


class ReleasedTask(Part):
    """What ``task.json`` holds: what it takes to use the adapter and the head."""

    task: AnyTask
    adapter: AdapterSpec
    backbone: str
    backbone_files: dict[str, Hex32]
    study: Digest


def save_release(model: AdaptedModel, folder: Path, *, study: Digest) -> None:
    """Write a model that holds the released vector into an existing folder.

    With the method head-only nothing is written of the encoder: the backbone is used as it is.
    """
    manifest = model.backbone.manifest
    if model.peft_model is not None:
        for config in model.peft_model.peft_config.values():
            config.base_model_name_or_path = manifest.name
            config.inference_mode = True
        model.peft_model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    elif own := _own(model):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}, folder / ENCODER_FILE)
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
        task = task_for(released.task, backbone)
        model = attach(backbone, released.adapter, task, _ANY_STREAM)
        if model.peft_model is None:
            _read_own(model, folder)
        else:
            encoder = read_peft(sharing_copy(backbone.model), folder)
            first = backbone.layers - (released.adapter.last_layers or backbone.layers)
            model = AdaptedModel(backbone, released.adapter, task, encoder, first)
        model.head.load_state_dict(load_file(folder / HEAD_FILE))
    except ValidationError as error:
        raise ConsiliumError(errors.RELEASE_INVALID, describe(error)) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConsiliumError(errors.RELEASE_INVALID, f"{folder.name}: {type(error).__name__}") from error
    return model.eval()


def released_vector(folder: Path, model: AdaptedModel, *, study: Digest) -> Vector:
    """Return a release's trainable parameters in the order of a study's model; raises CSL-610 for another study's."""
    released = load_release(folder, model.backbone)
    named = ReleasedTask.model_validate_json((folder / TASK_FILE).read_bytes()).study
    if named != study:
        raise ConsiliumError(errors.RELEASE_INVALID, f"it is of study {named[:12]}, not of {study[:12]}")
    parts = [released.get_parameter(name).detach().reshape(-1) for name in model.names]
    return np.array(model.as_vector(torch.cat(parts).cpu().numpy()), dtype=np.float32)


def _own(model: AdaptedModel) -> dict[str, nn.Parameter]:
    """Return what trains in the encoder, by its name inside it."""
    return {name: parameter for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}


def _read_own(model: AdaptedModel, folder: Path) -> None:
    own = _own(model)
    found = load_file(folder / ENCODER_FILE) if own else {}
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ConsiliumError(errors.RELEASE_INVALID, f"{ENCODER_FILE} holds other parameters than the task file says")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])
