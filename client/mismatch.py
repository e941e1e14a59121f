"""How far a site's records are from what a study was made for, seen before any budget is spent; nothing of it leaves.

Four looks: the backbone's features against those of public data (the study's ``reference``), the labels' shares, the
words that the tokeniser does not know, and whether the start model's confidence can be believed. None of them decides
anything: a distance says where to look, and the verdict after the study says what came of it. Loads without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.parts import Part
from common.transfer import FeatureReference

_BINS = 10
_TEXTS = 1000
_CHANCE = 2.0
"""Distances up to so many times that of chance are said to be none."""
_FAR = 0.5
"""Share of the public data's own spread from which on a distance is said to be large."""

Tokenise = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""From texts to their token identifiers, uncut and without special tokens."""


class FeatureDistance(Part):
    """The site's features against the reference's, as Gaussians without correlation.

    distance       Fréchet distance [Dowson and Landau 1982, equation 4, for diagonal covariances]
    by_chance      what it would be if the site's units had been drawn from the public data
    relative       its square over the public data's total variance: 1 is as far off as two public records are apart
    typical_shift  root mean square over the features of (site's mean less public mean) in public deviations
    largest_shift  the largest of these
    """

    data: str
    distance: float
    by_chance: float
    relative: float
    typical_shift: float
    largest_shift: float

    @property
    def said(self) -> str:
        """The distance in a sentence."""
        shown = f"{self.distance:.3f} from {self.data}, where chance alone gives {self.by_chance:.3f}"
        if self.distance <= _CHANCE * self.by_chance:
            return f"features are no further than chance puts them: {shown}"
        size = "far" if self.relative > _FAR else "some way off"
        return f"features are {size}: {shown}; {self.relative:.0%} of the public data's own spread"


class LabelShift(Part):
    """Total variation distances between shares of labels, in [0, 1].

    from_even      of the training records from equal shares of the study's labels
    from_held_out  of the training records from the held-out ones; None where there are none
    absent         labels of the study that no training record has
    """

    from_even: float
    from_held_out: float | None
    absent: tuple[str, ...]

    @property
    def said(self) -> str:
        """The shift in a sentence."""
        held_out = "" if self.from_held_out is None else f"; {self.from_held_out:.2f} from held-out ones"
        absent = f"; none is {', '.join(self.absent)}" if self.absent else ""
        return f"label shares are {self.from_even:.2f} from even ones{held_out}{absent}"


class Vocabulary(Part):
    """What the tokeniser makes of the site's texts.

    unknown          share of the tokens that stand for what it does not know
    tokens_per_word  tokens over words between blanks: much above 1.5, words are spelled out in pieces
    cut              share of the texts that are longer than the study reads
    """

    unknown: float
    tokens_per_word: float
    cut: float

    @property
    def said(self) -> str:
        """The vocabulary in a sentence."""
        return (
            f"{self.unknown:.1%} of the tokens are unknown, {self.tokens_per_word:.2f} tokens a word, "
            f"{self.cut:.1%} of the texts are cut"
        )


class Calibration(Part):
    """Whether the start model's confidence can be believed, where its head starts from the labels' texts.

    error  expected calibration error over ten bins [Guo et al. 2017, arXiv 1706.04599, equation 3]
    """

    error: float
    confidence: float
    accuracy: float

    @property
    def said(self) -> str:
        """The calibration in a sentence."""
        return (
            f"before any training it is right in {self.accuracy:.1%}, and believes {self.confidence:.1%}; "
            f"calibration error {self.error:.2f}"
        )


class Mismatch(Part):
    """What was looked at; None for what a study or its task does not let be seen."""

    study: str
    units: int
    records: int
    features: FeatureDistance | None
    labels: LabelShift | None
    vocabulary: Vocabulary | None
    calibration: Calibration | None

    @property
    def said(self) -> tuple[str, ...]:
        """One sentence for each look."""
        looks = (self.features, self.labels, self.vocabulary, self.calibration)
        return tuple(look.said for look in looks if look is not None)


def feature_distance(
    inputs: NDArray[np.float64], units: NDArray[np.int64], reference: FeatureReference
) -> FeatureDistance:
    """Return how far features (n, h) are from a reference's; raises CSL-102 for one of another width, CSL-504.

    units  (n,) the unit that owns each record: chance is reckoned by units, since a patient's records are alike

    By chance: with m units from the reference, the means' squared distance is sum(variance) / m, and the deviations'
    sum(variance) / 2m where features are normal.
    """
    if not len(inputs):
        raise ConsiliumError(errors.DATA_EMPTY, "no records to measure")
    mean, deviation = np.array(reference.mean), np.array(reference.deviation)
    if inputs.shape[1] != len(mean):
        raise ConsiliumError(errors.STUDY_INVALID, f"reference: {len(mean)} features, the backbone has another number")
    moved = inputs.mean(axis=0) - mean
    squared = float((moved**2).sum() + ((inputs.std(axis=0) - deviation) ** 2).sum())
    spread = float((deviation**2).sum())
    varied = deviation > 0
    shifts = np.abs(moved[varied]) / deviation[varied]
    return FeatureDistance(
        data=reference.data,
        distance=math.sqrt(squared),
        by_chance=math.sqrt(1.5 * spread / len(np.unique(units))),
        relative=squared / spread if spread else 0.0,
        typical_shift=float(np.sqrt((shifts**2).mean())) if len(shifts) else 0.0,
        largest_shift=float(shifts.max(initial=0.0)),
    )


def label_shift(
    training: NDArray[np.int64], held_out: NDArray[np.int64] | None, labels: Sequence[str]
) -> LabelShift | None:
    """Compare the shares of labels; None where the task chooses among none.

    training, held_out  (n,) each record's place among the labels
    """
    if not labels or training.ndim != 1 or not len(training):
        return None
    counts = np.bincount(training, minlength=len(labels))
    shares = counts / counts.sum()
    other = None
    if held_out is not None and len(held_out):
        other = float(0.5 * np.abs(shares - np.bincount(held_out, minlength=len(labels)) / len(held_out)).sum())
    return LabelShift(
        from_even=float(0.5 * np.abs(shares - 1 / len(labels)).sum()),
        from_held_out=other,
        absent=tuple(label for label, count in zip(labels, counts, strict=True) if not count),
    )


def vocabulary(texts: Sequence[str], tokenise: Tokenise, *, unknown: int | None, longest: int) -> Vocabulary | None:
    """Count what a tokeniser makes of texts; None without a word.

    unknown  identifier of the token for what is not known; None where there is no such token
    longest  tokens that the study reads, without special ones
    """
    tokens = strange = words = cut = 0
    for start in range(0, len(texts), _TEXTS):
        part = texts[start : start + _TEXTS]
        words += sum(len(text.split()) for text in part)
        for row in tokenise(part):
            tokens += len(row)
            cut += len(row) > longest
            strange += sum(1 for token in row if token == unknown)
    if not words or not tokens:
        return None
    return Vocabulary(unknown=strange / tokens, tokens_per_word=tokens / words, cut=cut / len(texts))


def calibration(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> Calibration | None:
    """Return how far confidence is from being right; None without records.

    logits   (n, classes)
    targets  (n,) the right class of each
    """
    if not len(logits):
        return None
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = powers.max(axis=1) / powers.sum(axis=1)
    right = (logits.argmax(axis=1) == targets).astype(np.float64)
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=_BINS)
    return Calibration(
        error=float(np.abs(gaps).sum() / len(logits)),
        confidence=float(confidence.mean()),
        accuracy=float(right.mean()),
    )
