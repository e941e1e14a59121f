"""Signed requests out, verified replies in: what a coordinator says to its sites and hears from them.

Who a reply is from is what its signature says. What does not verify is no reply, and nobody learns which it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from common import errors
from common.errors import ConsiliumError
from common.identity import Identity, PublicKey, SiteId
from common.link.records import from_records, to_records
from common.messages import ANYONE, OPERATOR, Envelope, Stage, peek_sender, seal, unseal
from common.parts import Digest
from common.payloads import LEDGER_BYTES, LEDGER_PART
from common.study import Study
from server.witnesses import Witnesses


@dataclass(slots=True)
class Traffic:
    """Bytes of sealed envelopes since the study began. Counted from several threads."""

    up: int = 0
    down: int = 0
    messages: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, *, up: int = 0, down: int = 0) -> None:
        """Count one message."""
        with self._lock:
            self.up, self.down, self.messages = self.up + up, self.down + down, self.messages + 1


class Correspondence:
    """The operator's letters in one study.

    witnesses   what each site showed of its ledger, over all processes and studies of this operator (RULES 18)
    """

    def __init__(self, study: Study, digest: Digest, operator: Identity, witnesses: Witnesses) -> None:
        self._digest, self._operator, self._witnesses = digest, operator, witnesses
        self.keys = {member.site_id: member.public_key for member in study.roster}
        """The key of each site in the roster."""
        self.traffic = Traffic()

    def envelope(
        self, stage: Stage, recipient: str, instance: int, attempt: int, parts: Mapping[str, bytes]
    ) -> Envelope:
        """Return a request; as an epoch opens, with where the site's ledger last ended, for it to check."""
        known = None
        if stage is Stage.KEYS:
            known = self._witnesses.of(self.keys[SiteId(recipient)])
        whole = parts if known is None else {**parts, LEDGER_PART: known}
        return Envelope(self._digest, stage, instance, attempt, OPERATOR, recipient, whole)

    def send(self, grid: Grid, requests: Mapping[int, Envelope], timeout: float | None) -> dict[int, Envelope]:
        """Send requests, by node, and return the verified replies that came in time, by node."""
        if not requests:
            return {}
        replies: dict[int, Envelope] = {}
        messages = (self._message(node, request) for node, request in requests.items())
        for message in grid.send_and_receive(messages, timeout=timeout):
            if message.has_error():
                continue
            node = message.metadata.src_node_id
            if node not in requests or node in replies:
                continue
            try:
                replies[node] = self._verified(message, requests[node])
            except ConsiliumError:
                # Forged, misbound or unreadable: the same as silence, and nobody learns which.
                continue
        self._keep_witnesses(replies.values())
        return replies

    def _key_of(self, sender: str) -> PublicKey:
        """Return a site's key; raises CSL-122 for a stranger."""
        try:
            return self.keys[SiteId(sender)]
        except KeyError as error:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, sender) from error

    def _message(self, node: int, request: Envelope) -> Message:
        """Sign a request; made one by one as they are sent, since those of many sites do not fit the memory at once."""
        sealed = seal(request, self._operator)
        self.traffic.count(down=sealed.size)
        return Message(to_records(sealed), node, request.stage.value, group_id=str(request.instance))

    def _verified(self, message: Message, request: Envelope) -> Envelope:
        sealed = from_records(message.content)
        self.traffic.count(up=sealed.size)
        sender = peek_sender(sealed) if request.recipient == ANYONE else request.recipient
        reply = unseal(
            sealed,
            self._key_of(sender),
            study=self._digest,
            stage=request.stage,
            sender=sender,
            recipient=OPERATOR,
        )
        if (reply.instance, reply.attempt) != (request.instance, request.attempt):
            raise ConsiliumError(errors.MESSAGE_MISBOUND, "another instance")
        return reply

    def _keep_witnesses(self, replies: Iterable[Envelope]) -> None:
        """Keep where verified replies say that ledgers end; durable before anything is done with the replies.

        Who answers first after a start has shown nothing yet: what it showed before must not be overwritten by it.
        """
        shown = {
            self.keys[SiteId(reply.sender)]: head
            for reply in replies
            if reply.stage not in (Stage.IDENTIFY, Stage.BACKBONE, Stage.OFFER, Stage.AGREED)
            and len(head := reply.parts.get(LEDGER_PART, b"")) == LEDGER_BYTES
        }
        if shown:
            self._witnesses.keep(shown)
