"""A generator of synthetic triage notes, because no public data set may be shipped.

Several hospitals, patients with repeated notes, and shift that can be set: vocabulary, prevalence, style and label
noise of each hospital, and a disparity between subgroups. Everything is invented. Equal settings and seed: equal notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from common.parts import Name, Part
from simulations.records import Records
from simulations.triage_words import AFFINITY, CATEGORIES, COMPLAINTS, CONTEXT, SHORTHAND, SIGNS, VAGUE

SEXES = ("female", "male")
AGE_BANDS = ("0-17", "18-64", "65+")
_AGE_LIMITS = ((1, 18), (18, 65), (65, 98))
_AGE_WEIGHTS = (0.2, 0.5, 0.3)

Style = Literal["narrative", "shorthand", "checklist", "terse"]


class Hospital(Part):
    """One synthetic hospital and how it differs from the others.

    patients      each has 1 to ``max_notes`` notes
    prevalence    relative frequency of each category, in the order immediate, urgent, soon, routine
    vocabulary    0 to 1: how much its notes are confined to its own third of the findings
    style         how its notes are written
    label_noise   probability that a category is recorded as a neighbouring one
    """

    name: Name
    patients: int = Field(ge=1, le=1_000_000)
    prevalence: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    vocabulary: float = Field(default=0.0, ge=0, le=1)
    style: Style = "narrative"
    label_noise: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if min(self.prevalence) < 0 or sum(self.prevalence) <= 0:
            raise ValueError("prevalence: four weights, none negative, not all zero")
        return self


class TriageCorpus(Part):
    """Synthetic triage notes of several hospitals.

    max_notes    most notes of a patient; the number is uniform from 1
    vagueness    probability that a note has a vague finding in place of a telling one
    disparity    added to the vagueness for women and for patients of 65 and over: their presentation is atypical
    """

    kind: Literal["triage"] = "triage"
    hospitals: tuple[Hospital, ...] = Field(min_length=3, max_length=255)
    max_notes: int = Field(default=4, ge=1, le=50)
    vagueness: float = Field(default=0.15, ge=0, le=1)
    disparity: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [hospital.name for hospital in self.hospitals]
        if len(set(names)) != len(names):
            raise ValueError("hospitals: a name repeats")
        return self


def generate(corpus: TriageCorpus, seed: int) -> Records:
    """Return the notes of all hospitals; subgroups are ``sex`` and ``age``.

    Each hospital has its own stream of randomness: changing one leaves the others' notes as they were.
    """
    texts: list[str] = []
    labels: list[str] = []
    sites: list[str] = []
    units: list[str] = []
    sexes: list[str] = []
    bands: list[str] = []
    for index, hospital in enumerate(corpus.hospitals):
        rng = np.random.default_rng([seed, index])
        for patient in range(hospital.patients):
            sex = SEXES[int(rng.integers(2))]
            band = int(rng.choice(3, p=_AGE_WEIGHTS))
            person = _Person(int(rng.integers(*_AGE_LIMITS[band])), sex, str(rng.choice(CONTEXT)))
            for _ in range(int(rng.integers(1, corpus.max_notes + 1))):
                category = _drawn(hospital.prevalence, rng)
                vagueness = corpus.vagueness + corpus.disparity * (0.5 * (sex == "female") + 0.5 * (band == 2))
                texts.append(_note(hospital, index, person, category, min(vagueness, 1.0), rng))
                labels.append(CATEGORIES[_recorded(category, hospital.label_noise, rng)])
                sites.append(hospital.name)
                units.append(f"{hospital.name}-{patient:06d}")
                sexes.append(sex)
                bands.append(AGE_BANDS[band])
    subgroups = {"sex": tuple(sexes), "age": tuple(bands)}
    return Records(tuple(texts), tuple(labels), tuple(sites), tuple(units), subgroups=subgroups)


class _Person:
    """A patient as a note mentions them."""

    def __init__(self, age: int, sex: str, remark: str) -> None:
        self.age, self.sex, self.remark = age, sex, remark


def _note(
    hospital: Hospital, index: int, person: _Person, category: int, vagueness: float, rng: np.random.Generator
) -> str:
    system = list(COMPLAINTS)[_drawn([AFFINITY[name][category] for name in COMPLAINTS], rng)]
    complaint = str(rng.choice(COMPLAINTS[system]))
    findings = _findings(hospital, index, category, vagueness, rng)
    remarks = [person.remark] if rng.random() < 0.5 else []
    return _written(hospital.style, person, complaint, findings, remarks, rng)


def _findings(hospital: Hospital, index: int, category: int, vagueness: float, rng: np.random.Generator) -> list[str]:
    """Return one vague finding, or one or two telling ones."""
    if rng.random() < vagueness:
        between = min(max(category - int(rng.integers(2)), 0), len(VAGUE) - 1)
        return [str(rng.choice(VAGUE[between]))]
    signs = SIGNS[CATEGORIES[category]]
    if rng.random() < hospital.vocabulary:
        signs = signs[index % 3 :: 3]
    return [str(sign) for sign in rng.choice(signs, size=int(rng.integers(1, 3)), replace=False)]


def _written(
    style: Style,
    person: _Person,
    complaint: str,
    findings: Sequence[str],
    remarks: Sequence[str],
    rng: np.random.Generator,
) -> str:
    noun = {"female": "woman", "male": "man"}[person.sex] if person.age >= 18 else "child"
    if style == "checklist":
        notes = "; ".join(remarks) or "none"
        found = ", ".join(findings)
        return f"Age: {person.age}. Sex: {person.sex}. Complaint: {complaint}. Finding: {found}. Notes: {notes}."
    if style == "terse":
        parts = [complaint, *findings, *remarks]
        rng.shuffle(parts)
        return ", ".join([f"{person.age}{person.sex[0].upper()}", *parts])
    opening = str(rng.choice(("presents with", "complains of", "comes in with", "reports")))
    sentences = [f"{person.age}-year-old {noun} {opening} {complaint}", *findings, *remarks]
    text = ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences) + "."
    if style == "shorthand":
        for long, short in SHORTHAND:
            text = text.replace(long, short).replace(long[0].upper() + long[1:], short)
    return text


def _recorded(category: int, noise: float, rng: np.random.Generator) -> int:
    if rng.random() >= noise:
        return category
    neighbours = [other for other in (category - 1, category + 1) if 0 <= other < len(CATEGORIES)]
    return int(rng.choice(neighbours))


def _drawn(weights: Sequence[float], rng: np.random.Generator) -> int:
    probabilities = np.asarray(weights, dtype=np.float64)
    return int(rng.choice(len(probabilities), p=probabilities / probabilities.sum()))
