"""What left this site, and when: an append-only file of chained JSON lines, one written and synced before its bytes go.

Whoever has an older copy, or its last digest, sees that a line was changed, removed or put in; that lines are missing
at the end, nobody sees who has neither. A line that a crash cut short was never followed by its bytes: the next start
puts a note with what was found in its place. Nothing secret is in the file, and no record.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import rfc8785
from pydantic import Field, TypeAdapter, ValidationError

from client.egress import EgressEntry
from common import errors
from common.chain import START, Link, extend
from common.errors import ConsiliumError
from common.messages import Stage
from common.parts import Digest, Hex32, Part
from common.sqlite_files import create_private

_LINE = re.compile(rb'\{"body":(\{.*\}),"digest":"([0-9a-f]{64})","number":([1-9][0-9]{0,15})\}\n')


class Payload(Part):
    """A reply in a study: an :class:`~client.egress.EgressEntry`, and when it was let out, in UTC."""

    kind: Literal["payload"] = "payload"
    time: str
    number: int
    study: Hex32
    recipient: str
    stage: Stage
    instance: int
    attempt: int
    part_bytes: dict[str, int]
    total_bytes: int
    sha256: Hex32
    guarantee: str


class Control(Part):
    """A call of the link that carries nothing of a study: what for, how many bytes, to whom."""

    kind: Literal["control"] = "control"
    time: str
    method: str
    sent: int
    peer: str


class Torn(Part):
    """The place of a line that a crash cut short, whose bytes were therefore never sent.

    found  what there was of it, bytes that are no text escaped as in Python
    """

    kind: Literal["torn"] = "torn"
    time: str
    size: int
    sha256: Hex32
    found: str


Entry = Payload | Control | Torn
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class EgressLog:
    """One site's file, held by this process until it is closed; its methods may be called by several threads.

    path   made with mode 0600 where there is none, in a folder that exists; else its chain is verified and goes on
    clock  for the times that people read

    A payload whose call returned is on disk. A call of the link is with the system when this returns, and on disk with
    the next payload: killing the process loses none, a power cut may lose the last. Raises CSL-603 where the file is
    not what was written, cannot be written, or is held by another process; a call that raised has written nothing, and
    what it was for must not be sent.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        with _coded(path):
            create_private(path)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with _coded(path):
                _hold(self._descriptor, path)
            self._last, self._end = START, 0
            tail = b""
            for link, line in _lines(path):
                if link is None:
                    tail = line
                else:
                    self._last, self._end = link, self._end + len(line)
            if tail:
                self._mend(tail)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; nothing can be written afterwards."""
        with self._lock, suppress(OSError):
            os.close(self._descriptor)
            self._descriptor = -1

    def payload(self, entry: EgressEntry) -> None:
        """Write down a reply before it is handed over."""
        self._append(
            Payload(
                time=self._now(),
                number=entry.number,
                study=entry.study,
                recipient=entry.recipient,
                stage=entry.stage,
                instance=entry.instance,
                attempt=entry.attempt,
                part_bytes=dict(entry.part_bytes),
                total_bytes=entry.total_bytes,
                sha256=entry.sha256,
                guarantee=entry.guarantee,
            ),
            sync=True,
        )

    def control(self, method: str, sent: int, peer: str) -> None:
        """Write down a call of the link before it is made: its name, its bytes, and host and port of whom it calls."""
        self._append(Control(time=self._now(), method=method, sent=sent, peer=peer), sync=False)

    def _append(self, entry: Entry, *, sync: bool) -> None:
        with self._lock, _coded(self._path):
            if os.fstat(self._descriptor).st_size != self._end:
                raise _fault(self._path, "something else wrote in it")
            self._write(entry, sync=sync)

    def _mend(self, tail: bytes) -> None:
        """Put a note over a line that was cut short, which is longer; a crash in between leaves one cut short again."""
        note = Torn(
            time=self._now(),
            size=len(tail),
            sha256=hashlib.sha256(tail).hexdigest(),
            found=tail.decode(errors="backslashreplace"),
        )
        with self._lock, _coded(self._path):
            self._write(note, over=tail)

    def _write(self, entry: Entry, *, over: bytes = b"", sync: bool = True) -> None:
        link = extend(self._last, rfc8785.dumps(entry.model_dump(mode="json")))
        line = b'{"body":%b,"digest":"%b","number":%d}\n' % (link.body, link.digest.encode(), link.number)
        try:
            written = os.pwrite(self._descriptor, line, self._end)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes were written")
            if sync:
                os.fdatasync(self._descriptor)
        except OSError:
            # Where even this fails, the size is wrong from now on, and nothing more is written down or sent.
            os.pwrite(self._descriptor, over, self._end)
            os.ftruncate(self._descriptor, self._end + len(over))
            raise
        self._last, self._end = link, self._end + len(line)

    def _now(self) -> str:
        return self._clock().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read(path: Path) -> tuple[Entry, ...]:
    """Return what a log holds, in order, verified; raises CSL-603 where it is not what was written.

    A last line without its end is being written, or a crash cut it short: it is no entry yet.
    """
    return tuple(entry for entry, _, _ in read_on(path, START, 0))


def read_on(path: Path, last: Link, end: int) -> Iterator[tuple[Entry, Link, int]]:
    """Yield the entries that follow a link which was verified before, each with its own and where its line ends.

    end  where the line of ``last`` ends, in bytes
    """
    for link, line in _lines(path, last, end):
        if link is None:
            return
        try:
            entry = _ENTRY.validate_json(link.body, strict=True)
        except ValidationError as error:
            raise _fault(path, f"line {link.number} cannot be read") from error
        end += len(line)
        yield entry, link, end


def _lines(path: Path, last: Link = START, begin: int = 0) -> Iterator[tuple[Link | None, bytes]]:
    """Yield each line with its place in the chain; last of all, with None, one that has no end.

    last   the link before the first that is read, which begins at byte ``begin``
    """
    with _coded(path), path.open("rb") as file:
        file.seek(begin)
        for line in file:
            if not line.endswith(b"\n"):
                yield None, line
                return
            found = _LINE.fullmatch(line)
            link = None if found is None else Link(int(found[3]), found[1], Digest(found[2].decode()))
            if link is None or link != extend(last, link.body):
                raise _fault(path, f"line {last.number + 1} was changed")
            last = link
            yield link, line


def _hold(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _fault(path, "another process writes in it") from error


@contextmanager
def _coded(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _fault(path, error.strerror or str(error)) from error


def _fault(path: Path, seen: str) -> ConsiliumError:
    return ConsiliumError(errors.EGRESS_LOG, f"{path}: {seen}")
