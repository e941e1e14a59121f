"""What stands between a site and its operator in tests: a relay on loopback that cuts links on a condition."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from simulations.network.consortium import HOST

_CHUNK = 16 << 10


@dataclass
class Passage:
    """What has passed on one connection since the direction turned, in bytes.

    up    from the site, since it last began to speak
    down  to the site, since the operator last began to
    """

    up: int = 0
    down: int = 0
    last: str = ""

    def count(self, way: str, size: int) -> None:
        if way != self.last:
            setattr(self, way, 0)
        self.last = way
        setattr(self, way, getattr(self, way) + size)


Rule = Callable[[str, Passage], bool]
"""Is asked before each piece that goes ``up`` or ``down`` whether the piece is lost and every link is cut."""


class Relay:
    """Passes connections on to a port on loopback, until it is told to cut them, or a rule does.

    After a cut it refuses everybody until :meth:`mend`.
    """

    def __init__(self, target: int) -> None:
        self._target, self._lock = target, threading.Lock()
        self._listener = socket.create_server((HOST, 0))
        self._open: set[socket.socket] = set()
        self._rule: Rule = lambda _way, _passage: False
        self._refuses, self._closed, self.cuts = False, False, 0
        self.port = int(self._listener.getsockname()[1])
        self.address = f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut_when(self, rule: Rule) -> None:
        """Cut every link once, when a rule says so for the first time from now on."""
        with self._lock:
            self._rule = rule

    def cut(self) -> None:
        """Cut every link and refuse new ones."""
        with self._lock:
            self._refuses, self._rule, self.cuts = True, lambda _way, _passage: False, self.cuts + 1
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def mend(self) -> None:
        """Let everybody through again."""
        with self._lock:
            self._refuses = False

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refuses:
                    raise ConnectionRefusedError
                far = socket.create_connection((HOST, self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            passage = Passage()
            for way, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._pass, args=(way, source, sink, passage), daemon=True).start()

    def _pass(self, way: str, source: socket.socket, sink: socket.socket, passage: Passage) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_CHUNK):
                with self._lock:
                    passage.count(way, len(piece))
                    due = self._rule(way, passage)
                if due:
                    self.cut()
                    break
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
