"""Contents are ordered by their values alone, and no two different ones are taken for one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.contents import Recording, ordinal, written_down

VALUES = st.lists(st.none() | st.text(max_size=4), max_size=4)


@given(one=VALUES, other=VALUES)
def test_lists_are_written_down_alike_only_where_they_are_equal(one: list[str | None], other: list[str | None]) -> None:
    assert (written_down(one) == written_down(other)) == (one == other)


def test_values_that_move_over_a_border_are_written_otherwise() -> None:
    lists = [("ab", "c"), ("a", "bc"), ("abc",), ("", "abc"), (None, "abc"), ("-", "abc"), ("1 a", "bc"), ("2 ab1 c",)]
    assert len({written_down(values) for values in lists}) == len(lists)


@given(texts=st.lists(st.text(st.characters(codec=None, exclude_categories=()), max_size=6), max_size=8))
def test_texts_keep_their_own_order(texts: list[str]) -> None:
    assert sorted(texts, key=ordinal) == sorted(texts)


def test_the_same_numbers_in_another_form_are_another_content() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    sound = np.linspace(-1, 1, 12, dtype=np.float32)
    contents = (image, image.reshape(4, 3, 1), image + 1, Recording(sound, 8000), Recording(sound, 4000))
    assert len({ordinal(content) for content in contents}) == len(contents)
    assert ordinal(image.copy()) == ordinal(image)
    assert ordinal(Recording(sound.copy(), 8000)) == ordinal(Recording(sound, 8000))


def test_no_content_is_printed() -> None:
    assert "0.125" not in repr(Recording(np.full(3, 0.125, dtype=np.float32), 8000))
