"""What a durable file must live through: a full disk, a process killed anywhere, and a file that another process holds.

Children are forked, so they see what the test made; each leaves at once, without closing or cleaning anything up.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import pytest

from common.errors import ConsiliumError, Fault

FORK = get_context("fork")


def refused(fault: Fault, act: Callable[[], object]) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as raised:
        act()
    assert raised.value.fault is fault
    return raised.value


def in_a_process(act: Callable[[], object]) -> None:
    """Do something in a process of its own, which may be limited or changed at will; it must come to its end."""

    def run() -> None:
        act()
        os._exit(0)

    child = FORK.Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == 0


def from_elsewhere(opened: Callable[[], object]) -> str:
    """Open something in another process; return the code of its refusal, or "opened"."""

    def run(said: Connection) -> None:
        try:
            opened()
        except ConsiliumError as error:
            said.send(error.code)
        else:
            said.send("opened")

    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=run, args=(writer,))
    child.start()
    writer.close()
    found: str = reader.recv()
    child.join()
    return found


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def die_at(step: int) -> Callable[..., None]:
    """Return what counts how often it is called and kills this process at the n-th time; at 0, never."""
    left = [step]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def before_each_statement(count: Callable[..., None]) -> None:
    """Have every SQLite connection that this process opens call ``count`` first."""
    plain = sqlite3.connect

    def traced(*args: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = plain(*args, **options)  # type: ignore[call-overload]
        connection.set_trace_callback(count)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


def before_each_call(count: Callable[..., None], *calls: tuple[ModuleType, str]) -> None:
    """Have the named functions of modules call ``count`` first, in this process."""
    for module, name in calls:
        call = getattr(module, name)

        def counted(*args: object, _call: Callable[..., object] = call, **options: object) -> object:
            count()
            return _call(*args, **options)

        setattr(module, name, counted)


def said_until_killed(work: Callable[[Callable[[Any], None]], None], kill_after: int | None = None) -> list[Any]:
    """Run ``work`` in another process until it is killed; return what it said through its argument.

    It kills itself (:func:`die_at`), or is killed after so many words, then somewhere within what it does next.
    """
    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: work(writer.send))
    child.start()
    writer.close()
    said: list[Any] = []
    try:
        while True:
            said.append(reader.recv())
            if len(said) == kill_after:
                child.kill()
    except EOFError:
        child.join()
    assert child.exitcode == -signal.SIGKILL
    return said
