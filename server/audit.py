"""The operator's audit log: one JSON line a request, whoever made it and whatever became of it."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Self

from common import errors
from common.errors import ConsiliumError
from server.guard import Call


class AuditLog:
    """An append-only file, made with mode 0600. Safe from several threads; raises CSL-633 where it cannot be opened.

    A disk that is full later loses lines, not studies: ``lost`` counts them.
    """

    def __init__(self, path: Path) -> None:
        self._lock, self.lost = threading.Lock(), 0
        try:
            self._handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
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
                whole = os.write(self._handle, line) == len(line)
            except OSError:
                whole = False
            self.lost += not whole
