"""What a site holds for one sum: its own secrets, what peers entrusted to it, and the leave to mask one update."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.identity import SiteId
from common.secagg.channels import KeyPair
from common.secagg.encoding import Encoding


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to mask one update: everything about the sum was checked.

    instance  number of the sum
    cohort    its sites, sorted
    context   32 bytes that key every mask of this sum
    """

    instance: int
    cohort: tuple[SiteId, ...]
    context: bytes


@dataclass(slots=True, repr=False)
class Instance:
    """One instance's secrets: own keys, and what peers entrusted. Dropped as soon as the instance is over."""

    number: int
    seed: bytes
    mask: KeyPair
    own_shares: tuple[bytes, bytes] = (b"", b"")
    root: bytes = b""
    peer_keys: dict[int, bytes] = field(default_factory=dict)
    peer_shares: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    roots: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)


@dataclass(slots=True, repr=False)
class Opened:
    """The sum that is being taken: its ticket, how it is encoded, and the view that was signed, if any.

    name  under which its reply is journalled
    """

    ticket: Ticket
    encoding: Encoding
    cohort: tuple[int, ...]
    name: bytes
    view: bytes | None = None
