"""The operator's audit log: one JSON line a request, whoever made it and whatever became of it."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self

from common import errors
from common.errors import ConsiliumError
from server.guard import Call


class AuditLog:
    """An append-only file, made with mode 0600. Safe from several threads; raises CSL-633 where it cannot be opened.

    A file that is renamed or removed while it is open is followed by a new one under the old name, with the next line:
    so it can be rotated by renaming alone, without a signal, and without truncating what is being written. A disk that
    is full later loses lines, not studies: ``lost`` counts them.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self.lost = path, threading.Lock(), 0
        try:
            self._handle = self._opened()
        except OSError as error:
            raise ConsiliumError(errors.OPERATOR_UNWRITABLE, f"{path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            os.close(self._handle)
            # A line that comes later must not go into whatever file has the number then.
            self._handle = -1

    def __call__(self, call: Call) -> None:
        """Add a line."""
        fields = asdict(call)
        fields["at"], fields["seconds"] = round(call.at, 3), round(call.seconds, 4)
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                self._follow()
                whole = os.write(self._handle, line) == len(line)
            except OSError:
                whole = False
            self.lost += not whole

    def _follow(self) -> None:
        """Go on in the file that has the name now; in the old one where none can be made."""
        if self._handle < 0 or self._has_its_name():
            return
        with suppress(OSError):
            fresh = self._opened()
            os.close(self._handle)
            self._handle = fresh

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def _opened(self) -> int:
        return os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
