"""The link in one process: a real listener with TLS on loopback, nodes that behave, and calls made by hand."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import sign_message
from google.protobuf.message import Message as Protobuf

from common.keystore import generate_node_key
from common.link.fleet_app import fleet_app
from common.link.node import App, NodeLink, Server, client_tls
from common.link.nodes import node_key_bytes
from common.link.relay import FleetGrid, Relay
from server.authority import Authority
from server.guard import Call, Guard, Limits
from server.listener import Address, listening, tls_context

HOST, ELSEWHERE = "127.0.0.1", "127.0.0.2"
FLEET = "/v1/fleet/"
PROTOBUF = "application/protobuf"
DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Member:
    """A site that the operator has admitted: its node and what it holds."""

    node: int
    key: ec.EllipticCurvePrivateKey
    tls: ssl.SSLContext


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)


class Issuer:
    """An authority that draws the keys too."""

    def __init__(self, name: str) -> None:
        self._authority, _ = Authority.create(name)
        self.certificate = self._authority.certificate

    def server(self, *hosts: str) -> Issued:
        key = generate_node_key()
        return _issued(self._authority.server(key.public_key(), *hosts), key)

    def site(self, name: str, *, days: int = 1) -> Issued:
        key = generate_node_key()
        return _issued(self._authority.site(key.public_key(), name, days=days), key)


def _issued(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@dataclass
class Link:
    """A listener that is up."""

    folder: Path
    relay: Relay
    authority: Issuer
    port: int
    calls: list[Call] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def tls(self, issued: Issued | None, ca: bytes | None = None) -> ssl.SSLContext:
        """Return a client's context with a certificate, or with none."""
        trusted = self.folder / "trusted.pem"
        trusted.write_bytes(ca or self.authority.certificate)
        if issued is None:
            return client_tls(str(trusted))
        certificate, key = self.folder / "client.pem", self.folder / "client.key"
        certificate.write_bytes(issued.certificate)
        key.write_bytes(issued.key)
        return client_tls(str(trusted), str(certificate), str(key))

    def admitted(self, name: str) -> Member:
        """Let a new node in."""
        key = generate_node_key()
        node = self.relay.admit(node_key_bytes(key.public_key()), name)
        return Member(node, key, self.tls(self.authority.site(name)))

    def plain(self) -> socket.socket:
        """Return a connection from another address than honest sites have."""
        return socket.create_connection((HOST, self.port), timeout=20, source_address=(ELSEWHERE, 0))

    def raw(self, member: Member) -> ssl.SSLSocket:
        """Return a TLS connection over which a test says what it likes."""
        return member.tls.wrap_socket(self.plain(), server_hostname=HOST)

    @contextlib.contextmanager
    def serving(self, member: Member, app: App) -> Iterator[NodeLink]:
        """Run a member as the product does, until the context is left."""
        node = NodeLink(Server(f"{HOST}:{self.port}", member.tls), member.key, app, write=lambda *_: None)
        thread = threading.Thread(target=node.serve, daemon=True)
        thread.start()
        try:
            yield node
        finally:
            node.stop()
            self.relay.mail(member.node)
            self.relay.close()
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def linked(folder: Path, *, limits: Limits = DEFAULT, hold: float = 0.2, head_seconds: float = 10.0) -> Iterator[Link]:
    """Listen as the operator does, with mutual TLS."""
    relay, authority = Relay(), Issuer("tests")
    server, client_ca = authority.server(HOST), folder / "ca.pem"
    client_ca.write_bytes(authority.certificate)
    server.write(folder / "server.pem", folder / "server.key")
    tls = tls_context(str(folder / "server.pem"), str(folder / "server.key"), str(client_ca))
    calls: list[Call] = []
    guard = Guard(fleet_app(relay, hold_seconds=hold), audit=calls.append, limits=limits)
    with listening(guard, Address(HOST, 0), tls, head_seconds=head_seconds) as port:
        try:
            yield Link(folder, relay, authority, port, calls)
        finally:
            relay.close()


