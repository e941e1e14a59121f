"""The operator's post office: Flower's link state in memory, the nodes that may connect, and a grid for one run.

Nothing here is durable, on purpose: the operator's journal knows which stage it is at, and a site answers a request
that it has seen before with the very same bytes. So a message that was lost on its way, or with this process, is only
asked again: whenever a node connects anew, everything that it has not answered is put before it once more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SubStatus
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStore, ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

from common.errors import ConsiliumError
from common.link.inprocess import OPERATOR_NODE
from common.link.parts import parts_of
from common.link.pinned import check_flwr

_HEARTBEAT_SECONDS = 10.0
_LOOK_SECONDS = 0.25
"""How long to wait for news at most before looking again: whether a node went offline is told by nobody."""
_ALIVE_SECONDS = 24 * 3600.0


class Relay:
    """Nodes, their messages and who waits for one. Raises CSL-640 for another flwr than is known here."""

    def __init__(self) -> None:
        check_flwr()
        self.factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        )
        state = self.factory.state()
        assert isinstance(state, InMemoryLinkState)
        self.state = state
        self._news, self._told = threading.Condition(), 0
        self._mail: Callable[[int | None], None] = lambda _node: None
        self.closed = False

    def close(self) -> None:
        """Keep nobody waiting any longer."""
        self.closed = True
        self._mail(None)
        self.news()

    def admit(self, public_key: bytes, name: str) -> int:
        """Let the holder of a node key connect; returns the number of its node. A key that is known keeps its node."""
        known = self.state.get_node_id_by_public_key(public_key)
        if known is not None:
            return known
        return self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, _HEARTBEAT_SECONDS, name=name)

    def dismiss(self, public_key: bytes) -> None:
        """Let the holder of a node key connect no longer."""
        known = self.state.get_node_id_by_public_key(public_key)
        if known is None:
            return
        state = self.state
        with state.lock:
            # Flower holds on to the key of a node that is deleted, and would never let it in again.
            state.delete_node(NOOP_FLWR_AID, known)
            del state.node_public_key_to_node_id[public_key]

    def connection(self, node: int) -> str | None:
        """Return what names a node's present connection; None while it has none. Another one has another name."""
        for info in self.state.get_node_info(node_ids=[node]):
            if info.status == NodeStatus.ONLINE:
                return info.last_activated_at or ""
        return None

    def has_mail(self, node: int) -> bool:
        """Return whether a message waits for a node."""
        with self.state.lock:
            return any(
                message.metadata.dst_node_id == node and message.metadata.delivered_at == ""
                for message in self.state.message_ins_store.values()
            )

    def on_mail(self, call: Callable[[int | None], None]) -> None:
        """Have a function called with each node that gets a message, and with None when all are to look."""
        self._mail = call

    def mail(self, node: int) -> None:
        """Say that a message waits for a node."""
        self._mail(node)

    def news(self) -> None:
        """Say that something came from a node."""
        with self._news:
            self._told += 1
            self._news.notify_all()

    def told(self) -> int:
        """Return how much news there was so far."""
        return self._told

    def wait(self, told: int, seconds: float) -> None:
        """Wait until there is more news than was told already, at most so long."""
        with self._news:
            self._news.wait_for(lambda: self._told != told, min(seconds, _LOOK_SECONDS))

    @contextlib.contextmanager
    def run(self) -> Iterator[FleetGrid]:
        """Begin a Flower run, one at a time in a process, and end it."""
        state = self.state
        run_id = state.create_run(
            "local/consilium", "1", None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        run = state.get_run_info(run_ids=[run_id])[0]
        task = run.primary_task_id
        assert task is not None
        state.claim_task(task)
        state.activate_task(task)
        # Flower ends a run whose task it has not heard of for a minute.
        heartbeat = HeartbeatSender(lambda: state.acknowledge_task_heartbeat(task))
        heartbeat.start()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task, run_id, OPERATOR_NODE
        try:
            yield FleetGrid(self, run)
        finally:
            heartbeat.stop()
            state.finish_task(task, SubStatus.COMPLETED, "")
            state.cleanup_run(run_id)


@dataclass(slots=True)
class _Asked:
    """A request that has no reply yet.

    message      as it was pushed last; None once its node went and did not come back in time
    connection   which connection of the node it was pushed to; None where there was none
    silent_since when the node was first seen without a connection, by the monotonic clock
    """

    node: int
    content: RecordDict
    kind: str
    group: str
    name: str
    connection: str | None
    silent_since: float | None = None


class FleetGrid(Grid):
    """A Flower grid over a :class:`Relay` in the same process.

    patience  seconds that a node without a connection is waited for

    Safe from several threads, each with messages of its own.
    """

    def __init__(self, relay: Relay, run: Run) -> None:
        super().__init__()
        self._relay, self._state, self._run = relay, relay.state, run
        self.patience = 30.0
        # Equal parts of two messages are one object of Flower's store, which counts references without a lock of ours.
        self._store = threading.Lock()
        self.asked_again = 0

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message; kept because the abstract class asks for it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return every node that is connected, in ascending order."""
        return sorted(self._state.get_nodes(self._run.run_id))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put messages before their nodes; returns their identifiers, empty for one that no node can get."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the replies that have come whole, once."""
        return [reply for name in message_ids if (reply := self._pull(name)) is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Ask, and return what was answered in time, each reply as from the node that was asked.

        A node that connects anew is asked anew. One without a connection is waited for as long as ``patience`` says.
        """
        end = time.monotonic() + (_ALIVE_SECONDS if timeout is None else timeout)
        open_: dict[str, _Asked] = {}
        for message in messages:
            metadata = message.metadata
            asked = _Asked(
                metadata.dst_node_id, message.content, metadata.message_type, metadata.group_id or "", "", None
            )
            self._ask(asked, message)
            open_[asked.name] = asked
        replies: list[Message] = []
        while open_:
            told = self._relay.told()
            for name in list(open_):
                reply = self._pull(name)
                if reply is not None:
                    # Who spoke is decided by whom we asked, and then by the signature: a node may claim anything.
                    reply.metadata.__dict__["_src_node_id"] = open_.pop(name).node
                    replies.append(reply)
            now = time.monotonic()
            for name, asked in list(open_.items()):
                if now >= end or self._is_gone(asked, now):
                    self._forget(name)
                    del open_[name]
                elif self._connected_anew(asked):
                    self._forget(name)
                    del open_[name]
                    self.asked_again += 1
                    self._ask(asked, Message(asked.content, asked.node, asked.kind, group_id=asked.group))
                    open_[asked.name] = asked
            if open_:
                self._relay.wait(told, max(0.0, end - now))
        return replies

    def _ask(self, asked: _Asked, message: Message) -> None:
        asked.connection, asked.silent_since = self._relay.connection(asked.node), None
        asked.name = self._push(message)

    def _connected_anew(self, asked: _Asked) -> bool:
        present = self._relay.connection(asked.node)
        return present is not None and present != asked.connection

    def _is_gone(self, asked: _Asked, now: float) -> bool:
        if self._relay.connection(asked.node) is not None:
            asked.silent_since = None
            return False
        if asked.silent_since is None:
            asked.silent_since = now
        return now - asked.silent_since > self.patience

    def _push(self, message: Message) -> str:
        state, run = self._state, self._run.run_id
        with self._store, no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            tree, objects = get_object_tree(message), get_all_nested_objects(message)
            session = state.start_session(run)
            stored, missing = state.store_message_and_object_tree(remove_content_from_message(message), tree, session)
            for name in missing if stored else ():
                state.store_object(run, session, name, objects[name].deflate())
        self._relay.mail(message.metadata.dst_node_id)
        return message.metadata.message_id

    def _pull(self, name: str) -> Message | None:
        """Return the reply to a message once all of it is here; None before, and for one that cannot be read."""
        state, store = self._state, self._state.object_store
        reply = state.message_ins_id_to_message_res_id.get(name)
        if reply is None:
            return None
        try:
            contents = parts_of(reply, lambda part: _there(store, part))
        except (_NotYetError, ConsiliumError):
            return None
        self._forget(name)
        try:
            message = inflate_object_from_contents(reply, contents)
        except Exception:  # a node can send anything: whatever cannot be read is no reply
            return None
        if not isinstance(message, Message):
            return None
        message.metadata.__dict__["_message_id"] = reply
        return message

    def _forget(self, name: str) -> None:
        """Drop a message, its reply and what both consist of: a late reply is refused, and nothing piles up."""
        with self._store:
            reply = self._state.message_ins_id_to_message_res_id.get(name)
            self._state.delete_messages({name})
            for root in (name, reply):
                if root is not None:
                    self._state.object_store.delete(root)


class _NotYetError(Exception):
    """A part has not come."""


def _there(store: ObjectStore, name: str) -> bytes:
    content = store.get(name)
    if not content:
        raise _NotYetError
    return content
