"""A Flower grid whose nodes live in this process: the same apps as in deployment, no sockets and no Ray.

Every message is deep-copied on its way, so that neither side can hold the other's memory, and gets the identifier
that a SuperLink would give it. Each node has its own Flower context.
"""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

OPERATOR_NODE = 1
RUN = 1


class InProcessGrid(Grid):
    """Delivers messages to ClientApps by calling them.

    apps    each node's identifier and its app
    lost    asked for each message; a message for which it returns True is never answered (tests of lost sites)
    tap     shown each reply as the operator receives it (tests of what an operator can see)
    """

    def __init__(
        self,
        apps: Mapping[int, Callable[[Message, Context], Message]],
        *,
        lost: Callable[[Message], bool] = lambda _: False,
        tap: Callable[[Message], None] = lambda _: None,
    ) -> None:
        self._apps = dict(apps)
        self._contexts = {
            node: Context(run_id=RUN, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in apps
        }
        self._lost, self._tap = lost, tap
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(RUN)
        self.seconds = 0.0
        # flwr 1.41 reads these from the process when a message is made: one run at a time in a process.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = RUN, RUN, OPERATOR_NODE

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
        """Return every node, in ascending order."""
        return sorted(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message and keep its reply; returns their identifiers."""
        return [self.deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the replies that have come, once."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and return the replies; the timeout has no meaning where nobody waits."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def deliver(self, message: Message) -> str:
        """Deliver one message and keep its reply; returns its identifier."""
        name = uuid.uuid4().hex
        if self._lost(message):
            return name
        start = time.perf_counter()
        request = _named_copy(message, name)
        self.seconds += time.perf_counter() - start
        reply = self._apps[message.metadata.dst_node_id](request, self._contexts[message.metadata.dst_node_id])
        start = time.perf_counter()
        self._replies[name] = copy.deepcopy(reply)
        self.seconds += time.perf_counter() - start
        self._tap(reply)
        return name


def _named_copy(message: Message, name: str) -> Message:
    copied = copy.deepcopy(message)
    # A SuperLink sets the identifier when a message is pushed; flwr 1.41 has no public setter for it.
    copied.metadata.__dict__["_message_id"] = name
    return copied