@dataclass
class Speaker:
    """Calls the listener by hand, with whatever key, name and message a test wants."""

    link: Link
    member: Member

    def __post_init__(self) -> None:
        self.client = httpx.Client(verify=self.member.tls, base_url=self.link.url, timeout=20, trust_env=False)

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def post(
        self, call: str, message: Protobuf, headers: Mapping[str, str] | None = None, path: str = FLEET
    ) -> httpx.Response:
        """Send one call, signed by the member's key unless other headers are given."""
        return self.client.post(
            path + call,
            content=message.SerializeToString(),
            headers={"content-type": PROTOBUF, **(signed(self.member.key) if headers is None else headers)},
        )

    def activate(self) -> int:
        """Connect; returns the node."""
        public = node_key_bytes(self.member.key.public_key())
        response = self.post("activate-node", ActivateNodeRequest(public_key=public, heartbeat_interval=10.0))
        assert response.status_code == 200, response.text
        return int(ActivateNodeResponse.FromString(response.content).node_id)

    def pull(self) -> PullMessagesResponse:
        """Pull what is there for this member."""
        response = self.post("pull-messages", PullMessagesRequest(node=self.node))
        assert response.status_code == 200, response.text
        pulled = PullMessagesResponse()
        pulled.ParseFromString(response.content)
        return pulled

    @property
    def node(self) -> Node:
        return Node(node_id=self.member.node)

    def push_object(self, run: int, session: str, name: str, content: bytes) -> httpx.Response:
        """Push one object of a reply."""
        request = PushObjectRequest(
            node=self.node, run_id=run, session_id=session, object_id=name, object_content=content
        )
        return self.post("push-object", request)


@dataclass
class Reply:
    """A reply taken apart, so that a test can change any part of it."""

    request: PushMessagesRequest
    contents: dict[str, bytes]

    @property
    def tree(self) -> ObjectTree:
        tree: ObjectTree = self.request.message_object_trees[0]
        return tree


def signed(key: ec.EllipticCurvePrivateKey, *, public: bytes | None = None, at: str | None = None) -> dict[str, str]:
    """Return the headers by which a node says who it is; ``public`` another's key, ``at`` another time."""
    stamp = now().isoformat() if at is None else at
    return {
        "flwr-public-key": b64encode(public or node_key_bytes(key.public_key())).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(sign_message(key, stamp.encode())).decode(),
    }


def reply_to(head: FlowerMessage, member: Member, content: RecordDict, *, speaks_as: int | None = None) -> Reply:
    """Return a member's reply to what it pulled; ``speaks_as`` the node that the reply's own metadata names."""
    asked = message_from_proto(head)
    reply = Message(content, reply_to=asked)
    reply.metadata.__dict__["_src_node_id"] = member.node if speaks_as is None else speaks_as
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        contents = {name: part.deflate() for name, part in objects.items()}
    without = message_to_proto(remove_content_from_message(reply))
    without.metadata.src_node_id = member.node
    request = PushMessagesRequest(node=Node(node_id=member.node), messages_list=[without], message_object_trees=[tree])
    return Reply(request, contents)


def words(text: str) -> RecordDict:
    """Return a message's content."""
    return RecordDict({"said": ConfigRecord({"text": text})})


def said(message: Message) -> str:
    """Return what :func:`words` put into a message."""
    record = message.content["said"]
    assert isinstance(record, ConfigRecord)
    return str(record["text"])


def echo(name: str) -> App:
    """Return an app that says who answered what."""

    def app(message: Message, context: Context) -> Message:
        del context
        return Message(words(f"{name}: {said(message)}"), reply_to=message)

    return app


def ask(grid: FleetGrid, nodes: list[int], text: str, seconds: float = 10.0) -> dict[int, str]:
    """Ask some nodes the same; returns what each that answered in time has said."""
    messages = [Message(words(text), node, "query.say") for node in nodes]
    replies = grid.send_and_receive(messages, timeout=seconds)
    return {reply.metadata.src_node_id: said(reply) for reply in replies}


@contextlib.contextmanager
def asking(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run something beside the test, and wait for its end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()
