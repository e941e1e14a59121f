"""A site's end of the link: connect, pull a request, hand it to the installed app, push the reply, for ever.

Flower's own client for the Fleet API, without its retries, which may end the process. Whatever goes wrong on the way,
this connects anew and the server asks again; the app answers a request that it has seen before from its own journal.
Nothing but what a site must send passes the gate, and no code is ever fetched.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common import errors
from common.errors import ConsiliumError
from common.link.gate import Gate, Write
from common.link.nodes import node_key_bytes
from common.link.parts import parts_of
from common.link.pinned import check_flwr

HEARTBEAT_SECONDS = 10.0
"""The shortest that Flower allows; a node is taken for gone after two of them."""
_CALL_SECONDS = 30.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
_EMPTY_SECONDS = 1.0
"""From one pull to the next, should a server answer at once that there is nothing: each is a line of the egress log."""
_PART_SECONDS = 60.0
"""How long a part may be announced and not there."""
_MAX_RESPONSE = 16 << 20

App = Callable[[Message, Context], Message]


@dataclass(frozen=True, slots=True)
class Server:
    """Where a site connects to.

    address  host:port
    tls      verifies the server; carries the site's own certificate where the server wants one
    proxy    URL of an HTTP proxy, through which the TLS connection is tunnelled; None for none
    renewed  returns the context anew for each connection, so that a renewed certificate is used from the next on
    """

    address: str
    tls: ssl.SSLContext
    proxy: str | None = None
    renewed: Callable[[], ssl.SSLContext] | None = None


def client_tls(
    ca: str | None, certificate: str | None = None, key: str | None = None, passphrase: bytes | None = None
) -> ssl.SSLContext:
    """Return a context that trusts one CA and no other, or the system's where none is named.

    certificate, key  the site's own pair, for a server that asks for one; the key's passphrase, if it is encrypted
    Raises CSL-643 for files that are no certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        if ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(ca)
        if certificate is not None:
            # Without one, OpenSSL would ask whoever sits at the terminal.
            context.load_cert_chain(certificate, key, password=passphrase or b"none")
    except (OSError, ssl.SSLError) as error:
        raise ConsiliumError(errors.LINK_TLS, f"{certificate or ca}: {error}") from error
    return context


def until_slot(now: float, slots: float) -> float:
    """Return the seconds until the clock shows the next multiple of ``slots``, in (0, slots]."""
    return slots - now % slots


