"""Tiny encoders with random weights and a word-level tokeniser, written as real checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from common.backbone import describe
from common.study import BackboneManifest

WORDS = ("pain", "fever", "cough", "fall", "chest", "mild", "severe", "since", "yesterday", "no", "with", "and")


def write_tokeniser(folder: Path) -> None:
    """Write a fast tokeniser of a few words."""
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>"
    ).save_pretrained(str(folder))


def write_encoder(folder: Path, family: str = "bert", layers: int = 3) -> BackboneManifest:
    """Write a tiny checkpoint of one family and return its manifest."""
    torch.manual_seed(0)
    model = _MAKERS[family](layers)
    # Random weights give features too alike to tell words apart; spread them.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(str(folder), safe_serialization=True)
    write_tokeniser(folder)
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


_VOCABULARY = 4 + len(WORDS)
_MAKERS = {"bert": _bert, "roberta": _roberta, "distilbert": _distilbert}
