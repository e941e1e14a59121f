"""What trains is exactly the vector, in a fixed order, over a backbone that is shared and never changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from common import backbone as backbones
from common.adapters import METHODS, AdaptedModel, attach
from common.adapters.release import load_release, save_release
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.parts import Digest
from common.task_specs import TextClassification
from common.tasks import task_for
from common.transfer import AdapterSpec
from tests.encoders import write_encoder

STREAM = "5a" * 32
TEXTS = ("chest pain since yesterday", "mild cough", "no fever and no pain and no fall with severe cough")
FAMILIES = ("bert", "roberta", "distilbert")
TARGETS = {"bert": ("query", "value"), "roberta": ("query", "value"), "distilbert": ("q_lin", "v_lin")}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Backbone]]:
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        manifest = write_encoder(folder, family)
        made[family] = (folder, backbones.load(folder, manifest))
    return made


def adapted(backbone: Backbone, family: str = "bert", /, **spec: object) -> AdaptedModel:
    fields = {"rank": 2, "alpha": 4.0, "targets": TARGETS[family], "last_layers": 1, **spec}
    task = task_for(TextClassification(labels=("no", "yes", "maybe"), max_tokens=16), backbone)
    return attach(backbone, AdapterSpec(**fields), task, STREAM)  # type: ignore[arg-type]


def inputs(model: AdaptedModel) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = model.task.encode(TEXTS, ("no", "yes", "maybe"), np.arange(3))
    return model.task.pad(encoded.inputs)


def scattered(model: AdaptedModel) -> np.ndarray:
    return np.random.default_rng(1).normal(size=model.dimension).astype(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("last", [0, 1, 2])
def test_the_prefix_and_the_suffix_add_up_to_the_model(
    checkpoints: dict[str, tuple[Path, Backbone]], family: str, method: str, last: int
) -> None:
    model = adapted(checkpoints[family][1], family, method=method, last_layers=last)
    model.write_vector(scattered(model))
    ids, mask = inputs(model)
    with torch.no_grad():
        whole = model(ids, mask)
        assert torch.allclose(model.suffix(model.prefix(ids, mask), mask), whole, atol=1e-6)
    assert model.prefix_layers == (3 if method == "head-only" else 3 - (last or 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_run_as_transformers_runs_them(checkpoints: dict[str, tuple[Path, Backbone]], family: str) -> None:
    backbone = checkpoints[family][1]
    model = adapted(backbone, family, method="head-only")
    ids, mask = inputs(model)
    with torch.no_grad():
        expected = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(model.prefix(ids, mask)[mask.bool()], expected[mask.bool()], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_goes_in_and_comes_out_bit_for_bit(checkpoints: dict[str, tuple[Path, Backbone]], method: str) -> None:
    model = adapted(checkpoints["bert"][1], method=method)
    vector = scattered(model)
    model.write_vector(vector)
    assert np.array_equal(model.read_vector(), vector)
    assert model.read_vector().dtype == np.float32
    assert len(model.names) == len(set(model.names)) == len(model.trainable())


def test_a_vector_of_another_length_or_with_a_hole_is_refused_and_changes_nothing(
    checkpoints: dict[str, tuple[Path, Backbone]],
) -> None:
    model = adapted(checkpoints["bert"][1])
    before = model.read_vector()
    holed = before.copy()
    holed[0] = np.nan
    for bad in (before[:-1], holed, before[None]):
        with pytest.raises(ConsiliumError) as caught:
            model.write_vector(bad)
        assert caught.value.code == "CSL-311"
    assert np.array_equal(model.read_vector(), before)


def test_ffa_lora_trains_b_alone_and_its_a_comes_from_the_study(
    checkpoints: dict[str, tuple[Path, Backbone]],
) -> None:
    backbone = checkpoints["bert"][1]
    frozen, free = adapted(backbone, method="ffa-lora"), adapted(backbone, method="lora")
    assert not any("lora_A" in name for name in frozen.names)
    assert sum("lora_A" in name for name in free.names) == sum("lora_B" in name for name in free.names) == 2
    again = adapted(backbone, method="ffa-lora")
    for name, parameter in frozen.named_parameters():
        if "lora_A" in name:
            assert torch.equal(parameter, again.get_parameter(name))
            assert torch.equal(parameter, free.get_parameter(name))
            assert float(parameter.detach().abs().sum()) > 0
        if "lora_B" in name:
            assert not parameter.detach().any()


def kinds(model: AdaptedModel) -> set[str]:
    """Return the last parts of the names of what trains in the encoder."""
    return {".".join(name.split(".")[-2:]) for name in model.names if name.startswith("encoder.")}


def test_ia3_scales_outputs_and_the_input_of_what_projects_down(
    checkpoints: dict[str, tuple[Path, Backbone]],
) -> None:
    model = adapted(checkpoints["bert"][1], method="ia3", targets=("key", "value", "output.dense"))
    sizes = [parameter.numel() for name, parameter in model.trainable() if name.startswith("encoder.")]
    # Key, value and the attention's output are 32 wide; the down-projection is scaled where it is 64 wide.
    assert sizes == [32, 32, 32, 64]
    ids, mask = inputs(model)
    plain = adapted(checkpoints["bert"][1], method="head-only")
    with torch.no_grad():
        assert torch.equal(model.features_of(ids, mask), plain.features_of(ids, mask))
        model.write_vector(model.read_vector() * 2)
        doubled = model.features_of(ids, mask)
        layer = model.encoder.get_submodule("base_model.model.encoder.layer.2.output.dense")
        wide = torch.randn(3, 64)
        assert torch.allclose(layer(wide), layer.get_submodule("base_layer")(wide * 2))
    assert not torch.allclose(doubled, plain.features_of(ids, mask), atol=1e-3)


@pytest.mark.parametrize("method", ["bitfit", "layer-norm", "bottleneck", "ia3"])
def test_a_method_starts_at_the_backbone_and_leaves_it_alone(
    checkpoints: dict[str, tuple[Path, Backbone]], method: str
) -> None:
    backbone = checkpoints["bert"][1]
    plain, model = adapted(backbone, method="head-only"), adapted(backbone, method=method)
    ids, mask = inputs(model)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    expected = plain.features_of(ids, mask)
    assert torch.allclose(model.features_of(ids, mask), expected, atol=1e-6)
    model.write_vector(scattered(model))
    assert not torch.allclose(model.features_of(ids, mask), expected, atol=1e-2)
    assert torch.equal(plain.features_of(ids, mask), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_each_method_trains_what_it_says(checkpoints: dict[str, tuple[Path, Backbone]]) -> None:
    backbone = checkpoints["bert"][1]
    assert {kind.rpartition(".")[2] for kind in kinds(adapted(backbone, method="bitfit"))} == {"bias"}
    assert kinds(adapted(backbone, method="layer-norm")) == {"default.weight", "default.bias"}
    assert kinds(adapted(backbone, method="ia3")) == {"ia3_l.default"}
    assert kinds(adapted(backbone, method="bottleneck")) == {"down.weight", "down.bias", "up.weight", "up.bias"}
    assert kinds(adapted(backbone, method="head-only")) == set()


def test_every_site_starts_a_bottleneck_from_the_same_public_numbers(
    checkpoints: dict[str, tuple[Path, Backbone]],
) -> None:
    backbone = checkpoints["bert"][1]
    first, second = (adapted(backbone, method="bottleneck") for _ in range(2))
    assert np.array_equal(first.read_vector(), second.read_vector())
    assert np.abs(first.read_vector()).sum() > 0


def test_two_models_over_one_backbone_share_its_memory_and_leave_each_other_alone(
    checkpoints: dict[str, tuple[Path, Backbone]],
) -> None:
    backbone = checkpoints["bert"][1]
    first, second = adapted(backbone), adapted(backbone)
    ids, mask = inputs(first)
    untouched = second(ids, mask).detach()
    plain = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
    first.write_vector(scattered(first))
    assert torch.equal(second(ids, mask), untouched)
    assert torch.equal(backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state, plain)
    original = {parameter.data_ptr() for parameter in backbone.model.parameters()}
    shared = {parameter.data_ptr() for parameter in first.encoder.parameters()}
    assert original <= shared


def test_other_examples_in_a_batch_change_nothing(checkpoints: dict[str, tuple[Path, Backbone]]) -> None:
    model = adapted(checkpoints["bert"][1])
    model.write_vector(scattered(model))
    ids, mask = inputs(model)
    alone = ids[1:2, : int(mask[1].sum())]
    with torch.no_grad():
        assert torch.allclose(model(ids, mask)[1:2], model(alone, torch.ones_like(alone)), atol=1e-5)


@pytest.mark.parametrize("spec", [{"targets": ("nowhere",)}, {"last_layers": 4}, {"targets": ("LayerNorm",)}])
@pytest.mark.parametrize("method", ["ffa-lora", "ia3"])
def test_an_adapter_that_does_not_fit_is_refused(
    checkpoints: dict[str, tuple[Path, Backbone]], spec: dict[str, object], method: str
) -> None:
    with pytest.raises(ConsiliumError) as caught:
        adapted(checkpoints["bert"][1], method=method, **spec)
    assert caught.value.code == "CSL-310"


def test_the_label_texts_point_the_head_before_any_training(
    checkpoints: dict[str, tuple[Path, Backbone]],
) -> None:
    backbone = checkpoints["bert"][1]
    texts = ("chest pain", "mild cough")
    spec = TextClassification(labels=("a", "b"), label_texts=texts, max_tokens=16)
    task = task_for(spec, backbone)
    model = attach(backbone, AdapterSpec(rank=2, last_layers=1), task, STREAM)
    ids, mask = task.pad(task.encode(texts, ("a", "b"), np.arange(2)).inputs)
    assert model(ids, mask).argmax(dim=1).tolist() == [0, 1]


@pytest.mark.filterwarnings("ignore:Unsupported layer type.*LayerNorm")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_release_loads_and_gives_the_same_logits(
    checkpoints: dict[str, tuple[Path, Backbone]], tmp_path: Path, family: str, method: str
) -> None:
    folder, backbone = checkpoints[family]
    model = adapted(backbone, family, method=method)
    model.write_vector(scattered(model))
    save_release(model, tmp_path, study=Digest("ab" * 32))
    ids, mask = inputs(model)
    with torch.no_grad():
        expected = model(ids, mask)
        again = load_release(tmp_path, backbone)
        assert torch.equal(again(ids, mask), expected)
        if model.peft_model is not None:
            plain = AutoModel.from_pretrained(
                folder, **({} if family == "distilbert" else {"add_pooling_layer": False})
            )
            hidden = PeftModel.from_pretrained(plain, str(tmp_path)).eval()(input_ids=ids, attention_mask=mask)
            by_hand = again.head(again.task.features(hidden.last_hidden_state, mask))
            assert torch.allclose(by_hand, expected, atol=1e-5)
            config = (tmp_path / "adapter_config.json").read_text()
            assert json.loads(config)["base_model_name_or_path"] == f"tests/tiny-{family}"
            assert str(folder) not in config


def test_a_release_of_another_backbone_is_refused(
    checkpoints: dict[str, tuple[Path, Backbone]], tmp_path: Path
) -> None:
    save_release(adapted(checkpoints["bert"][1]), tmp_path, study=Digest("ab" * 32))
    with pytest.raises(ConsiliumError, match="another backbone") as caught:
        load_release(tmp_path, checkpoints["roberta"][1])
    assert caught.value.code == "CSL-610"


def test_a_release_with_another_methods_parameters_is_refused(
    checkpoints: dict[str, tuple[Path, Backbone]], tmp_path: Path
) -> None:
    backbone = checkpoints["bert"][1]
    (tmp_path / "other").mkdir()
    save_release(adapted(backbone, method="bitfit"), tmp_path, study=Digest("ab" * 32))
    save_release(adapted(backbone, method="bottleneck"), tmp_path / "other", study=Digest("ab" * 32))
    (tmp_path / "other" / "encoder.safetensors").replace(tmp_path / "encoder.safetensors")
    with pytest.raises(ConsiliumError, match=r"CSL-610.*encoder\.safetensors"):
        load_release(tmp_path, backbone)


@pytest.mark.parametrize("file", ["head.safetensors", "task.json", "adapter_config.json"])
def test_a_release_with_a_broken_file_is_refused(
    checkpoints: dict[str, tuple[Path, Backbone]], tmp_path: Path, file: str
) -> None:
    save_release(adapted(checkpoints["bert"][1]), tmp_path, study=Digest("ab" * 32))
    (tmp_path / file).write_bytes(b"broken")
    with pytest.raises(ConsiliumError) as caught:
        load_release(tmp_path, checkpoints["bert"][1])
    assert caught.value.code == "CSL-610"