class NodeLink:
    """One site's connection.

    key     the node key, which Flower's transport knows the site by; it proves nothing to anybody else
    app     the installed ClientApp
    write   is told of every request before it is sent (the second gate of the site's egress)
    slots   seconds: a reply leaves at the next multiple of it on the clock (RULES 14); at once where None
    tell    is told what a person should know: connected, or the coded error that keeps the link down
    """

    def __init__(
        self,
        server: Server,
        key: ec.EllipticCurvePrivateKey,
        app: App,
        *,
        write: Write,
        slots: float | None = None,
        tell: Callable[[ConsiliumError | None], None] = lambda _state: None,
    ) -> None:
        check_flwr()
        self._server, self._key, self._app, self._tell = server, key, app, tell
        self._gate, self._slots = Gate(server.address, write), slots
        self._stop = threading.Event()
        self._contexts: dict[int, Context] = {}
        self.node = 0

    def stop(self) -> None:
        """Have :meth:`serve` return, after the request in work."""
        self._stop.set()

    def connect_once(self) -> int:
        """Connect, and part again; returns the number of the node, raises the coded error of what keeps it away."""
        try:
            with self._connected():
                return self.node
        except _FAILURES as error:
            raise _coded(error) from error

    def serve(self) -> None:
        """Answer requests until stopped. Raises nothing for a link that is down: it goes on trying."""
        wait, down = _FIRST_WAIT, ""
        while not self._stop.is_set():
            try:
                with self._connected() as client:
                    if not down:
                        self._tell(None)
                    while not self._stop.is_set():
                        asked = time.monotonic()
                        if not self._answer_one(client):
                            self._stop.wait(max(0.0, asked + _EMPTY_SECONDS - time.monotonic()))
                        # A link that opens and then fails is not yet a link.
                        if down:
                            self._tell(None)
                        wait, down = _FIRST_WAIT, ""
            except _FAILURES as error:
                coded = _coded(error)
                if coded.code != down:
                    self._tell(coded)
                down = coded.code
                # Many sites come back after one server: not all at once.
                self._stop.wait(wait * random.uniform(0.5, 1.5))  # noqa: S311  nothing secret
                wait = min(2 * wait, _LONGEST_WAIT)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[FleetHttpClient]:
        public = node_key_bytes(self._key.public_key())
        auth = NodeAuthHttpInterceptor(self._key, self._key.public_key())
        tls = self._server.tls if self._server.renewed is None else self._server.renewed()
        with FleetHttpClient(f"https://{self._server.address}", interceptors=[auth, self._gate], verify=tls) as client:
            # Flower's own follows redirects, reads proxies from the environment and bounds no response.
            client._client.close()
            client._client = httpx.Client(
                transport=_Bounded(verify=tls, proxy=self._server.proxy),
                timeout=_CALL_SECONDS,
                trust_env=False,
                follow_redirects=False,
            )
            response = client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_SECONDS))
            self.node = response.node_id
            self._gate.node = self.node
            over = threading.Event()
            beat = threading.Thread(target=self._beat, args=(client, over), name="heartbeat", daemon=True)
            beat.start()
            try:
                yield client
                with contextlib.suppress(*_FAILURES):
                    client.DeactivateNode(DeactivateNodeRequest(node_id=self.node))
            finally:
                over.set()
                beat.join(_CALL_SECONDS)

    def _beat(self, client: FleetHttpClient, over: threading.Event) -> None:
        request = SendNodeHeartbeatRequest(node=Node(node_id=self.node), heartbeat_interval=HEARTBEAT_SECONDS)
        while not over.wait(0.8 * HEARTBEAT_SECONDS):
            # A beat that fails is missed, no more: the calls of the other thread notice a link that is down.
            with contextlib.suppress(*_FAILURES):
                client.SendNodeHeartbeat(request)

    def _answer_one(self, client: FleetHttpClient) -> bool:
        """Pull one request and push its reply; returns False where there was none."""
        node = Node(node_id=self.node)
        pulled = client.PullMessages(PullMessagesRequest(node=node))
        if not pulled.messages_list:
            return False
        if len(pulled.messages_list) != 1 or len(pulled.message_object_trees) != 1:
            raise ConsiliumError(errors.LINK_MALFORMED, "not one message")
        run, name = pulled.messages_list[0].metadata.run_id, pulled.message_object_trees[0].object_id
        message = self._whole(client, node, run, name)
        if message is None:
            return True
        if run not in self._contexts:
            # Flower keeps a context for each run; nothing of ours is in it.
            self._contexts = {run: Context(run, self.node, {}, RecordDict(), {})}
        try:
            reply = self._app(message, self._contexts[run])
        except Exception as error:  # nothing that a server asks may end this process
            raise ConsiliumError(errors.LINK_MALFORMED, type(error).__name__) from error
        if self._slots is not None:
            ready = time.time() // self._slots
            while time.time() // self._slots == ready and not self._stop.is_set():
                self._stop.wait(until_slot(time.time(), self._slots))
        self._push(client, node, reply)
        return True

    def _whole(self, client: FleetHttpClient, node: Node, run: int, name: str) -> Message | None:
        """Fetch a message's parts, each by its hash; None for one that cannot be read."""
        contents = parts_of(name, lambda part: self._object(client, node, run, part))
        try:
            message = inflate_object_from_contents(name, contents)
        except Exception:  # a server can send anything: what cannot be read is not answered
            return None
        if not isinstance(message, Message) or not message.has_content() or message.metadata.run_id != run:
            return None
        message.metadata.__dict__["_message_id"] = name
        return message

    def _object(self, client: FleetHttpClient, node: Node, run: int, name: str) -> bytes:
        wait, end = 0.02, time.monotonic() + _PART_SECONDS
        while not self._stop.is_set():
            response = client.PullObject(PullObjectRequest(node=node, run_id=run, object_id=name))
            if not response.object_found:
                raise ConsiliumError(errors.LINK_MALFORMED, "a part is not there")
            if response.object_available:
                return bytes(response.object_content)
            if time.monotonic() > end:
                raise ConsiliumError(errors.LINK_MALFORMED, "a part never came")
            self._stop.wait(wait)
            wait = min(2 * wait, 1.0)
        raise ConsiliumError(errors.LINK_DOWN, "stopped")

    def _push(self, client: FleetHttpClient, node: Node, reply: Message) -> None:
        run = reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            contents = {name: part.deflate() for name, part in objects.items()}
            with self._gate.reply(reply.metadata.reply_to_message_id, contents):
                response = client.PushMessages(
                    PushMessagesRequest(
                        node=node,
                        messages_list=[message_to_proto(remove_content_from_message(reply))],
                        message_object_trees=[tree],
                    )
                )
                for name in dict.fromkeys(response.objects_to_push):
                    if name not in contents:
                        raise ConsiliumError(errors.LINK_MALFORMED, "the server asks for what is no part of the reply")
                    client.PushObject(
                        PushObjectRequest(
                            node=node,
                            run_id=run,
                            session_id=response.session_id,
                            object_id=name,
                            object_content=contents[name],
                        )
                    )


class _Bounded(httpx.HTTPTransport):
    """Reads no response that is longer than any that the protocol has, or that would be once it is unpacked."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        stream = response.stream
        assert isinstance(stream, httpx.SyncByteStream)
        if "content-encoding" in response.headers:
            stream.close()
            raise ConsiliumError(errors.LINK_MALFORMED, "a response is compressed")
        response.stream = _Counted(stream)
        return response


class _Counted(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        for chunk in self._stream:
            total += len(chunk)
            if total > _MAX_RESPONSE:
                raise ConsiliumError(errors.LINK_MALFORMED, "a response is too long")
            yield chunk

    def close(self) -> None:
        self._stream.close()


_FAILURES = (httpx.HTTPError, httpx.InvalidURL, ConsiliumError, ValueError, OSError)


def _coded(error: BaseException) -> ConsiliumError:
    if isinstance(error, ConsiliumError):
        return error
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status == httpx.codes.CONFLICT:
            return ConsiliumError(errors.LINK_TAKEN, "")
        # Flower answers 4xx where it does not know a key, or finds its signed time too far from its own.
        return ConsiliumError(errors.LINK_REFUSED if 400 <= status < 500 else errors.LINK_DOWN, f"status {status}")
    if isinstance(error, httpx.ConnectError) and "certificate" in str(error).lower():
        return ConsiliumError(errors.LINK_TLS, str(error))
    return ConsiliumError(errors.LINK_DOWN, type(error).__name__)
