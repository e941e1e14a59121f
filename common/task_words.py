"""What a study's task is, in words, for pages and cards that people read. Loads without torch."""

from __future__ import annotations

from common.task_specs import (
    AnyTask,
    AudioClassification,
    CausalLanguageModelling,
    ImageClassification,
    MaskedLanguageModelling,
    MultiLabelClassification,
    Regression,
    Retrieval,
    TabularClassification,
    TokenClassification,
)

_SHOWN = 12
"""Labels that are named; of more, how many there are."""


def task_in_words(task: AnyTask) -> str:
    """Return what the sites learn to do: half a sentence that begins with a verb."""
    labels = ", ".join(task.known_labels[:_SHOWN])
    if len(task.known_labels) > _SHOWN:
        labels += f", and {len(task.known_labels) - _SHOWN:,} more"
    one = f"assign one of {len(task.known_labels):,} labels to"
    match task:
        case MultiLabelClassification():
            return f"assign any of {len(task.labels):,} labels to {_text(task.max_tokens)}: {labels}"
        case TokenClassification():
            return f"{one} each word of {_text(task.max_tokens)}: {labels}"
        case CausalLanguageModelling():
            return f"predict each token of {_text(task.max_tokens)} from those before it"
        case MaskedLanguageModelling():
            return f"predict the {task.mask_share:.0%} of tokens that are masked in {_text(task.max_tokens)}"
        case Retrieval():
            return (
                f"bring a question, {_text(task.max_tokens)}, nearer to its answer than to {len(task.negatives):,} "
                "public texts"
            )
        case Regression():
            return f"predict a number from {task.low:g} to {task.high:g} from {_text(task.max_tokens)}"
        case ImageClassification():
            return f"{one} an image, brought to {task.size} by {task.size} pixels: {labels}"
        case AudioClassification():
            return f"{one} a recording, its first {task.seconds:g} s at {task.rate:,} samples a second: {labels}"
        case TabularClassification():
            beside = " and read as numbers beside it" if task.numbers else ""
            return f"{one} a row of {len(task.fields):,} fields, written as {_text(task.max_tokens)}{beside}: {labels}"
    return f"{one} {_text(task.max_tokens)}: {labels}"


def score_in_words(task: AnyTask) -> str:
    """Return what is scored, in one sentence."""
    if isinstance(task, Regression):
        return (
            f"The score is {task.score}: one less the error in parts of the distance from {task.low:g} to "
            f"{task.high:g}, the mean over records."
        )
    return f"The score is {task.score}, the mean over records."


def _text(tokens: int) -> str:
    return f"a text of at most {tokens:,} tokens"
