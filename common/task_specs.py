"""What a study may ask the sites to learn: one part a task, told apart by its ``kind``. Data, never code.

How a task encodes, pools and scores is :mod:`common.tasks`; this module loads without torch. Whatever prepares a record
(bounds, levels, sizes, scales) is a constant that stands here, so that no site derives one from its records (RULES 12).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from common.parts import Line, Name, Part

Content = Literal["text", "image", "audio", "fields"]
"""What a record is, before any task has seen it."""
TaskKind = Literal[
    "text-classification", "multi-label-classification", "token-classification", "causal-language-modelling",
    "masked-language-modelling", "retrieval", "regression", "image-classification", "audio-classification",
    "tabular-classification",
]  # fmt: skip
"""What a study may call its task."""

_MAX_TOKENS = 8192
Labels = Annotated[tuple[Line, ...], Field(min_length=2, max_length=1000)]


class TaskSpec(Part):
    """What all tasks say."""

    @property
    def content(self) -> Content:
        """What a record of this task is."""
        return "text"

    @property
    def reads_labels(self) -> bool:
        """Whether the task looks at a record's label."""
        return True

    @property
    def known_labels(self) -> tuple[str, ...]:
        """The labels among which the task chooses; none where a label is a number or a text of its own."""
        return ()

    @property
    def score(self) -> str:
        """What the task's score between 0 and 1 is called."""
        return "accuracy"

    def accepts(self, label: str) -> bool:
        """Whether a record's label is one that the task can learn from; decided on that label alone (RULES 12)."""
        return label in self.known_labels


def _distinct(labels: tuple[str, ...]) -> None:
    if len(set(labels)) != len(labels):
        raise ValueError("labels repeat")


class _Labelled(TaskSpec):
    """A task that chooses among labels."""

    labels: Labels

    @property
    def known_labels(self) -> tuple[str, ...]:
        """See :attr:`TaskSpec.known_labels`."""
        return self.labels

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        _distinct(self.labels)
        return self


class _LabelledTexts(_Labelled):
    """A choice among labels of a text, or of what is written down as one."""

    label_texts: tuple[Line, ...] | None = Field(
        default=None, description="one description a label; the head starts from their embeddings, at no privacy cost"
    )
    max_tokens: int = Field(default=128, ge=4, le=_MAX_TOKENS)

    @model_validator(mode="after")
    def _one_text_a_label(self) -> Self:
        if self.label_texts is not None and len(self.label_texts) != len(self.labels):
            raise ValueError("label_texts must have one text a label")
        return self


class TextClassification(_LabelledTexts):
    """Assign one of the labels to a text."""

    kind: Literal["text-classification"] = "text-classification"


class MultiLabelClassification(_LabelledTexts):
    """Assign any number of the labels to a text; a record's label names them with bars between, and may be empty."""

    kind: Literal["multi-label-classification"] = "multi-label-classification"

    @property
    def score(self) -> str:
        """See :attr:`TaskSpec.score`."""
        return "share of labels that are right"

    def accepts(self, label: str) -> bool:
        """See :meth:`TaskSpec.accepts`."""
        return all(name in self.labels for name in self.named(label))

    @staticmethod
    def named(label: str) -> tuple[str, ...]:
        """Return the names in a record's label."""
        return tuple(name for part in label.split("|") if (name := part.strip()))

    @model_validator(mode="after")
    def _no_bars(self) -> Self:
        if any("|" in label for label in self.labels):
            raise ValueError("labels: a bar divides the labels of a record and may not be in one")
        return self


class TokenClassification(_Labelled):
    """Assign a label to each word of a text: clinical entities, or what identifies a person.

    A record's text has blanks between words; its label has one label a word, with blanks between. The first label is
    for words that are nothing in particular.
    """

    kind: Literal["token-classification"] = "token-classification"
    max_tokens: int = Field(default=128, ge=4, le=_MAX_TOKENS)

    @property
    def score(self) -> str:
        """See :attr:`TaskSpec.score`."""
        return "share of words that are right"

    def accepts(self, label: str) -> bool:
        """See :meth:`TaskSpec.accepts`."""
        words = label.split()
        return bool(words) and all(word in self.labels for word in words)

    @model_validator(mode="after")
    def _no_blanks(self) -> Self:
        if any(any(character.isspace() for character in label) for label in self.labels):
            raise ValueError("labels: a blank divides the labels of a record and may not be in one")
        return self


class _LanguageModelling(TaskSpec):
    """A task that learns from texts alone; labels are not looked at."""

    max_tokens: int = Field(default=128, ge=4, le=_MAX_TOKENS)

    @property
    def reads_labels(self) -> bool:
        """Return False: the text says it all."""
        return False

    def accepts(self, label: str) -> bool:
        """Return True: every text teaches."""
        del label
        return True


class CausalLanguageModelling(_LanguageModelling):
    """Predict each token of a text from those before it; labels are not looked at."""

    kind: Literal["causal-language-modelling"] = "causal-language-modelling"

    @property
    def score(self) -> str:
        """See :attr:`TaskSpec.score`."""
        return "share of tokens that are right"


class MaskedLanguageModelling(_LanguageModelling):
    """Predict tokens that are masked from those around them; labels are not looked at.

    Which tokens of a text are masked depends on the text and on the study's public randomness alone.
    """

    kind: Literal["masked-language-modelling"] = "masked-language-modelling"
    mask_share: float = Field(default=0.15, gt=0, lt=1)

    @property
    def score(self) -> str:
        """See :attr:`TaskSpec.score`."""
        return "share of masked tokens that are right"


