"""A hospital is told of which fields its rows lack values, before it joins a study of rows."""

from __future__ import annotations

import numpy as np

from client.data import Examples
from client.home_check import gaps
from common.task_specs import CategoryField, NumericField, TabularClassification, TextClassification

FIELDS = (NumericField(name="age", low=0, high=120), CategoryField(name="sex", levels=("f", "m")))


def test_the_gaps_of_each_field_are_counted_and_whole_fields_are_not_named() -> None:
    task = TabularClassification(labels=("no", "yes"), fields=FIELDS)
    rows = (("63", None), ("40", "f"), ("41", None))
    held = Examples(rows, ("no", "yes", "no"), np.arange(3))
    assert gaps(task, held) == "; without a value that can be read: sex 2"
    assert gaps(task, Examples(rows[1:2], ("no",), np.arange(1))) == ""
    assert gaps(TextClassification(labels=("no", "yes")), held) == ""
