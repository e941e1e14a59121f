"""Small random models of the architectures in the notes, each with a loss and synthetic inputs.

``RIGHT`` ones have gradients per example; ``WRONG`` ones run, print an epsilon, and do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from client.examination import Losses

CLASSES = 3


@dataclass(frozen=True)
class Case:
    model: nn.Module
    losses: Losses
    inputs: tuple[Tensor, ...]


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def on_text(model: nn.Module, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    return entropy(model(input_ids=ids, attention_mask=mask).logits, targets)


def on_image(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    return entropy(model(pixel_values=pixels).logits, targets)


def on_sound(model: nn.Module, sound: Tensor, targets: Tensor) -> Tensor:
    return entropy(model(input_values=sound).logits, targets)


def targets() -> Tensor:
    return torch.tensor([0, 1, 2, 1, 2])


def text() -> tuple[Tensor, ...]:
    ids = torch.randint(5, 90, (5, 12))
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    ids[0, 8:] = 0
    return ids, mask, targets()


def image() -> tuple[Tensor, ...]:
    return torch.randn(5, 3, 64, 64), targets()


def spread(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2)
    return model


def lora(model: nn.Module, modules: list[str], saved: tuple[str, ...] = ("classifier",)) -> nn.Module:
    adapted: nn.Module = get_peft_model(
        model, LoraConfig(r=4, target_modules=modules, modules_to_save=list(saved), lora_dropout=0.0)
    )
    return adapted.train()


NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": CLASSES,
}
PATCHES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": CLASSES,
}


def bert(**changes: object) -> nn.Module:
    return spread(tf.BertForSequenceClassification(tf.BertConfig(**SMALL, **(NO_DROPOUT | changes))))


def deberta(modules: list[str], *, share: bool) -> Case:
    settings: dict[str, Any] = (
        SMALL
        | NO_DROPOUT
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": share,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "max_position_embeddings": 64,
            "pooler_dropout": 0.0,
        }
    )
    model = spread(tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**settings)))
    return Case(lora(model, modules, ("classifier", "pooler")), on_text, text())


def swin(modules: list[str]) -> Case:
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
    return Case(lora(spread(tf.SwinForImageClassification(tf.SwinConfig(**settings))), modules), on_image, image())


def convnext(modules: list[str]) -> Case:
    settings: dict[str, Any] = {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_labels": CLASSES,
        "image_size": 64,
    }
    return Case(lora(tf.ConvNextForImageClassification(tf.ConvNextConfig(**settings)), modules), on_image, image())


def wav2vec2(**changes: object) -> Case:
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
    model = tf.Wav2Vec2ForSequenceClassification(tf.Wav2Vec2Config(**(settings | changes)))
    adapted = lora(model, ["q_proj", "v_proj"], ("projector", "classifier"))
    return Case(adapted, on_sound, (torch.randn(5, 4000), targets()))


def resnet(*, training: bool) -> Case:
    settings: dict[str, Any] = {
        "embedding_size": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "layer_type": "basic",
        "num_labels": CLASSES,
    }
    model = tf.ResNetForImageClassification(tf.ResNetConfig(**settings))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("classifier" in name)
    return Case(model.train(training), on_image, image())


def prompt_tuning() -> Case:
    model = get_peft_model(bert(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))
    for name, parameter in model.named_parameters():
        if "classifier" in name:
            parameter.requires_grad_(False)
    return Case(model.train(), on_text, text())


def weighted(*, reduction: str) -> Case:
    weight = torch.tensor([1.0, 3.0, 9.0])

    def losses(model: nn.Module, ids: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask).logits
        if reduction == "mean":
            return nn.functional.cross_entropy(logits, goal, weight=weight)
        each = nn.functional.cross_entropy(logits, goal, weight=weight, reduction="none")
        return each * len(goal) / weight[goal].sum() if reduction == "hidden mean" else each

    return Case(lora(bert(), ["query", "value"]), losses, text())


class Centred(nn.Module):
    """Subtracts the mean of the batch: no parameter, no buffer, and every example in every other."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


def centred() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), Centred(), nn.Linear(8, CLASSES))
    return Case(model, lambda m, x, goal: entropy(m(x), goal), (torch.randn(5, 6), targets()))


