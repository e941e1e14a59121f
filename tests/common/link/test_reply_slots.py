"""A site whose replies leave on a time grid: when one leaves says in which slot it was ready, and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message
from hypothesis import given
from hypothesis import strategies as st

from common.link.node import NodeLink, Server, until_slot
from tests.links import HOST, Link, ask, echo, linked

SLOT = 0.5


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    with linked(tmp_path) as made:
        yield made


@given(st.floats(0, 2e9), st.floats(0.1, 3600.0))
def test_the_next_slot_is_ahead_and_within_one(now: float, slots: float) -> None:
    wait = until_slot(now, slots)
    assert 0 < wait <= slots
    place = (now + wait) / slots
    assert abs(place - round(place)) < 1e-4


def test_a_reply_leaves_in_a_later_slot_than_it_was_ready_in(link: Link) -> None:
    member = link.admitted("north")
    ready: list[float] = []
    left: list[float] = []

    def app(message: Message, context: Context) -> Message:
        reply = echo("north")(message, context)
        ready.append(time.time())
        return reply

    def write(call: str, sent: int, peer: str) -> None:
        del sent, peer
        if call == "PushMessages":
            left.append(time.time())

    node = NodeLink(Server(f"{HOST}:{link.port}", member.tls), member.key, app, write=write, slots=SLOT)
    thread = threading.Thread(target=node.serve, daemon=True)
    thread.start()
    try:
        with link.relay.run() as grid:
            for _ in range(3):
                assert ask(grid, [member.node], "here?", 30.0)
    finally:
        node.stop()
        link.relay.close()
        thread.join(20)
    assert len(ready) == len(left) == 3
    assert all(gone // SLOT > there // SLOT for there, gone in zip(ready, left, strict=True))
