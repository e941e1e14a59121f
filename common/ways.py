"""Ways to transfer, by the names that people use, and which of them fit which task on which family of backbone.

A way is a change of a study's adapter, and no more. What does not fit is refused by the code that would have to do it,
with CSL-310 or CSL-322; :func:`refusal` says the same beforehand, without a model, and a test holds the one against the
other. Loads without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from common.transfer import AdapterSpec, Method

TEXT_TASKS = (
    "text-classification", "multi-label-classification", "token-classification", "causal-language-modelling",
    "masked-language-modelling", "retrieval", "regression", "tabular-classification",
)  # fmt: skip
TASKS = (*TEXT_TASKS, "image-classification", "audio-classification")

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
DECODERS = ("gpt2", "llama")
IMAGES = ("vit", "deit", "dinov2", "mobilenet_v1")
SOUNDS = ("wav2vec2", "audio-spectrogram-transformer")
FAMILIES = (*ENCODERS, *DECODERS, *IMAGES, *SOUNDS)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to transfer.

    method       what trains
    last_layers  how many layers it adapts, None for as many as the study says
    pretrains    whether the adapter first learns from texts without their labels
    mixed        whether sites have ranks of their own
    about        what it is, in a line
    """

    method: Method
    about: str = field(kw_only=True)
    last_layers: int | None = field(default=None, kw_only=True)
    pretrains: bool = field(default=False, kw_only=True)
    mixed: bool = field(default=False, kw_only=True)

    def adapter(self, spec: AdapterSpec) -> AdapterSpec:
        """Return a study's adapter changed to this way; ranks of sites are the study's own affair."""
        layers = spec.last_layers if self.last_layers is None else self.last_layers
        ranks = spec.site_ranks if self.mixed else {}
        return spec.model_copy(update={"method": self.method, "last_layers": layers, "site_ranks": ranks})


WAYS: Mapping[str, Way] = {
    "feature-extraction": Way("head-only", about="the backbone as it is, its features computed once; a head trains"),
    "last-layer": Way("full", last_layers=1, about="every weight of the last layer, and a head"),
    "ffa-lora": Way("ffa-lora", about="low-rank updates whose first factor is shared and frozen"),
    "lora": Way("lora", about="low-rank updates, both factors"),
    "rolora": Way("rolora", about="low-rank updates, the factors by turns"),
    "ia3": Way("ia3", about="vectors that scale what linear layers put out"),
    "bottleneck": Way("bottleneck", about="a small network behind each layer"),
    "bitfit": Way("bitfit", about="biases alone"),
    "layer-norm": Way("layer-norm", about="the gains and shifts of layer norms"),
    "full": Way("full", about="every weight of the layers"),
    "mixed-ranks": Way("ffa-lora", mixed=True, about="ffa-lora, where each site has a rank that suits it"),
    "continued-pretraining": Way(
        "ffa-lora", pretrains=True, about="ffa-lora, first on texts without labels, then on the task"
    ),
}
"""All ways by name."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a way does a task on a family of backbones, and where not, why."""

    way: str
    task: str
    backbone: str
    supported: bool
    reason: str | None = None


def fits() -> Iterator[Fit]:
    """Yield every way with every task on every family."""
    for way in WAYS:
        for task in TASKS:
            for family in FAMILIES:
                reason = refusal(way, task, family)
                yield Fit(way, task, family, reason is None, reason)


def refusal(way: str, task: str, family: str) -> str | None:
    """Return why a way cannot do a task on a family of backbones, None where it can."""
    chosen = WAYS[way]
    return _of_task(task, family) or _of_method(chosen.method, family) or _of_head(chosen, task, family)


def _of_task(task: str, family: str) -> str | None:
    if task in TEXT_TASKS and family in (*IMAGES, *SOUNDS):
        return "the backbone does not read texts"
    if task == "image-classification" and family not in IMAGES:
        return "the backbone does not read images"
    if task == "audio-classification" and family in (*ENCODERS, *DECODERS):
        return "the backbone does not read sound"
    if task == "causal-language-modelling" and family in ENCODERS:
        return "each token of this backbone sees those behind it"
    if task == "masked-language-modelling" and family in DECODERS:
        return "no token of this backbone sees those behind it"
    return None


def _of_method(method: Method, family: str) -> str | None:
    if method == "ia3" and family in ("gpt2", "mobilenet_v1"):
        return "the usual targets are no linear layers, which IA3 scales"
    if method == "bitfit" and family in ("llama", "mobilenet_v1"):
        return "the layers have no bias"
    if method == "layer-norm" and family in ("llama", "mobilenet_v1"):
        return "the layers have no layer norm; other norms stay frozen"
    return None


def _of_head(way: Way, task: str, family: str) -> str | None:
    if way.method == "head-only" and task in ("causal-language-modelling", "masked-language-modelling"):
        return "language modelling has no head of its own that could train alone"
    if way.pretrains and family in (*IMAGES, *SOUNDS):
        return "pretraining is of texts"
    if way.pretrains and task in ("causal-language-modelling", "masked-language-modelling"):
        return "the task is what pretraining would be"
    if way.pretrains and task == "tabular-classification":
        return "pretraining is of texts, and these records are rows"
    return None
