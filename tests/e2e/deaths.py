"""Faults inside a daemon's own process: it kills itself at a named moment, waits at one, or is not what it should be.

A moment is a stage and how far it has come, as ``train.fit:charged``. A site comes through these in every stage:

    asked      a request was handed over, nothing is done yet
    charged    the ledger has charged it (only where there is something to charge)
    masked     the reply is in the journal of the secure sums, and nowhere else
    recorded   it is in the egress log too
    answered   it is in the outbox, and nothing has been sent
    sent       the operator has it

and an operator through these: ``asking``, ``heard`` (the replies are there, nothing is kept); and, of no stage,
``queued``, ``kept`` (a round is in the journal), ``ending``, ``ended``, ``releasing``, ``released``.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest import mock

from flwr.supercore.date import now

from client.egress import Egress
from client.ledger import SqliteLedger
from client.outbox import SqliteOutbox
from client.site import Site
from common import agreement as agreements
from common.link.node import NodeLink
from common.messages import Sealed, Stage
from server import journal as journals
from server.correspondence import Correspondence
from server.journal import SqlJournal, State
from simulations.network import rehearsal as rehearsals
from simulations.network.rehearsal import RehearsedProduct

_HELD_SECONDS = 120.0
At = Callable[[str, int], None]
"""Is told a moment and the number of its sum."""


def site_dies(moments: frozenset[str], marks: Path) -> None:
    """Have a site's process kill itself at each moment, once over all its lives and once in a sum."""
    _watch_site(partial(_die, moments, marks))


def site_dies_in_every_sum(moments: frozenset[str], marks: Path) -> None:
    """Have a site's process kill itself at the first of some moments of every sum, once in each."""
    _watch_site(partial(_die, moments, marks, again=True))


def operator_dies(moments: frozenset[str], marks: Path) -> None:
    """Have the operator's process kill itself at each moment, once over all its lives."""
    _watch_operator(partial(_die, moments, marks))


def operator_waits(rounds: frozenset[int], marks: Path) -> None:
    """Have the operator wait after some rounds, once each is in the journal, until a test lets it go on."""
    _watch_operator(partial(_hold, rounds, marks))


def held(marks: Path, round_index: int) -> bool:
    """Return whether the operator waits, or has waited, after a round."""
    return (marks / f"held-{round_index}").exists()


def let_go(marks: Path, round_index: int) -> None:
    """Let the operator go on after a round."""
    (marks / f"go-{round_index}").touch()


def clock_is_off(by: timedelta) -> None:
    """Have the link's requests carry another time; the rest of the process keeps the right one."""

    def wrong() -> datetime:
        return now() + by

    mock.patch("flwr.supernode.node_auth_http_interceptor.now", wrong).start()


def software_is(version: str) -> None:
    """Have a daemon take itself for another version of this software."""
    mock.patch.object(agreements, "version", return_value=version).start()


def vector_is_longer() -> None:
    """Have a site compute a vector with one coordinate more than the study's."""
    right = rehearsals.dimension_of
    mock.patch.object(rehearsals, "dimension_of", lambda study: right(study) + 1).start()


def _die(moments: frozenset[str], marks: Path, moment: str, instance: int, *, again: bool = False) -> None:
    mark, last = marks / moment, marks / "last"
    if moment not in moments or (mark.exists() and not again):
        return
    if ":" in moment and instance and last.exists() and last.read_text() == str(instance):
        return
    mark.touch()
    last.write_text(str(instance))
    os.kill(os.getpid(), signal.SIGKILL)


def _hold(rounds: frozenset[int], marks: Path, moment: str, round_index: int) -> None:
    if moment != "kept" or round_index not in rounds:
        return
    (marks / f"held-{round_index}").touch()
    end = time.monotonic() + _HELD_SECONDS
    while not (marks / f"go-{round_index}").exists() and time.monotonic() < end:
        time.sleep(0.02)


def _watch_site(at: At) -> None:
    stage, instance = "", 0

    def asked(_site: Site, asked_stage: Stage, sealed: Sealed) -> None:
        nonlocal stage, instance
        stage, instance = asked_stage.value, json.loads(sealed.header)["instance"]
        at(f"{stage}:asked", instance)

    def told(what: str) -> Callable[..., None]:
        return lambda *_: at(f"{stage}:{what}", instance)

    _around(Site, "answer", before=asked, after=told("answered"))
    _around(SqliteLedger, "charge", after=told("charged"))
    _around(Egress, "release", before=told("masked"))
    _around(SqliteOutbox, "put", before=told("recorded"))
    _around(NodeLink, "_push", after=told("sent"))


def _watch_operator(at: At) -> None:
    def told(what: str) -> Callable[..., None]:
        def tell(_letters: object, _grid: object, requests: dict[int, Any], _timeout: object) -> None:
            for request in list(requests.values())[:1]:
                at(f"{request.stage.value}:{what}", 0)

        return tell

    def kept(_record: object, _progress: object, done: Any = None) -> None:
        if done is not None:
            at("kept", done.round_index)

    def entered(_journal: object, _digest: object, state: State, *_: object) -> None:
        if state is State.FINISHED:
            at("released", 0)

    _around(Correspondence, "send", before=told("asking"), after=told("heard"))
    _around(SqlJournal, "enqueue", after=lambda *_: at("queued", 0))
    _around(SqlJournal, "enter", before=entered)
    _around(journals._StudyRecord, "keep", after=kept)
    _around(journals._StudyRecord, "end", before=lambda *_: at("ending", 0), after=lambda *_: at("ended", 0))
    _around(RehearsedProduct, "release", after=lambda *_: at("releasing", 0))


def _nothing(*_: object) -> None:
    return


def _around(
    owner: type, name: str, *, before: Callable[..., None] = _nothing, after: Callable[..., None] = _nothing
) -> None:
    """Have a method of this process call something with its arguments before it begins and after it returned."""
    method = getattr(owner, name)

    @wraps(method)
    def watched(*arguments: Any, **named: Any) -> Any:
        before(*arguments)
        result = method(*arguments, **named)
        after(*arguments)
        return result

    mock.patch.object(owner, name, watched).start()
