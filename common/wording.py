"""A study in words, for whoever decides on it, runs it or is handed its release: one voice on every page.

Sentences are made from the Study alone. They may hold what an operator wrote: whoever prints them makes that harmless.
Loads without torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.study import Study
from common.task_specs import (
    AnyTask,
    AudioClassification,
    CausalLanguageModelling,
    ImageClassification,
    MaskedLanguageModelling,
    MultiLabelClassification,
    NumericField,
    Regression,
    Retrieval,
    RowField,
    TabularClassification,
    TokenClassification,
)
from common.transfer import RANKED, AdapterSpec, FeatureReference, Personal, Pretraining, Training

OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "fedavg": "FedAvg",
    "fedmomentum": "FedAvg with momentum",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
}
"""What optimisers are called, the sites' and the server's."""
_SHOWN = 12
"""Names that a sentence lists; of more it says how many."""


def facts(study: Study) -> tuple[tuple[str, str], ...]:
    """Return what a study learns and how, as headings with a sentence each; what it does not do is left out."""
    task, adapter = study.task, study.adapter
    fields = task.fields if isinstance(task, TabularClassification) else ()
    found = (
        ("Task", f"{task.kind}: it {does(task)}; its score: {task.score}"),
        ("Reads", reads(task)),
        ("Labels", listed(task.known_labels)),
        ("Fields", listed(tuple(map(field_words, fields)))),
        ("Adapter", adapts(adapter, task)),
        ("Ranks", differing_ranks(adapter)),
        ("Training", trains(study.training)),
        ("Pretraining", pretrains(study.pretraining, study.training, task)),
        ("Stays at a site", keeps(study.personal)),
        ("Compared with", compares(study.reference)),
    )
    return tuple((heading, said) for heading, said in found if said)


def listed(names: Sequence[str]) -> str:
    """Return names with commas between; of many the first, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def does(task: AnyTask) -> str:
    """Return what a task does, as a phrase behind "it": ``assigns one of 3 labels to an image``."""
    count = f"{len(task.known_labels):,} labels"
    match task:
        case MultiLabelClassification():
            return f"assigns any number of {count} to a text"
        case TokenClassification():
            return f"assigns one of {count} to each word of a text"
        case CausalLanguageModelling():
            return "predicts each token of a text from those before it"
        case MaskedLanguageModelling():
            return f"predicts masked tokens of a text, {task.mask_share:.0%} of them, from those around them"
        case Retrieval():
            texts = "text" if len(task.negatives) == 1 else "texts"
            return f"brings a question near its answer, and away from {len(task.negatives):,} public {texts}"
        case Regression():
            return f"predicts a number from {task.low:g} to {task.high:g} for a text"
        case ImageClassification():
            return f"assigns one of {count} to an image"
        case AudioClassification():
            return f"assigns one of {count} to a recording"
        case TabularClassification():
            return f"assigns one of {count} to a row of fields"
    return f"assigns one of {count} to a text"


def scored(task: AnyTask) -> str:
    """Return what is scored, in one sentence."""
    if isinstance(task, Regression):
        return (
            f"The score is {task.score}: one less the error in parts of the distance from {task.low:g} to "
            f"{task.high:g}, the mean over records."
        )
    return f"The score is {task.score}, the mean over records."


def reads(task: AnyTask) -> str:
    """Return what a task reads of a record, and what label it looks for."""
    match task:
        case ImageClassification():
            return f"images, each brought to {task.size:,} by {task.size:,} pixels"
        case AudioClassification():
            return f"recordings, the first {task.seconds:g} s of each at {task.rate:,} samples a second"
        case TabularClassification():
            beside = f", and as numbers through a layer of {task.numbers:,} units" if task.numbers else ""
            return f"rows, written down as a text of up to {task.max_tokens:,} tokens{beside}"
    answers = "" if task.reads_labels else "; labels are not looked at"
    return f"texts, up to {task.max_tokens:,} tokens of each{answers}"


def field_words(one: RowField) -> str:
    """Return a field of a row with its public bounds or levels."""
    if isinstance(one, NumericField):
        return f"{one.name} ({one.low:g} to {one.high:g})"
    return f"{one.name} ({'/'.join(one.levels)})"


def has_head(task: AnyTask, adapter: AdapterSpec) -> bool:
    """Whether the task adds weights of its own, behind the backbone."""
    if isinstance(task, CausalLanguageModelling | MaskedLanguageModelling):
        return False
    return adapter.method == "head-only" or not isinstance(task, Retrieval)


def adapts(adapter: AdapterSpec, task: AnyTask) -> str:
    """Return which weights train and travel."""
    if adapter.method == "head-only":
        return "the task's head alone, on the backbone as it is"
    layers = f"of the last {adapter.last_layers} layer(s)" if adapter.last_layers else "of all layers"
    at = "" if adapter.method == "bottleneck" else f" on {', '.join(adapter.targets)}"
    ranked = f", rank {adapter.rank}{at}" if adapter.method in RANKED else ""
    head = ", and the task's head" if has_head(task, adapter) else ""
    return f"{adapter.method}{ranked} {layers}{head}"


def differing_ranks(adapter: AdapterSpec) -> str:
    """Return which sites train smaller ranks; empty where none does."""
    if not adapter.site_ranks:
        return ""
    smaller = listed([f"{site} rank {rank}" for site, rank in sorted(adapter.site_ranks.items())])
    return f"some sites train less than rank {adapter.rank}: {smaller}; what too few train is left out of a sum"


def trains(training: Training) -> str:
    """Return how sites and server train."""
    momentum = f" with momentum {training.momentum:g}" if training.momentum and training.optimizer == "sgd" else ""
    pull = f", pulled to the round's start by {training.proximal:g} (FedProx)" if training.proximal else ""
    faded = f" {training.server_momentum:g}" if training.server_optimizer == "fedmomentum" else ""
    schedule = f", {training.schedule}"
    at_sites, at_server = ("", schedule) if training.is_adaptive else (schedule, "")
    return (
        f"{OPTIMIZERS[training.optimizer]}{momentum} at the sites, rate {training.learning_rate:g}{at_sites}{pull}; "
        f"{OPTIMIZERS[training.server_optimizer]}{faded} at the server, rate {training.server_learning_rate:g}"
        f"{at_server}"
    )


def pretrains(pretraining: Pretraining | None, training: Training, task: AnyTask) -> str:
    """Return what the first rounds learn without labels; empty where all learn the task."""
    if pretraining is None:
        return ""
    alone = "; a record without a label takes part in these alone" if task.reads_labels and not task.accepts("") else ""
    return (
        f"in the first {pretraining.rounds:,} of {training.rounds:,} rounds it {does(pretraining.objective)}, and "
        f"looks at no label{alone}"
    )


def keeps(personal: Personal) -> str:
    """Return what a site fits for itself after the last round; empty where it uses the shared model as it is."""
    if personal.method == "none":
        return ""
    what = {
        "head": "a head of its own on the shared adapter",
        "adapter": f"head and adapter of its own, pulled to the shared ones by {personal.strength:g} (Ditto)",
        "interpolation": "a mean of the shared weights and of weights fitted here alone",
    }[personal.method]
    return f"after the last round a site may fit {what}, in {personal.steps:,} steps; nothing of it leaves"


def compares(reference: FeatureReference | None) -> str:
    """Return to which public data a site can compare its own; empty where the study carries none."""
    if reference is None:
        return ""
    return (
        f"mean and deviation of {len(reference.mean):,} features of public data, “{reference.data}”: a site can see "
        "how far its own are from them"
    )
