"""The columns that are kept of a result: what went in comes out, and nothing else was kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.table import TextColumn, collect
from common.errors import ConsiliumError


@given(st.lists(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])))))
def test_text_and_null_come_back_in_order_again_and_again(batches: list[list[str | None]]) -> None:
    column = TextColumn()
    for batch in batches:
        column.extend(batch)
    wanted = [value for batch in batches for value in batch]
    assert list(column) == list(column) == wanted
    assert len(column) == len(wanted)


def test_half_a_surrogate_pair_stops_nobody_else() -> None:
    assert list(TextColumn(["fit", "\ud800", "ill"])) == ["fit", "?", "ill"]


def test_whole_numbers_are_their_digits_and_other_kinds_are_refused_without_their_value() -> None:
    assert list(collect(["a"], [[(1,), (None,)], [("x",)]], {"a": "role"})["a"]) == ["1", None, "x"]
    for value in (1.5, True, b"secret", ["secret"]):
        with pytest.raises(ConsiliumError) as raised:
            collect(["a"], [[(value,)]], {"a": "data.columns.text"})
        assert raised.value.code == "CSL-505"
        assert "data.columns.text" in str(raised.value)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("names", "code"), [(["a", "a"], "CSL-501"), (["a", "A"], "CSL-501"), (["b"], "CSL-503"), ([], "CSL-503")]
)
def test_a_column_is_there_once(names: list[str], code: str) -> None:
    with pytest.raises(ConsiliumError) as raised:
        collect(names, [], {"a": "data.columns.text"})
    assert raised.value.code == code


def test_a_column_that_plays_no_part_may_be_of_any_kind() -> None:
    assert list(collect(["a", "b"], [[("kept", object())]], {"a": "role"})["a"]) == ["kept"]
