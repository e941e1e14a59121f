"""An admitted site that cheats speaks for itself alone, once, in bounds: what honest sites say arrives as they said it.

The cheat is given more than it could know: the identifiers of others' messages and sessions.
"""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.internal.encoder import _VarintBytes
from google.protobuf.message import Message as ProtobufMessage

from common.link import fleet_app as app_module
from common.link.parts import MAX_PARTS
from common.link.relay import FleetGrid
from server.guard import Limits
from tests.links import PROTOBUF, Link, Member, Reply, Speaker, ask, asking, echo, linked, reply_to, said, signed, words

PATIENT = Limits(refusals=10_000)


@dataclass
class Scene:
    """Two honest sites, one of which waits; a cheat that has pulled its own request; a run."""

    link: Link
    grid: FleetGrid
    cheat: Speaker
    head: FlowerMessage
    victim: Member
    victims_message: str

    def reply(self, content: RecordDict | None = None, *, speaks_as: int | None = None) -> Reply:
        return reply_to(
            self.head, self.cheat.member, words("cheat") if content is None else content, speaks_as=speaks_as
        )

    def push(self, reply: Reply) -> int:
        return self.cheat.post("push-messages", reply.request).status_code

    def pushed_whole(self, reply: Reply) -> PushMessagesResponse:
        response = self.cheat.post("push-messages", reply.request)
        assert response.status_code == 200, response.text
        opened = PushMessagesResponse()
        opened.ParseFromString(response.content)
        for name in opened.objects_to_push:
            self.cheat.push_object(self.head.metadata.run_id, opened.session_id, name, reply.contents[name])
        return opened

    def kept(self) -> tuple[int, int, int]:
        """Return how much the operator keeps of replies: messages, objects, sessions."""
        state = self.link.relay.state
        return len(state.message_res_store), len(state.object_store), len(state._object_push_sessions)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with linked(tmp_path, limits=PATIENT) as link, link.relay.run() as grid:
        victim, cheat = link.admitted("victim"), link.admitted("cheat")
        with Speaker(link, cheat) as speaker, Speaker(link, victim) as waiting:
            speaker.activate()
            waiting.activate()
            theirs, own = grid.push_messages(
                [Message(words("one"), victim.node, "query.say"), Message(words("two"), cheat.node, "query.say")]
            )
            head = speaker.pull().messages_list[0]
            assert head.metadata.message_id == own
            yield Scene(link, grid, speaker, head, victim, theirs)


def spoof_head(scene: Scene) -> int:
    reply = scene.reply()
    reply.request.messages_list[0].metadata.src_node_id = scene.victim.node
    return scene.push(reply)


def answer_anothers(scene: Scene) -> int:
    reply = scene.reply()
    reply.request.messages_list[0].metadata.reply_to_message_id = scene.victims_message
    return scene.push(reply)


def answer_nothing(scene: Scene) -> int:
    reply = scene.reply()
    reply.request.messages_list[0].metadata.reply_to_message_id = ""
    return scene.push(reply)


def two_replies_in_one(scene: Scene) -> int:
    reply = scene.reply()
    reply.request.messages_list.append(reply.request.messages_list[0])
    reply.request.message_object_trees.append(reply.tree)
    return scene.push(reply)


def no_reply_in_one(scene: Scene) -> int:
    reply = scene.reply()
    del reply.request.messages_list[:], reply.request.message_object_trees[:]
    return scene.push(reply)


def another_root(scene: Scene) -> int:
    reply = scene.reply()
    reply.tree.object_id = "0" * 64
    return scene.push(reply)


def as_another_node(scene: Scene) -> int:
    reply = scene.reply()
    reply.request.node.node_id = scene.victim.node
    return scene.push(reply)


def names_that_are_no_hashes(scene: Scene) -> int:
    reply = scene.reply()
    reply.tree.children.append(ObjectTree(object_id="../../etc/passwd"))
    return scene.push(reply)


def too_many_parts(scene: Scene) -> int:
    reply = scene.reply()
    reply.tree.children.extend(ObjectTree(object_id=f"{number:064x}") for number in range(MAX_PARTS))
    return scene.push(reply)


def a_tree_too_deep(scene: Scene) -> int:
    request = scene.reply().request
    del request.message_object_trees[:]
    tree = b""
    for _ in range(200):
        tree = field(ObjectTree, "object_id", b"a" * 64) + (field(ObjectTree, "children", tree) if tree else b"")
    body = request.SerializeToString() + field(PushMessagesRequest, "message_object_trees", tree)
    headers = {"content-type": PROTOBUF, **signed(scene.cheat.member.key)}
    return scene.cheat.client.post("/v1/fleet/push-messages", content=body, headers=headers).status_code


def field(kind: type[ProtobufMessage], name: str, content: bytes) -> bytes:
    """Return one field of bytes as it stands on the wire; Google's own writer refuses such depths."""
    number = kind.DESCRIPTOR.fields_by_name[name].number
    head: bytes = _VarintBytes(number << 3 | 2) + _VarintBytes(len(content))
    return head + content


