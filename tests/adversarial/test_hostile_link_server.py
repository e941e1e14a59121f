"""A server with the right certificate that is hostile: the site that connects to it sends it nothing for it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import Message as Protobuf
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from common import errors
from common.errors import ConsiliumError, Fault
from common.keystore import generate_node_key
from common.link import node as node_module
from common.link.inprocess import OPERATOR_NODE, RUN
from common.link.node import NodeLink, Server, client_tls
from common.link.parts import MAX_PARTS
from server.listener import Address, listening, tls_context
from tests.links import FLEET, HOST, PROTOBUF, Issuer, echo, words

NODE = 7
Answer = Callable[[bytes], Protobuf | Response]


@dataclass
class Hostile:
    """Answers what a test tells it to, and remembers what it was sent."""

    answers: dict[str, Answer] = field(default_factory=dict)
    heard: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        call, body = request.url.path.removeprefix(FLEET), await request.body()
        self.heard.append((call, body, dict(request.headers)))
        answer = self.answers.get(call)
        answered = Response(status_code=404) if answer is None else answer(body)
        if isinstance(answered, Protobuf):
            answered = Response(answered.SerializeToString(), media_type=PROTOBUF)
        await answered(scope, receive, send)

    def calls(self) -> list[str]:
        return [call for call, _, _ in self.heard]


@dataclass
class Site:
    """A site that is connected to it, until it was told of an error or has answered."""

    port: int
    folder: Path
    written: list[tuple[str, int, str]] = field(default_factory=list)
    told: list[ConsiliumError] = field(default_factory=list)
    asked: list[Message] = field(default_factory=list)

    def serve(self, until: Callable[[], bool] = lambda: False) -> None:
        def tell(error: ConsiliumError | None) -> None:
            if error is not None:
                self.told.append(error)
                link.stop()

        def app(message: Message, context: object) -> Message:
            self.asked.append(message)
            return echo("site")(message, context)  # type: ignore[arg-type]

        def write(method: str, size: int, peer: str) -> None:
            self.written.append((method, size, peer))
            if until():
                link.stop()

        server = Server(f"{HOST}:{self.port}", client_tls(str(self.folder / "ca.pem")))
        link = NodeLink(server, generate_node_key(), app, write=write, tell=tell)
        thread = threading.Thread(target=link.serve, daemon=True)
        thread.start()
        thread.join(30)
        link.stop()
        assert not thread.is_alive()

    def refuses(self, fault: Fault) -> None:
        self.serve()
        assert [error.fault for error in self.told] == [fault]
        assert self.asked == []
        assert not any(method.startswith("Push") for method, _, _ in self.written)


def obliging() -> dict[str, Answer]:
    return {
        "activate-node": lambda _body: ActivateNodeResponse(node_id=NODE),
        "deactivate-node": lambda _body: Response(media_type=PROTOBUF),
        "pull-messages": lambda _body: PullMessagesResponse(),
    }


@contextlib.contextmanager
def hostile_at(folder: Path) -> Iterator[tuple[Hostile, int]]:
    authority, hostile = Issuer("tests"), Hostile()
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority.certificate)
    authority.server(HOST).write(folder / "server.pem", folder / "server.key")
    tls = tls_context(str(folder / "server.pem"), str(folder / "server.key"), None)
    with listening(hostile, Address(HOST, 0), tls) as port:
        yield hostile, port


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hostile, int, Path]]:
    folder = tmp_path_factory.mktemp("hostile") / "server"
    with hostile_at(folder) as (made, port):
        yield made, port, folder


@pytest.fixture
def hostile(standing: tuple[Hostile, int, Path]) -> tuple[Hostile, Site]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = RUN, RUN, OPERATOR_NODE
    made, port, folder = standing
    made.answers, made.heard = obliging(), []
    return made, Site(port, folder)


@dataclass
class Asked:
    """A request that a site can answer."""

    pulled: PullMessagesResponse
    contents: dict[str, bytes]

    @property
    def root(self) -> str:
        return str(self.pulled.message_object_trees[0].object_id)

    def object(self, body: bytes) -> PullObjectResponse:
        asked = PullObjectRequest()
        asked.ParseFromString(body)
        content = self.contents.get(asked.object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=content is not None, object_content=content or b""
        )


def a_request() -> Asked:
    message = Message(words("hello"), NODE, "query.say")
    message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
        contents = {name: part.deflate() for name, part in objects.items()}
    head = message_to_proto(remove_content_from_message(message))
    return Asked(PullMessagesResponse(messages_list=[head], message_object_trees=[tree]), contents)


def asking(hostile: Hostile) -> Asked:
    """Have a server ask something that the site would answer."""
    asked = a_request()
    hostile.answers |= {"pull-messages": lambda _body: asked.pulled, "pull-object": asked.object}
    return asked


def test_an_honest_request_is_answered_here_so_that_refusals_mean_something(hostile: tuple[Hostile, Site]) -> None:
    server, site = hostile
    asking(server)
    parts: list[str] = []

    def push(body: bytes) -> PushMessagesResponse:
        request = PushMessagesRequest()
        request.ParseFromString(body)
        parts.append(request.message_object_trees[0].object_id)
        return PushMessagesResponse(objects_to_push=parts[-1:], session_id="s")

    server.answers |= {"push-messages": push, "push-object": lambda _body: Response(media_type=PROTOBUF)}
    site.serve(until=lambda: site.written[-1][0] == "PushObject")
    assert site.told == []
    assert len(site.asked) == 1
    assert "push-object" in server.calls()
    # No code is fetched and nothing else is asked for; every call was written down with its peer.
    known = {"activate-node", "deactivate-node", "pull-messages", "pull-object", "push-messages", "push-object"}
    assert set(server.calls()) <= known
    assert len(site.written) == len(server.heard)
    assert {peer for _, _, peer in site.written} == {f"{HOST}:{site.port}"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", ["activate-node", "pull-messages"])
def test_a_redirect_leads_the_site_nowhere(
    hostile: tuple[Hostile, Site], tmp_path: Path, status: int, call: str
) -> None:
    server, site = hostile
    with hostile_at(tmp_path / "elsewhere") as (elsewhere, port):
        server.answers[call] = lambda _body: RedirectResponse(f"https://{HOST}:{port}{FLEET}{call}", status)
        site.refuses(errors.LINK_DOWN)
    assert elsewhere.heard == []


async def _in_chunks() -> AsyncIterator[bytes]:
    for _ in range(64):
        yield bytes(1 << 20)


RESPONSES: dict[str, tuple[Callable[[], Response], Fault]] = {
    "without a length": (lambda: StreamingResponse(_in_chunks(), media_type=PROTOBUF), errors.LINK_MALFORMED),
    "large": (lambda: Response(bytes(20 << 20), media_type=PROTOBUF), errors.LINK_MALFORMED),
    "a bomb": (
        lambda: Response(gzip.compress(bytes(20 << 20)), headers={"content-encoding": "gzip"}),
        errors.LINK_MALFORMED,
    ),
    "a small bomb": (
        lambda: Response(gzip.compress(b""), headers={"content-encoding": "deflate"}),
        errors.LINK_MALFORMED,
    ),
    "unreadable": (lambda: Response(b"\xff\xff\xff", media_type=PROTOBUF), errors.LINK_DOWN),
    "an error page": (lambda: Response(b"<html>" * 1000, 500), errors.LINK_DOWN),
    "a large error": (lambda: Response(bytes(20 << 20), 500), errors.LINK_MALFORMED),
    "refused": (lambda: Response(status_code=401), errors.LINK_REFUSED),
    "taken": (lambda: Response(status_code=409), errors.LINK_TAKEN),
}


@pytest.mark.parametrize(("response", "fault"), RESPONSES.values(), ids=RESPONSES)
@pytest.mark.parametrize("call", ["activate-node", "pull-messages"])
def test_a_response_that_is_none_ends_in_a_named_error_and_the_site_goes_on(
    hostile: tuple[Hostile, Site], call: str, response: Callable[[], Response], fault: Fault
) -> None:
    server, site = hostile
    server.answers[call] = lambda _body: response()
    site.refuses(fault)


def no_tree(asked: Asked) -> None:
    del asked.pulled.message_object_trees[:]


def two_messages(asked: Asked) -> None:
    asked.pulled.messages_list.append(asked.pulled.messages_list[0])


def another_content(asked: Asked) -> None:
    asked.contents = dict.fromkeys(asked.contents, b"RecordDict  0\x00")


def no_content(asked: Asked) -> None:
    asked.contents = {}


def a_content_without_a_head(asked: Asked) -> None:
    root(asked, b"nothing")


def too_many_children(asked: Asked) -> None:
    children = ",".join(f"{number:064x}" for number in range(MAX_PARTS + 1))
    root(asked, f"Message {children} 0\x00".encode())


def a_chain_without_end(asked: Asked) -> None:
    below = ""
    for number in range(MAX_PARTS + 1):
        content = f"RecordDict {below} {number}\x00".encode()
        below = hashlib.sha256(content).hexdigest()
        asked.contents[below] = content
    asked.pulled.message_object_trees[0].CopyFrom(ObjectTree(object_id=below))


def root(asked: Asked, content: bytes) -> None:
    name = hashlib.sha256(content).hexdigest()
    asked.contents[name] = content
    asked.pulled.message_object_trees[0].CopyFrom(ObjectTree(object_id=name))


UNREADABLE = (no_tree, two_messages, another_content, no_content, a_content_without_a_head, too_many_children)


@pytest.mark.parametrize("change", UNREADABLE, ids=lambda change: change.__name__)
def test_a_message_that_is_none_reaches_no_app_and_nothing_is_sent_for_it(
    hostile: tuple[Hostile, Site], change: Callable[[Asked], None]
) -> None:
    server, site = hostile
    change(asking(server))
    site.refuses(errors.LINK_MALFORMED)


def test_a_message_of_ever_more_parts_is_given_up(
    hostile: tuple[Hostile, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.link.parts.MAX_PARTS", 40)
    server, site = hostile
    a_chain_without_end(asking(server))
    site.refuses(errors.LINK_MALFORMED)
    assert server.calls().count("pull-object") == 40


def test_a_message_of_ever_more_bytes_is_given_up(
    hostile: tuple[Hostile, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.link.parts.MAX_MESSAGE", 100)
    server, site = hostile
    asking(server)
    site.refuses(errors.LINK_MALFORMED)


def test_a_part_that_never_comes_is_not_asked_for_for_ever(
    hostile: tuple[Hostile, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "_PART_SECONDS", 0.1)
    server, site = hostile
    asking(server)
    server.answers["pull-object"] = lambda _body: PullObjectResponse(object_found=True, object_available=False)
    site.refuses(errors.LINK_MALFORMED)


def test_an_app_that_fails_whatever_way_ends_no_process(hostile: tuple[Hostile, Site]) -> None:
    server, site = hostile
    asking(server)

    class Failing(list[Message]):
        def append(self, _message: Message) -> None:
            raise LookupError

    site.asked = Failing()
    site.refuses(errors.LINK_MALFORMED)


def test_what_is_no_part_of_the_reply_is_not_sent(hostile: tuple[Hostile, Site]) -> None:
    server, site = hostile
    asked = asking(server)
    server.answers["push-messages"] = lambda _body: PushMessagesResponse(objects_to_push=[asked.root], session_id="s")
    site.serve()
    assert [error.fault for error in site.told] == [errors.LINK_MALFORMED]
    assert "push-object" not in server.calls()


def test_a_part_that_is_asked_for_a_thousand_times_is_sent_once(hostile: tuple[Hostile, Site]) -> None:
    server, site = hostile
    asking(server)
    pulls = iter([server.answers["pull-messages"]])
    server.answers["pull-messages"] = lambda body: next(pulls, lambda _body: Response(status_code=401))(body)

    def push(body: bytes) -> PushMessagesResponse:
        request = PushMessagesRequest()
        request.ParseFromString(body)
        return PushMessagesResponse(objects_to_push=[request.message_object_trees[0].object_id] * 1000, session_id="s")

    server.answers |= {"push-messages": push, "push-object": lambda _body: Response(media_type=PROTOBUF)}
    site.serve()
    sent = [body for call, body, _ in server.heard if call == "push-object"]
    assert len(sent) == 1
    request = PushObjectRequest()
    request.ParseFromString(sent[0])
    assert hashlib.sha256(request.object_content).hexdigest() == request.object_id


def test_a_cookie_is_never_carried_back(hostile: tuple[Hostile, Site]) -> None:
    server, site = hostile

    def marking(_body: bytes) -> Response:
        response = Response(ActivateNodeResponse(node_id=NODE).SerializeToString(), media_type=PROTOBUF)
        response.set_cookie("watch", "site")
        return response

    server.answers["activate-node"] = marking
    site.serve(until=lambda: len(site.written) > 2)
    assert all("cookie" not in headers for _, _, headers in server.heard)


def test_empty_answers_at_once_do_not_fill_the_sites_log(hostile: tuple[Hostile, Site]) -> None:
    server, site = hostile
    pulls: list[float] = []

    def empty(_body: bytes) -> PullMessagesResponse:
        pulls.append(time.monotonic())
        return PullMessagesResponse()

    server.answers["pull-messages"] = empty
    site.serve(until=lambda: len(pulls) >= 2)
    assert pulls[1] - pulls[0] >= 0.9 * node_module._EMPTY_SECONDS
