"""What is made of a record before training depends on that record and on public values alone (RULES 12).

Any statistic over records that crept in (a vocabulary of labels, class weights, a mean or a scale, the removal of
duplicates, a stratified order) would let one unit change what the others become.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.training.features import Features
from common.adapters import AdaptedModel
from common.tasks import Encoded, Task
from tests.client.conftest import LABELS
from tests.encoders import WORDS

texts = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join),
    st.just("broken \ud800"),
    st.text(max_size=20),
)
records = st.lists(st.tuples(texts, st.sampled_from([*LABELS, "unknown"]), st.integers(0, 3)), max_size=9)
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoded(task: Task, chosen: list[tuple[str, str, int]]) -> Encoded:
    units = np.array([unit for _, _, unit in chosen], dtype=np.int64)
    return task.encode([text for text, _, _ in chosen], [label for _, label, _ in chosen], units)


@given(records, st.integers(0, 3))
@SETTINGS
def test_without_one_unit_the_others_are_encoded_as_before(
    task: Task, drawn: list[tuple[str, str, int]], gone: int
) -> None:
    whole, rest = encoded(task, drawn), encoded(task, [record for record in drawn if record[2] != gone])
    kept = np.flatnonzero(whole.units != gone)
    assert [row.tolist() for row in rest.inputs] == [whole.inputs[row].tolist() for row in kept]
    assert rest.targets.tolist() == whole.targets[kept].tolist()
    assert rest.units.tolist() == whole.units[kept].tolist()


@given(records, st.integers(0, 3))
@SETTINGS
def test_without_one_unit_the_others_have_the_features_and_losses_they_had(
    model: AdaptedModel, task: Task, drawn: list[tuple[str, str, int]], gone: int
) -> None:
    whole, rest = encoded(task, drawn), encoded(task, [record for record in drawn if record[2] != gone])
    kept = np.flatnonzero(whole.units != gone)
    if not len(rest):
        return
    everyone, others = (Features(model, part, alone=True) for part in (whole, rest))
    assert everyone._hidden is not None
    assert others._hidden is not None
    for mine, found in zip(others._hidden.read(np.arange(len(rest))), everyone._hidden.read(kept), strict=True):
        assert torch.equal(mine, found)
    with torch.no_grad():
        before = everyone.losses(model, everyone.batch(np.arange(len(whole))))[torch.from_numpy(kept)]
        after = others.losses(model, others.batch(np.arange(len(rest))))
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)


def test_a_record_that_is_there_twice_counts_twice(model: AdaptedModel, task: Task) -> None:
    """Removing duplicates would let one patient's record take another's away."""
    twice = encoded(task, [("pain fever", "ward", 0), ("pain fever", "ward", 1), ("cough", "home", 2)])
    assert twice.units.tolist() == [0, 1, 2]
    assert len(Features(model, twice)) == 3


def test_labels_nobody_has_keep_their_numbers(task: Task) -> None:
    """A vocabulary read from the data would number the labels by who is there."""
    assert encoded(task, [("pain", "theatre", 0)]).targets.tolist() == [LABELS.index("theatre")]
    assert encoded(task, []).targets.tolist() == []