def pull_for_another(scene: Scene) -> int:
    return scene.cheat.post("pull-messages", PullMessagesRequest(node=Node(node_id=scene.victim.node))).status_code


def disconnect_another(scene: Scene) -> int:
    return scene.cheat.post("deactivate-node", DeactivateNodeRequest(node_id=scene.victim.node)).status_code


def beat_for_another(scene: Scene) -> int:
    request = SendNodeHeartbeatRequest(node=Node(node_id=scene.victim.node), heartbeat_interval=10.0)
    return scene.cheat.post("send-node-heartbeat", request).status_code


def an_object_without_a_session(scene: Scene) -> int:
    content = b"anything"
    name = hashlib.sha256(content).hexdigest()
    return scene.cheat.push_object(scene.head.metadata.run_id, "", name, content).status_code


ATTACKS: dict[str, tuple[Callable[[Scene], int], int]] = {
    attack.__name__: (attack, status)
    for attack, status in (
        (spoof_head, 403),
        (answer_anothers, 403),
        (answer_nothing, 403),
        (two_replies_in_one, 403),
        (no_reply_in_one, 403),
        (another_root, 403),
        (as_another_node, 401),
        (names_that_are_no_hashes, 403),
        (too_many_parts, 403),
        (a_tree_too_deep, 400),
        (pull_for_another, 401),
        (disconnect_another, 401),
        (beat_for_another, 401),
        (an_object_without_a_session, 403),
    )
}


@pytest.mark.parametrize(("attack", "status"), ATTACKS.values(), ids=ATTACKS)
def test_what_is_not_the_nodes_own_is_refused_and_leaves_nothing(
    scene: Scene, attack: Callable[[Scene], int], status: int
) -> None:
    before = scene.kept(), scene.link.relay.connection(scene.victim.node)
    assert attack(scene) == status
    assert (scene.kept(), scene.link.relay.connection(scene.victim.node)) == before
    assert scene.link.relay.has_mail(scene.victim.node)


def test_who_spoke_is_whom_the_operator_asked_whatever_the_reply_says_inside(tmp_path: Path) -> None:
    with linked(tmp_path) as link, link.relay.run() as grid:
        victim, cheat = link.admitted("victim"), link.admitted("cheat")

        def lie() -> None:
            with Speaker(link, cheat) as speaker:
                speaker.activate()
                while not (pulled := speaker.pull()).messages_list:
                    pass
                head = pulled.messages_list[0]
                reply = reply_to(head, cheat, words("I am the victim"), speaks_as=victim.node)
                Scene(link, grid, speaker, head, victim, "").pushed_whole(reply)

        with link.serving(victim, echo("victim")), asking(lie):
            heard = ask(grid, [victim.node, cheat.node], "who?", 20.0)
    assert heard == {victim.node: "victim: who?", cheat.node: "I am the victim"}


def test_the_first_reply_stands_and_a_second_is_refused(scene: Scene) -> None:
    scene.pushed_whole(scene.reply(words("first")))
    kept = scene.kept()
    assert scene.push(scene.reply(words("second"))) == 403
    assert scene.kept() == kept
    (reply,) = scene.grid.pull_messages([scene.head.metadata.message_id])
    assert said(reply) == "first"


def test_what_comes_after_its_message_was_given_up_is_not_kept(scene: Scene) -> None:
    reply = scene.reply()
    scene.grid._forget(scene.head.metadata.message_id)
    before = scene.kept()
    for _ in range(20):
        assert scene.push(reply) == 200
    assert scene.kept() == before


def test_an_old_reply_in_another_run_is_nobodys(scene: Scene) -> None:
    old = scene.reply()
    scene.pushed_whole(old)
    list(scene.grid.pull_messages([scene.head.metadata.message_id]))
    (asked,) = scene.grid.push_messages([Message(words("again"), scene.cheat.member.node, "query.say")])
    scene.cheat.pull()
    old.request.messages_list[0].metadata.reply_to_message_id = asked
    scene.pushed_whole(old)
    # It may stand in the place of the new one: it is the cheat's own, and its signature is of another stage.
    heard = list(scene.grid.pull_messages([asked]))
    assert [said(reply) for reply in heard] == ["cheat"]
    assert scene.grid.pull_messages([scene.victims_message]) == []


def test_contents_are_what_their_names_say_or_are_not_taken(scene: Scene) -> None:
    reply = scene.reply()
    response = scene.cheat.post("push-messages", reply.request)
    opened = PushMessagesResponse()
    opened.ParseFromString(response.content)
    run, session = scene.head.metadata.run_id, opened.session_id
    forged = b"Message " + b" 0\x00"
    for name in opened.objects_to_push:
        for content in (b"", forged, reply.contents[name] + b"!"):
            scene.cheat.push_object(run, session, name, content)
    assert scene.grid.pull_messages([scene.head.metadata.message_id]) == []
    other = hashlib.sha256(forged).hexdigest()
    scene.cheat.push_object(run, session, other, forged)
    assert other not in scene.link.relay.state.object_store


