"""Sites that train together in one process: each is asked, checks and charges by itself, then all are computed at once.

The seam is :meth:`client.site.Workload.train`, which a site calls only once it has charged (RULES 7). There a site's
handler waits until every other site of its chunk waits too, or has ended; what a site has not asked for is never
computed. The handlers run in threads for one reason, to be able to wait in the middle: never two at a time, and always
in the same order, so that a run is as repeatable as one without threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.training.features import Features
from client.training.noise import NoiseSource
from client.workload import TextWorkload
from common.adapters import Vector
from common.errors import ConsiliumError
from common.link.inprocess import InProcessGrid
from common.messages import Stage
from common.privacy.plan import PrivacyPlan
from simulations.stacked import Charged

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Compute = Callable[[Sequence[Asked]], Sequence[Answer | ConsiliumError]]

CHUNK = 25
"""Sites whose training is computed together."""


class _Seat(Generic[Asked, Answer]):
    """One call in its thread, which runs only while :meth:`go_on` waits for it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._leave, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.asks: Asked | None = None
        self.answer: Answer | BaseException | None = None
        self.failure: BaseException | None = None

    def go_on(self, answer: Answer | BaseException | None = None) -> None:
        """Let the call run until it asks or ends."""
        self.asks, self.answer = None, answer
        self._leave.release()
        self._back.acquire()

    def sit(self) -> None:
        """Run the call, in its own thread."""
        self._leave.acquire()
        try:
            self._call()
        except BaseException as error:
            self.failure = error
        finally:
            self._back.release()

    def wait(self, asked: Asked) -> Answer:
        """Ask and wait for the answer, in the call's own thread."""
        self.asks = asked
        self._back.release()
        self._leave.acquire()
        return _given(self.answer)


class Meeting(Generic[Asked, Answer]):
    """Brings together what several calls ask for in their middle.

    compute  answers everything that was asked, in order; an error is raised where it was asked
    size     most calls at a time
    """

    def __init__(self, compute: Compute[Asked, Answer], size: int = CHUNK) -> None:
        self._compute, self.size = compute, size
        self._here = threading.local()

    def hold(self, calls: Sequence[Callable[[], None]]) -> None:
        """Run some calls to their ends, what they ask being answered together, ``size`` at a time.

        Raises the first call's exception once every call has ended.
        """
        for start in range(0, len(calls), self.size):
            self._hold(calls[start : start + self.size])

    def ask(self, asked: Asked) -> Answer:
        """Return the answer to what a call asks: within a call of :meth:`hold` together with others, else at once."""
        seat: _Seat[Asked, Answer] | None = getattr(self._here, "seat", None)
        return _given(self._compute([asked])[0]) if seat is None else seat.wait(asked)

    def _hold(self, calls: Sequence[Callable[[], None]]) -> None:
        seats = [_Seat[Asked, Answer](call) for call in calls]
        threads = [threading.Thread(target=self._sit, args=(seat,), daemon=True) for seat in seats]
        for thread, seat in zip(threads, seats, strict=True):
            thread.start()
            seat.go_on()
        while waiting := [(seat, seat.asks) for seat in seats if seat.asks is not None]:
            answers: Sequence[Answer | BaseException]
            try:
                answers = self._compute([asked for _, asked in waiting])
            except Exception as error:
                # As when one site alone trains: the failure is the sites' own, and the study decides what it means.
                answers = [error] * len(waiting)
            for (seat, _), answer in zip(waiting, answers, strict=True):
                seat.go_on(answer)
        for thread in threads:
            thread.join()
        for seat in seats:
            if seat.failure is not None:
                raise seat.failure

    def _sit(self, seat: _Seat[Asked, Answer]) -> None:
        self._here.seat = seat
        seat.sit()


def _given(answer: Answer | BaseException | None) -> Answer:
    if isinstance(answer, BaseException):
        raise answer
    assert answer is not None
    return answer


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


class StackedWorkload:
    """A site's workload whose training is computed together with that of others.

    alone    the site's workload, which evaluates
    meeting  where it trains
    The rest is what ``alone`` was made of.
    """

    def __init__(
        self,
        alone: TextWorkload,
        meeting: Meeting[Charged, Vector],
        *,
        training: Features,
        plan: PrivacyPlan,
        noise: NoiseSource,
    ) -> None:
        self._alone, self._meeting = alone, meeting
        self._training, self._plan, self._noise = training, plan, noise

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self._alone.dimension

    def train(self, start: Vector, round_index: int) -> Vector:
        """Return the private update of one round, (dimension,) float32: end minus start."""
        return self._meeting.ask(Charged(self._training, self._plan, self._noise, start, round_index))

    def evaluate(self, vector: Vector) -> NDArray[np.int64]:
        """Return the noised cells of one evaluation, (2,) int64."""
        return self._alone.evaluate(vector)
