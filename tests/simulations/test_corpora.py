from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from simulations.corpora import TriageCorpus, generate
from simulations.records import Records
from simulations.triage_words import CATEGORIES, SHORTHAND, SIGNS, VAGUE


def corpus(*changes: dict[str, object], patients: int = 400, **common: object) -> TriageCorpus:
    """Return a corpus of three equal hospitals, each changed by one of ``changes``."""
    hospitals = [{"name": f"h{i}", "patients": patients} for i in range(3)]
    for hospital, change in zip(hospitals, changes, strict=False):
        hospital.update(change)
    return TriageCorpus.model_validate_json(json.dumps({"hospitals": hospitals, "vagueness": 0.0, **common}))


def of(records: Records, site: str) -> list[tuple[str, str]]:
    assert records.sites is not None
    return [
        (text, label)
        for text, label, owner in zip(map(str, records.contents), records.labels, records.sites, strict=True)
        if owner == site
    ]


def signs_of(text: str) -> list[tuple[str, int]]:
    """Return the telling findings in a text as (category, place in its list)."""
    low = text.lower()
    return [(name, i) for name in CATEGORIES for i, sign in enumerate(SIGNS[name]) if sign.lower() in low]


def is_vague(text: str) -> bool:
    return any(phrase in text.lower() for phrases in VAGUE for phrase in phrases)


def test_equal_settings_and_seed_give_equal_notes_and_another_seed_does_not() -> None:
    assert generate(corpus(), 3) == generate(corpus(), 3)
    assert generate(corpus(), 3) != generate(corpus(), 4)


def test_a_hospital_does_not_depend_on_the_others() -> None:
    assert of(generate(corpus(), 1), "h1") == of(generate(corpus({"patients": 9, "style": "terse"}), 1), "h1")


def test_patients_have_repeated_notes_at_one_hospital_and_one_sex_and_age() -> None:
    records = generate(corpus(max_notes=4), 1)
    assert records.units is not None
    assert records.sites is not None
    assert set(Counter(records.units).values()) == {1, 2, 3, 4}
    for column in (records.sites, *records.subgroups.values()):
        assert len(set(zip(records.units, column, strict=True))) == len(set(records.units))


def test_a_note_says_what_its_category_is() -> None:
    for text, label in of(generate(corpus(), 1), "h0"):
        assert {name for name, _ in signs_of(text)} == {label}


def test_prevalence_shifts_the_categories() -> None:
    records = generate(corpus({"prevalence": [1.0, 0.0, 0.0, 3.0]}), 1)
    skewed = Counter(label for _, label in of(records, "h0"))
    assert set(skewed) == {"immediate", "routine"}
    assert 0.2 < skewed["immediate"] / sum(skewed.values()) < 0.3
    assert set(Counter(label for _, label in of(records, "h1"))) == set(CATEGORIES)


def test_vocabulary_confines_a_hospital_to_its_own_third_of_the_findings() -> None:
    records = generate(corpus({"vocabulary": 1.0}, {"vocabulary": 1.0}), 1)
    seen = [{sign for text, _ in of(records, site) for sign in signs_of(text)} for site in ("h0", "h1", "h2")]
    assert not seen[0] & seen[1]
    assert {place % 3 for _, place in seen[0]} == {0}
    assert seen[0] | seen[1] < seen[2]


def test_styles_differ() -> None:
    records = generate(corpus({"style": "checklist"}, {"style": "terse"}, {"style": "shorthand"}), 1)
    assert all(text.startswith("Age: ") for text, _ in of(records, "h0"))
    assert not any("." in text.replace("40.1", "").replace("38.6", "") for text, _ in of(records, "h1"))
    shortened = [text for text, _ in of(records, "h2")]
    assert not any(long in text for text in shortened for long, _ in SHORTHAND)


def test_label_noise_moves_a_category_to_a_neighbour_as_often_as_it_says() -> None:
    noisy = of(generate(corpus({"label_noise": 0.3}, patients=1500), 1), "h0")
    distance = np.array([CATEGORIES.index(signs_of(text)[0][0]) - CATEGORIES.index(label) for text, label in noisy])
    assert np.abs(distance).max() == 1
    # about 3,750 notes: four standard deviations are 0.03
    assert abs(np.mean(distance != 0) - 0.3) < 0.03


def test_disparity_makes_some_subgroups_vaguer() -> None:
    records = generate(corpus(disparity=0.4, patients=1000), 1)

    def vague(column: str, value: str) -> float:
        chosen = [
            is_vague(t)
            for t, v in zip(map(str, records.contents), records.subgroups[column], strict=True)
            if v == value
        ]
        return float(np.mean(chosen))

    assert vague("sex", "female") > vague("sex", "male") + 0.1
    assert vague("age", "65+") > vague("age", "18-64") + 0.1
    even = generate(corpus(disparity=0.0), 1)
    assert not any(is_vague(text) for text in map(str, even.contents))


def test_vague_findings_fit_two_neighbouring_categories() -> None:
    records = generate(corpus(vagueness=1.0, patients=1000), 1)
    for between, phrases in enumerate(VAGUE):
        labels = {
            label
            for text, label in zip(map(str, records.contents), records.labels, strict=True)
            if any(p in text.lower() for p in phrases)
        }
        assert labels == {CATEGORIES[between], CATEGORIES[between + 1]}


@pytest.mark.parametrize("style", ["narrative", "shorthand", "checklist", "terse"])
def test_notes_are_short_and_varied(style: str) -> None:
    texts = [text for text, _ in of(generate(corpus({"style": style}), 1), "h0")]
    words = [len(text.split()) for text in texts]
    assert min(words) >= 5
    assert max(words) <= 45
    assert len(set(texts)) > 0.95 * len(texts)