@pytest.mark.parametrize("content", [b"Message  0\x00", b"Nonsense  0\x00", b"RecordDict  1\x00{", b"Array  0\x00"])
def test_a_reply_whose_contents_cannot_be_read_is_no_reply(scene: Scene, content: bytes) -> None:
    name = hashlib.sha256(content).hexdigest()
    reply = scene.reply()
    reply.request.messages_list[0].metadata.message_id = name
    reply.request.message_object_trees[0].CopyFrom(ObjectTree(object_id=name))
    reply.contents = {name: content}
    scene.pushed_whole(reply)
    assert scene.grid.pull_messages([scene.head.metadata.message_id]) == []
    scene.grid._forget(scene.head.metadata.message_id)
    assert name not in scene.link.relay.state.object_store


def test_a_tree_that_runs_in_a_circle_leads_nobody_round(scene: Scene) -> None:
    reply = scene.reply()
    root = reply.tree.object_id
    for child in reply.tree.children:
        child.children.append(ObjectTree(object_id=root))
    scene.pushed_whole(reply)
    (heard,) = scene.grid.pull_messages([scene.head.metadata.message_id])
    assert said(heard) == "cheat"


def test_objects_registered_under_false_children_stop_no_request_that_holds_them(tmp_path: Path) -> None:
    """A vector of many sites is one object in Flower's store, and who is first says there what it consists of."""
    array = Array("uint8", (8,), "numpy.ndarray", b"published")
    with linked(tmp_path) as link, link.relay.run() as grid:
        victim, cheat = link.admitted("victim"), link.admitted("cheat")
        with Speaker(link, cheat) as speaker:
            speaker.activate()
            grid.push_messages([Message(words("own"), cheat.node, "query.say")])
            reply = reply_to(speaker.pull().messages_list[0], cheat, words("cheat"))
            false = ObjectTree(object_id=array.object_id, children=[ObjectTree(object_id="e" * 64)])
            reply.tree.children.append(false)
            assert speaker.post("push-messages", reply.request).status_code == 200
            content = RecordDict({**words("honest"), "vector": ArrayRecord({"v": array})})
            with link.serving(victim, echo("victim")):
                messages = [Message(content, victim.node, "query.say")]
                heard = list(grid.send_and_receive(messages, timeout=20))
    assert [said(reply) for reply in heard] == ["victim: honest"]


def test_objects_of_others_are_found_by_no_name_that_is_not_known(scene: Scene) -> None:
    run = scene.head.metadata.run_id
    request = PullObjectRequest(node=scene.cheat.node, run_id=run, object_id="f" * 64)
    response = scene.cheat.post("pull-object", request)
    assert response.status_code == 200
    assert b"one" not in response.content


def test_more_bytes_than_any_reply_has_are_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_MESSAGE", 10_000)
    assert scene.push(scene.reply()) == 200
    pushes = [scene.cheat.push_object(scene.head.metadata.run_id, "x", "0" * 64, bytes(4000)) for _ in range(4)]
    assert [push.status_code for push in pushes] == [200, 200, 403, 403]


def test_the_operators_memory_does_not_grow_under_what_a_cheat_repeats(scene: Scene) -> None:
    def attack() -> None:
        for other in ("first", "second", "third"):
            scene.push(scene.reply(words(other)))
            large = scene.reply(words(other))
            large.tree.children.extend(ObjectTree(object_id=f"{number:064x}") for number in range(MAX_PARTS))
            scene.push(large)
        an_object_without_a_session(scene)
        scene.cheat.push_object(scene.head.metadata.run_id, "no session", "0" * 64, bytes(1 << 20))

    attack()
    kept = scene.kept()
    scene.link.calls.clear()
    tracemalloc.start()
    attack()
    base, _ = tracemalloc.get_traced_memory()
    for _ in range(5):
        attack()
    grown = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    assert scene.kept() == kept
    # Ten MiB came in; what is left is the test's own record of calls and log lines.
    assert grown < 3 << 20, grown


def test_a_run_that_ends_leaves_nothing_of_anybody(tmp_path: Path) -> None:
    with linked(tmp_path, limits=PATIENT) as link:
        with link.relay.run() as grid, Speaker(link, link.admitted("cheat")) as speaker:
            speaker.activate()
            for _ in range(3):
                grid.push_messages([Message(words("own"), speaker.member.node, "query.say")])
                reply = reply_to(speaker.pull().messages_list[0], speaker.member, words("half"))
                assert speaker.post("push-messages", reply.request).status_code == 200
        state = link.relay.state
        assert len(state.message_ins_store) == len(state.message_res_store) == len(state.object_store) == 0
        assert state._object_push_sessions == {}
