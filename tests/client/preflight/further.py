"""Small random models of architectures, adapters and hazards that nobody listed: what preflight says must be true.

No verdict is written here: :mod:`tests.client.preflight.test_further` finds the truth by brute force.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
import transformers as tf
from torch import Tensor, nn

from tests.client.preflight.architectures import (
    CLASSES,
    NO_DROPOUT,
    PATCHES,
    SMALL,
    Case,
    bert,
    entropy,
    image,
    lora,
    modernbert,
    on_image,
    on_sound,
    on_text,
    spread,
    targets,
    text,
    vit,
)

Q_V = ["query", "value"]
QP_VP = ["q_proj", "v_proj"]


def training(model: nn.Module, *parts: str) -> nn.Module:
    """Train only the parameters whose name holds one of some parts; all without any part."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not parts or any(part in name for part in parts))
    return model.train()


def on_ids(model: nn.Module, ids: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
    del mask
    return entropy(model(input_ids=ids).logits, goal)


def albert(*parts: str) -> Case:
    settings: dict[str, Any] = SMALL | NO_DROPOUT | {"embedding_size": 16, "classifier_dropout_prob": 0.0}
    model = spread(tf.AlbertForSequenceClassification(tf.AlbertConfig(**settings)))
    return Case(training(model, *parts) if parts else lora(model, Q_V), on_text, text())


def mobilebert(*parts: str) -> Case:
    settings: dict[str, Any] = (
        SMALL | NO_DROPOUT | {"embedding_size": 32, "intra_bottleneck_size": 16, "num_feedforward_networks": 2}
    )
    model = spread(tf.MobileBertForSequenceClassification(tf.MobileBertConfig(**settings)))
    return Case(training(model, *parts) if parts else lora(model, Q_V), on_text, text())


def gpt2() -> Case:
    settings: dict[str, Any] = {
        "vocab_size": 100,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "num_labels": CLASSES,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "pad_token_id": 0,
    }
    model = spread(tf.GPT2ForSequenceClassification(tf.GPT2Config(**settings)))
    return Case(lora(model, ["c_attn"], ("score",)), on_text, text())


def t5() -> Case:
    settings: dict[str, Any] = {
        "vocab_size": 100,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_labels": CLASSES,
        "dropout_rate": 0.0,
        "classifier_dropout": 0.0,
    }
    model = lora(spread(tf.T5ForTokenClassification(tf.T5Config(**settings))), ["q", "v"])

    def losses(model: nn.Module, ids: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
        return entropy(model(input_ids=ids, attention_mask=mask).logits.mean(dim=1), goal)

    return Case(model, losses, text())


def electra() -> Case:
    settings: dict[str, Any] = SMALL | NO_DROPOUT | {"embedding_size": 32}
    return Case(lora(spread(tf.ElectraForSequenceClassification(tf.ElectraConfig(**settings))), Q_V), on_text, text())


def squeezebert() -> Case:
    """Its linear layers are grouped one-dimensional convolutions."""
    settings: dict[str, Any] = SMALL | NO_DROPOUT | {"embedding_size": 32}
    model = spread(tf.SqueezeBertForSequenceClassification(tf.SqueezeBertConfig(**settings)))
    return Case(training(model, "query", "value", "classifier"), on_text, text())


def fnet() -> Case:
    settings: dict[str, Any] = {key: value for key, value in SMALL.items() if key != "num_attention_heads"}
    model = spread(tf.FNetForSequenceClassification(tf.FNetConfig(**settings, hidden_dropout_prob=0.0)))
    return Case(lora(model, ["intermediate.dense", "output.dense"]), on_ids, text())


def xlnet() -> Case:
    """Inside, dimension 0 is time."""
    settings: dict[str, Any] = {
        "vocab_size": 100,
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 64,
        "num_labels": CLASSES,
        "dropout": 0.0,
        "summary_last_dropout": 0.0,
    }
    model = spread(tf.XLNetForSequenceClassification(tf.XLNetConfig(**settings)))
    return Case(lora(model, ["layer_1", "layer_2"], ("logits_proj",)), on_text, text())


def longformer() -> Case:
    """Inside its attention, dimension 0 is time."""
    settings: dict[str, Any] = SMALL | NO_DROPOUT | {"attention_window": 4, "max_position_embeddings": 64}
    model = spread(tf.LongformerForSequenceClassification(tf.LongformerConfig(**settings, pad_token_id=1)))
    return Case(lora(model, Q_V), on_text, text())


def opt(modules: list[str]) -> Case:
    settings: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "num_labels": CLASSES,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
    }
    model = spread(tf.OPTForSequenceClassification(tf.OPTConfig(**settings)))
    return Case(lora(model, modules, ("score",)), on_text, text())


def mixtral(*parts: str) -> Case:
    settings: dict[str, Any] = SMALL | {
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
    }
    model = spread(tf.MixtralForSequenceClassification(tf.MixtralConfig(**settings)))  # type: ignore[no-untyped-call]
    return Case(training(model, *parts) if parts else lora(model, QP_VP, ("score",)), on_text, text())


def mamba() -> Case:
    model = tf.MambaForCausalLM(tf.MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4))

    def losses(model: nn.Module, ids: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
        del mask
        return entropy(model(input_ids=ids).logits[:, -1, :CLASSES], goal)

    return Case(training(model, "in_proj", "x_proj"), losses, text())


def modernbert_norms() -> Case:
    """Its layer norms have no bias."""
    model = modernbert().model
    assert isinstance(model, peft.PeftModel)
    return Case(training(model, "norm.weight", "modules_to_save"), on_text, text())


def deit() -> Case:
    model = spread(tf.DeiTForImageClassification(tf.DeiTConfig(**PATCHES, **NO_DROPOUT)))
    return Case(lora(model, QP_VP), on_image, image())


def swin_v2() -> Case:
    settings: dict[str, Any] = NO_DROPOUT | {
        "image_size": 64,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        "num_labels": CLASSES,
        "drop_path_rate": 0.0,
    }
    return Case(lora(spread(tf.Swinv2ForImageClassification(tf.Swinv2Config(**settings))), Q_V), on_image, image())


def dinov2(drop_path: float) -> Case:
    model = tf.Dinov2ForImageClassification(tf.Dinov2Config(**PATCHES, **NO_DROPOUT, drop_path_rate=drop_path))
    return Case(lora(spread(model), [*Q_V, *QP_VP]), on_image, image())


def mobilenet(*parts: str, training_mode: bool) -> Case:
    settings: dict[str, Any] = {
        "image_size": 32,
        "num_labels": CLASSES,
        "depth_multiplier": 0.25,
        "classifier_dropout_prob": 0.0,
    }
    model = tf.MobileNetV2ForImageClassification(tf.MobileNetV2Config(**settings))
    pixels = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        # Running statistics that fit, or nothing would be left of an image behind fifty layers.
        for _ in range(30):
            model.train()(pixel_values=pixels)
    return Case(training(model, *parts).train(training_mode), on_image, (pixels, targets()))


def convnext_depthwise(layer_scale: float) -> Case:
    settings: dict[str, Any] = {"hidden_sizes": [16] * 4, "depths": [1] * 4, "image_size": 64, "num_labels": CLASSES}
    settings["layer_scale_init_value"] = layer_scale
    model = tf.ConvNextForImageClassification(tf.ConvNextConfig(**settings))
    # PEFT wants a rank that the number of groups divides.
    config = peft.LoraConfig(r=16, target_modules=["dwconv"], modules_to_save=["classifier"])
    adapted: nn.Module = peft.get_peft_model(model, config)
    return Case(adapted.train(), on_image, image())


def hubert() -> Case:
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": (16, 16, 16),
        "conv_stride": (5, 4, 4),
        "conv_kernel": (10, 8, 8),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 16,
        "num_labels": CLASSES,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
    }
    model = lora(tf.HubertForSequenceClassification(tf.HubertConfig(**settings)), QP_VP, ("projector", "classifier"))
    return Case(model, on_sound, (torch.randn(5, 4000), targets()))


