"""Private counts, kept apart from public numbers by their type.

How many units or records a site holds, or drew, may steer a computation on site; dividing by it, sending it or printing
it tells of each single unit. A :class:`PrivateCount` has no arithmetic and no text, so that a divisor, a message or a
log line made of one is an error to the type checker and at run time. Public numbers (a plan's, a band) are plain ones.
"""

from __future__ import annotations

from typing import NoReturn


class PrivateCount:
    """A number that depends on who is in the data; at least 0.

    Arithmetic, order, ``int()``, an index and JSON are not there, and fail with ``TypeError``. What Python gives every
    object (text, truth, equality, copies) is refused by name. It is no dataclass: pydantic writes those unasked.
    """

    __slots__ = ("_value",)
    __array_ufunc__ = None
    """numpy does not try its operators on it either."""
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: int) -> None:
        self._value = value

    def on_site(self) -> int:
        """Return the number, for sampling, memory and loops on site; never for a divisor, a message or a log."""
        return self._value

    def __repr__(self) -> str:
        return "PrivateCount(withheld)"

    def __str__(self) -> NoReturn:
        raise TypeError("a private count has no text")

    def __format__(self, _: str) -> NoReturn:
        raise TypeError("a private count has no text")

    def __bool__(self) -> NoReturn:
        raise TypeError("a private count decides nothing")

    def __eq__(self, _: object) -> NoReturn:
        raise TypeError("a private count is compared with nothing")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private count is neither copied nor stored")
