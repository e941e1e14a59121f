"""Sites that train together in one process: each is asked, checks and charges by itself, then all are computed at once.

The seam is :meth:`client.site.Workload.train`, which a site calls only once it has charged (RULES 7). There a site's
handler waits until every other site of its chunk waits too, or has ended; what a site has not asked for is never
computed. To be able to wait in the middle each handler is a greenlet: never do two run at a time, and always in the
same order, so that a run is as repeatable as the one without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.clientapp import ClientApp
from greenlet import getcurrent, greenlet

from common.link.inprocess import InProcessGrid
from common.messages import Stage

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Compute = Callable[[Sequence[Asked]], Sequence[Answer | Exception]]

_FEWEST, _MOST, _VALUES = 8, 25, 1 << 19


def chunk(dimension: int) -> int:
    """Return how many sites to train together: 8 to 25, so that their vectors, 2 MB, stay in a core's cache."""
    return min(_MOST, max(_FEWEST, _VALUES // dimension))


class Meeting(Generic[Asked, Answer]):
    """Brings together what several calls ask for in their middle.

    compute  answers everything that was asked, in order; an error is raised where it was asked
    size     most calls at a time; :func:`chunk`
    seconds  spent on computing so far
    """

    def __init__(self, compute: Compute[Asked, Answer], size: int) -> None:
        self._compute, self.size = compute, size
        self._seats: list[greenlet] = []
        self.seconds = 0.0

    def hold(self, calls: Sequence[Callable[[], None]]) -> None:
        """Run some calls to their ends, what they ask being answered together, ``size`` at a time.

        Raises the first call's exception once every call of its chunk has ended.
        """
        for start in range(0, len(calls), self.size):
            self._hold(calls[start : start + self.size])

    def ask(self, asked: Asked) -> Answer:
        """Return the answer to what a call asks: within a call of :meth:`hold` together with others, else at once."""
        here = getcurrent()
        answer: Answer | Exception = here.parent.switch(asked) if here in self._seats else self._answers([asked])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _hold(self, calls: Sequence[Callable[[], None]]) -> None:
        failures: list[Exception] = []

        def on(seat: greenlet, *answer: Answer | Exception) -> list[tuple[greenlet, Asked]]:
            """Let a call go on until it asks or ends; returns it with what it asks, or nothing."""
            try:
                asked: Asked = seat.switch(*answer)
            except Exception as error:
                failures.append(error)
                return []
            return [] if seat.dead else [(seat, asked)]

        self._seats = [greenlet(call) for call in calls]
        waiting = [found for seat in self._seats for found in on(seat)]
        while waiting:
            answers = self._answers([asked for _, asked in waiting])
            waiting = [found for (seat, _), answer in zip(waiting, answers, strict=True) for found in on(seat, answer)]
        if failures:
            raise failures[0]

    def _answers(self, asked: Sequence[Asked]) -> Sequence[Answer | Exception]:
        start = time.perf_counter()
        try:
            return self._compute(asked)
        except Exception as error:
            # As when one site alone trains: the failure is the sites' own, and the study decides what it means.
            return [error] * len(asked)
        finally:
            self.seconds += time.perf_counter() - start


class TogetherGrid(InProcessGrid):
    """A grid in this process that hands out requests to train by chunks, so that chunks are computed at once.

    apps, lost, tap  as in :class:`InProcessGrid`
    hold             of the meeting that the sites' workloads ask
    """

    def __init__(
        self,
        apps: Mapping[int, ClientApp],
        hold: Callable[[Sequence[Callable[[], None]]], None],
        *,
        lost: Callable[[Message], bool] = lambda _: False,
        tap: Callable[[Message], None] = lambda _: None,
    ) -> None:
        super().__init__(apps, lost=lost, tap=tap)
        self._hold = hold

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message and keep its reply; returns their identifiers."""
        pushed = list(messages)
        if any(message.metadata.message_type != Stage.FIT.value for message in pushed):
            return super().push_messages(pushed)
        names = [""] * len(pushed)

        def deliver(place: int) -> None:
            names[place] = self.deliver(pushed[place])

        self._hold([partial(deliver, place) for place in range(len(pushed))])
        return names