def whisper() -> Case:
    settings: dict[str, Any] = {
        "vocab_size": 100,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "num_labels": CLASSES,
        "classifier_proj_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    model = spread(tf.WhisperForAudioClassification(tf.WhisperConfig(**settings)))

    def losses(model: nn.Module, sound: Tensor, goal: Tensor) -> Tensor:
        return entropy(model(input_features=sound).logits, goal)

    return Case(lora(model, QP_VP, ("projector", "classifier")), losses, (torch.randn(5, 8, 40), targets()))


def with_peft(config: peft.PeftConfig) -> Case:
    model: nn.Module = peft.get_peft_model(bert(), config)
    return Case(model.train(), on_text, text())


def checkpointed() -> Case:
    model = bert()
    assert isinstance(model, tf.PreTrainedModel)
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    return Case(lora(model, Q_V), on_text, text())


def embeddings_frozen(case: Case, *parts: str) -> Case:
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    return case


SEQUENCE: dict[str, Any] = {"task_type": "SEQ_CLS"}
ATTENTION: dict[str, Any] = SEQUENCE | {"target_modules": Q_V}

FURTHER: Mapping[str, Callable[[], Case]] = {
    "albert, one layer used twice": albert,
    "albert, layer norms of a shared layer": lambda: albert("LayerNorm", "layer_norm", "classifier"),
    "mobilebert": mobilebert,
    "mobilebert, its own kind of norm": lambda: mobilebert("LayerNorm", "classifier"),
    "gpt2": gpt2,
    "t5 encoder": t5,
    "electra": electra,
    "squeezebert": squeezebert,
    "fnet": fnet,
    "xlnet": xlnet,
    "longformer": longformer,
    "opt, attention": lambda: opt(QP_VP),
    "opt, feed-forward on flattened tokens": lambda: opt(["fc1", "fc2"]),
    "mixtral, attention": mixtral,
    "mixtral, router": lambda: mixtral("gate"),
    "mamba": mamba,
    "modernbert, norms without a bias": modernbert_norms,
    "deit": deit,
    "swin v2": swin_v2,
    "dinov2 that drops layers": lambda: dinov2(0.3),
    "mobilenet v2, head, in evaluation mode": lambda: mobilenet("classifier", training_mode=False),
    "mobilenet v2, head, in train mode": lambda: mobilenet("classifier", training_mode=True),
    "mobilenet v2, batch norm trains": lambda: mobilenet("classifier", "normalization", training_mode=False),
    "convnext, depthwise": lambda: convnext_depthwise(1.0),
    "convnext, depthwise, of little effect yet": lambda: convnext_depthwise(1e-3),
    "hubert": hubert,
    "whisper encoder": whisper,
    "vit, everything": lambda: vit(full=True),
    "vit, all but bare parameters": lambda: embeddings_frozen(vit(full=True), "cls_token", "position_embeddings"),
    "bert, everything": lambda: Case(training(bert()), on_text, text()),
    "bert, all but positions": lambda: embeddings_frozen(
        Case(bert().train(), on_text, text()), "position_embeddings", "token_type"
    ),
    "bert, biases": lambda: Case(training(bert(), "bias"), on_text, text()),
    "bert, gradient checkpointing": checkpointed,
    "peft: rank-stabilised lora": lambda: with_peft(peft.LoraConfig(**ATTENTION, r=4, use_rslora=True)),
    "peft: lora on every linear layer": lambda: with_peft(
        peft.LoraConfig(**SEQUENCE, r=4, target_modules="all-linear")
    ),
    "peft: lora on embeddings": lambda: with_peft(peft.LoraConfig(**SEQUENCE, r=4, target_modules=["word_embeddings"])),
    "peft: dora": lambda: with_peft(peft.LoraConfig(**ATTENTION, r=4, use_dora=True)),
    "peft: its own ia3": lambda: with_peft(peft.IA3Config(**ATTENTION, feedforward_modules=[])),
    "peft: adalora": lambda: with_peft(peft.AdaLoraConfig(**ATTENTION, total_step=10)),
    "peft: vera": lambda: with_peft(peft.VeraConfig(**ATTENTION, r=4)),
    "peft: loha": lambda: with_peft(peft.LoHaConfig(**ATTENTION, r=4)),
    "peft: lokr": lambda: with_peft(peft.LoKrConfig(**ATTENTION, r=4)),
    "peft: fourier": lambda: with_peft(peft.FourierFTConfig(**ATTENTION, n_frequency=16)),
    "peft: oft": lambda: with_peft(peft.OFTConfig(**ATTENTION, r=4, oft_block_size=0)),
    "peft: p-tuning": lambda: with_peft(peft.PromptEncoderConfig(**SEQUENCE, num_virtual_tokens=4)),
    "peft: layer-norm tuning": lambda: with_peft(peft.LNTuningConfig(**SEQUENCE, target_modules=["LayerNorm"])),
}
