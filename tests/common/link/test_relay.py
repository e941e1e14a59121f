"""The relay asks again whoever connects anew, gives up who does not come back, and keeps nothing that nobody awaits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Message

from common.keystore import generate_node_key
from common.link.nodes import node_key_bytes
from common.link.relay import FleetGrid, Relay
from tests.links import Link, Speaker, ask, asking, echo, linked, words


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    with linked(tmp_path) as made:
        yield made


def kept(relay: Relay) -> tuple[int, int, int]:
    return len(relay.state.message_ins_store), len(relay.state.message_res_store), len(relay.state.object_store)


def test_a_key_keeps_its_node_and_another_key_has_another(link: Link) -> None:
    keys = [node_key_bytes(generate_node_key().public_key()) for _ in range(2)]
    first, again, other = (link.relay.admit(key, "north") for key in (keys[0], keys[0], keys[1]))
    assert first == again != other
    link.relay.dismiss(keys[0])
    link.relay.dismiss(keys[0])
    assert link.relay.admit(keys[0], "north") != first


def test_sites_answer_over_the_link_and_nothing_of_it_is_kept(link: Link) -> None:
    members = [link.admitted(name) for name in ("north", "south")]
    with link.relay.run() as grid, link.serving(members[0], echo("north")), link.serving(members[1], echo("south")):
        nodes = [member.node for member in members]
        heard = ask(grid, nodes, "here?", 20.0)
        assert heard == {nodes[0]: "north: here?", nodes[1]: "south: here?"}
        assert sorted(grid.get_node_ids()) == sorted(nodes)
        assert kept(link.relay) == (0, 0, 0)


def test_a_site_that_connects_anew_with_the_request_unanswered_is_asked_again(link: Link) -> None:
    north = link.admitted("north")

    def vanish() -> None:
        with Speaker(link, north) as speaker:
            speaker.activate()
            while not speaker.pull().messages_list:
                pass

    with link.relay.run() as grid:
        heard: dict[int, str] = {}
        with asking(lambda: heard.update(ask(grid, [north.node], "here?", 30.0))) as thread:
            vanish()
            with link.serving(north, echo("north")):
                thread.join(30)
        assert heard == {north.node: "north: here?"}
        assert grid.asked_again >= 1
        assert kept(link.relay) == (0, 0, 0)


def test_a_site_without_a_connection_is_waited_for_no_longer_than_patience_says(link: Link) -> None:
    gone = link.admitted("gone")
    with link.relay.run() as grid:
        grid.patience = 0.0
        # Without a deadline: it is patience that ends this.
        assert list(grid.send_and_receive([Message(words("here?"), gone.node, "query.say")])) == []
        assert kept(link.relay) == (0, 0, 0)


def test_a_question_ends_with_its_time(link: Link) -> None:
    silent = link.admitted("silent")
    with link.relay.run() as grid, Speaker(link, silent) as speaker:
        speaker.activate()
        assert ask(grid, [silent.node], "here?", 0.0) == {}
        assert kept(link.relay) == (0, 0, 0)


def test_a_message_to_a_node_that_is_not_admitted_is_never_answered(link: Link) -> None:
    with link.relay.run() as grid:
        assert list(grid.push_messages([Message(words("hello"), 5, "query.say")]))
        assert kept(link.relay)[0] == 0
        grid.patience = 0.0
        assert ask(grid, [5], "here?", 5.0) == {}


def test_the_younger_of_two_connections_of_one_site_is_the_one_that_is_asked(link: Link) -> None:
    north = link.admitted("north")
    with link.relay.run() as grid, Speaker(link, north) as older:
        older.activate()
        with link.serving(north, echo("north")):
            assert ask(grid, [north.node], "here?", 20.0) == {north.node: "north: here?"}


def test_a_grid_makes_messages_of_its_run(link: Link) -> None:
    with link.relay.run() as grid:
        assert isinstance(grid, FleetGrid)
        message = grid.create_message(words("hello"), "query.say", 5, "1")
        assert message.metadata.run_id == grid.run.run_id
        grid.set_run(grid.run)