class Contrast(nn.Module):
    """A gradient that mixes examples although the forward pass does not."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(_: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: object, gradient: Tensor) -> Tensor:
            return gradient + 0.5 * gradient.mean(dim=0, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.Mixed.apply(x)  # type: ignore[no-untyped-call]
        return mixed


def contrast() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), Contrast(), nn.Linear(8, CLASSES))
    return Case(model, lambda m, x, goal: entropy(m(x), goal), (torch.randn(5, 6), targets()))


def modernbert() -> Case:
    settings: dict[str, Any] = SMALL | {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "global_attn_every_n_layers": 1,
    }
    model = tf.ModernBertForSequenceClassification(tf.ModernBertConfig(**settings))
    return Case(lora(spread(model), ["Wqkv"]), on_text, text())


def llama() -> Case:
    config = tf.LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=0)
    model = spread(tf.LlamaForSequenceClassification(config))  # type: ignore[no-untyped-call]
    return Case(lora(model, ["q_proj", "v_proj"], ("score",)), on_text, text())


def roberta() -> Case:
    model = tf.RobertaForSequenceClassification(tf.RobertaConfig(**SMALL, **NO_DROPOUT))
    return Case(lora(spread(model), ["query", "value"]), on_text, text())


def distilbert() -> Case:
    settings: dict[str, Any] = {
        "vocab_size": 100,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "num_labels": CLASSES,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    }
    model = spread(tf.DistilBertForSequenceClassification(tf.DistilBertConfig(**settings)))
    return Case(lora(model, ["q_lin", "v_lin"], ("pre_classifier", "classifier")), on_text, text())


def vit(*, full: bool) -> Case:
    model = spread(tf.ViTForImageClassification(tf.ViTConfig(**PATCHES, **NO_DROPOUT)))
    return Case(model.train() if full else lora(model, ["q_proj", "v_proj", "query", "value"]), on_image, image())


def dinov2() -> Case:
    model = tf.Dinov2ForImageClassification(tf.Dinov2Config(**PATCHES, **NO_DROPOUT, drop_path_rate=0.0))
    return Case(lora(spread(model), ["query", "value", "q_proj", "v_proj"]), on_image, image())


def layer_norms() -> Case:
    model = bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("LayerNorm" in name or "classifier" in name)
    return Case(model.train(), on_text, text())


RIGHT: Mapping[str, Callable[[], Case]] = {
    "bert": lambda: Case(lora(bert(), ["query", "value"]), on_text, text()),
    "bert layer norms": layer_norms,
    "roberta": roberta,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "llama": llama,
    "deberta without a shared key": lambda: deberta(["query_proj", "key_proj", "value_proj"], share=False),
    "deberta, values only": lambda: deberta(["value_proj"], share=True),
    "vit": lambda: vit(full=False),
    "dinov2": dinov2,
    "convnext, pointwise": lambda: convnext(["pwconv1", "pwconv2"]),
    "wav2vec2": wav2vec2,
    "class weights without a mean": lambda: weighted(reduction="none"),
    "resnet, batch norm frozen in evaluation mode": lambda: resnet(training=False),
}

WRONG: Mapping[str, tuple[Callable[[], Case], str]] = {
    "deberta with a shared key": (lambda: deberta(["query_proj", "key_proj", "value_proj"], share=True), "_proj"),
    "swin, windowed": (lambda: swin(["query", "value", "q_proj", "v_proj"]), "lora_"),
    "resnet, batch norm in train mode": (lambda: resnet(training=True), "(BatchNorm2d) mixes"),
    "convnext, strided convolution": (lambda: convnext(["downsampling_layer.1"]), "downsampling_layer"),
    "wav2vec2 with layerdrop": (lambda: wav2vec2(layerdrop=0.1), "two runs"),
    "bert with dropout": (lambda: Case(lora(bert(hidden_dropout_prob=0.1), ["query"]), on_text, text()), "dropout"),
    "prompt tuning": (prompt_tuning, "prompt"),
    "class-weighted mean": (lambda: weighted(reduction="mean"), "one number an example"),
    "class-weighted mean in disguise": (lambda: weighted(reduction="hidden mean"), "the loss"),
    "batch centring": (centred, "1: what is computed"),
    "a backward pass that mixes": (contrast, "0."),
}