class Retrieval(TaskSpec):
    """Bring a question's embedding near that of its answer, and away from public texts.

    A record's text is the question, its label the answer. ``negatives`` are public: no record of another patient is
    ever a negative (RULES 12).
    """

    kind: Literal["retrieval"] = "retrieval"
    negatives: tuple[Line, ...] = Field(min_length=1, max_length=1000)
    temperature: float = Field(default=0.05, gt=0, le=10)
    max_tokens: int = Field(default=128, ge=4, le=_MAX_TOKENS)

    @property
    def score(self) -> str:
        """See :attr:`TaskSpec.score`."""
        return "share of questions whose answer is nearest"

    def accepts(self, label: str) -> bool:
        """See :meth:`TaskSpec.accepts`."""
        return bool(label.strip())


class Regression(TaskSpec):
    """Predict a number within public bounds from a text; what lies outside them counts as the nearer bound."""

    kind: Literal["regression"] = "regression"
    low: float
    high: float
    max_tokens: int = Field(default=128, ge=4, le=_MAX_TOKENS)

    @property
    def score(self) -> str:
        """See :attr:`TaskSpec.score`."""
        return "closeness"

    def accepts(self, label: str) -> bool:
        """See :meth:`TaskSpec.accepts`."""
        try:
            return math.isfinite(float(label))
        except ValueError:
            return False

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self


class ImageClassification(_Labelled):
    """Assign one of the labels to an image.

    size             pixels of each side of the square that an image is brought to
    mean, deviation  of red, green and blue between 0 and 1, as the backbone was pretrained
    """

    kind: Literal["image-classification"] = "image-classification"
    size: int = Field(default=224, ge=8, le=2048)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def content(self) -> Content:
        """See :attr:`TaskSpec.content`."""
        return "image"

    @model_validator(mode="after")
    def _spread(self) -> Self:
        if min(self.deviation) <= 0:
            raise ValueError("deviation must be above 0")
        return self


class AudioClassification(_Labelled):
    """Assign one of the labels to a recording: a waveform, a spectrogram or a picture of one, as the backbone reads.

    rate     samples a second to which a recording is brought
    seconds  longest part of a recording that is used, from its start
    size     pixels of each side of the picture, where the backbone reads images
    """

    kind: Literal["audio-classification"] = "audio-classification"
    rate: int = Field(default=16_000, ge=1000, le=192_000)
    seconds: float = Field(default=1.0, gt=0, le=60)
    size: int = Field(default=128, ge=8, le=2048)

    @property
    def content(self) -> Content:
        """See :attr:`TaskSpec.content`."""
        return "audio"


class NumericField(Part):
    """A number of a row, between public bounds that scale it; what lies outside counts as the nearer bound."""

    kind: Literal["number"] = "number"
    name: Name
    low: float
    high: float
    text: Line | None = Field(default=None, description="how it is called in the text; its name where not given")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"{self.name}: low must be below high")
        return self


class CategoryField(Part):
    """A value of a row that is one of a few; ``texts`` are what they mean, in the same order."""

    kind: Literal["category"] = "category"
    name: Name
    levels: tuple[Line, ...] = Field(min_length=2, max_length=100)
    texts: tuple[Line, ...] | None = None
    text: Line | None = Field(default=None, description="how it is called in the text; its name where not given")

    @model_validator(mode="after")
    def _one_text_a_level(self) -> Self:
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"{self.name}: a level repeats")
        if self.texts is not None and len(self.texts) != len(self.levels):
            raise ValueError(f"{self.name}: texts must have one text a level")
        return self


RowField = Annotated[NumericField | CategoryField, Field(discriminator="kind")]


class TabularClassification(_LabelledTexts):
    """Assign one of the labels to a row of fields, written down as a text for the backbone.

    numbers  width of a small layer on the scaled fields whose output enters the head beside the text's features; 0 for
             none. A field that is missing is left out of the text, and is zero with a mark of its own among the numbers
    """

    kind: Literal["tabular-classification"] = "tabular-classification"
    fields: tuple[RowField, ...] = Field(min_length=1, max_length=500)
    numbers: int = Field(default=0, ge=0, le=1024)

    @property
    def content(self) -> Content:
        """See :attr:`TaskSpec.content`."""
        return "fields"

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise ValueError("fields: a name repeats")
        return self


def _kind(value: object) -> str:
    """Return the kind of a task as it was written; a task that names none classifies texts."""
    kind = value.get("kind", "text-classification") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


AnyTask = Annotated[
    Annotated[TextClassification, Tag("text-classification")]
    | Annotated[MultiLabelClassification, Tag("multi-label-classification")]
    | Annotated[TokenClassification, Tag("token-classification")]
    | Annotated[CausalLanguageModelling, Tag("causal-language-modelling")]
    | Annotated[MaskedLanguageModelling, Tag("masked-language-modelling")]
    | Annotated[Retrieval, Tag("retrieval")]
    | Annotated[Regression, Tag("regression")]
    | Annotated[ImageClassification, Tag("image-classification")]
    | Annotated[AudioClassification, Tag("audio-classification")]
    | Annotated[TabularClassification, Tag("tabular-classification")],
    Discriminator(_kind),
]
"""One of the tasks, told apart by ``kind``."""
