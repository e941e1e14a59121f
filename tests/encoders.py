"""Tiny encoders with random weights and a word-level tokeniser, written as real checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MobileNetV1Config,
    MobileNetV1Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from common.backbone import describe
from common.study import BackboneManifest

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("pain", "fever", "cough", "fall", "chest", "mild", "severe", "since", "yesterday", "no", "with", "and")

_VOCABULARY = len(_SPECIAL) + len(WORDS)
_SPREAD = 8.0


def write_tokeniser(folder: Path) -> None:
    """Write a fast tokeniser of a few words."""
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *WORDS, "<mask>"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    ).save_pretrained(str(folder))


def write_encoder(folder: Path, family: str = "bert", layers: int = 3) -> BackboneManifest:
    """Write a tiny checkpoint of one family and return its manifest."""
    torch.manual_seed(0)
    model = (_TEXT | _OTHERS)[family](layers)
    if family in _TEXT:
        # The mask comes last, so that all other weights are as they are without one.
        model.resize_token_embeddings(_VOCABULARY + 1, mean_resizing=False)
    # Random weights give features too alike to tell words apart; spread them.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_SPREAD)
    model.save_pretrained(str(folder), safe_serialization=True)
    if family in _TEXT:
        write_tokeniser(folder)
    else:
        (folder / "preprocessor_config.json").write_text("{}")
    return describe(
        folder,
        name=f"tests/tiny-{family}",
        source="tests",
        revision="1",
        licence="Apache-2.0",
        training_data="none: random weights",
    )


def _bert(layers: int) -> PreTrainedModel:
    return BertModel(
        BertConfig(
            vocab_size=_VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=66,
            pad_token_id=0,
        )
    )


def _roberta(layers: int) -> PreTrainedModel:
    return RobertaModel(
        RobertaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=66,
            pad_token_id=0,
        )
    )


def _gpt2(layers: int) -> PreTrainedModel:
    return GPT2Model(
        GPT2Config(
            vocab_size=_VOCABULARY, n_embd=32, n_layer=layers, n_head=2, n_inner=64, n_positions=66,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _llama(layers: int) -> PreTrainedModel:
    return LlamaModel(
        LlamaConfig(
            vocab_size=_VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=66, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _vit(layers: int) -> PreTrainedModel:
    return ViTModel(
        ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, image_size=16,
            patch_size=8,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def _mobilenet(layers: int) -> PreTrainedModel:
    del layers
    model = MobileNetV1Model(MobileNetV1Config(image_size=32, depth_multiplier=0.25), add_pooling_layer=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            # As loud behind 26 layers as in front of them once spread: what dies away on the way is below float16.
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data.div_(_SPREAD)
    return model


def _wav2vec2(layers: int) -> PreTrainedModel:
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, conv_dim=(16, 16),
            conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip


def _ast(layers: int) -> PreTrainedModel:
    return ASTModel(
        ASTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, patch_size=4,
            max_length=24, num_mel_bins=16, frequency_stride=4, time_stride=4,
        )
    )  # fmt: skip


def _distilbert(layers: int) -> PreTrainedModel:
    return DistilBertModel(
        DistilBertConfig(
            vocab_size=_VOCABULARY,
            dim=32,
            hidden_dim=64,
            n_layers=layers,
            n_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


_TEXT = {"bert": _bert, "roberta": _roberta, "distilbert": _distilbert, "gpt2": _gpt2, "llama": _llama}
_OTHERS = {"vit": _vit, "mobilenet_v1": _mobilenet, "wav2vec2": _wav2vec2, "ast": _ast}
FAMILIES = (*_TEXT, *_OTHERS)
"""Every family of which :func:`write_encoder` makes one."""
