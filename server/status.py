"""What the running server says of itself on its health address: which study runs, and where each site stands."""

from __future__ import annotations

from datetime import datetime

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from common.parts import Hex32, Name
from server.board import Standing
from server.listener import Address

_SECONDS = 2.0


class _Said(BaseModel):
    """Base of what is read: frozen; what a later server says besides is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stood(_Said):
    """A site's standing, and since when."""

    standing: Standing
    since: datetime


class Status(_Said):
    """The server as it is now.

    study  that runs; None between studies
    sites  of that study, or of the one before
    """

    study: Hex32 | None
    admitted: tuple[Name, ...]
    sites: dict[Name, Stood]


def ask(address: Address | None) -> Status | None:
    """Ask a server; None where there is no address to ask at, or nothing answers there as a server would."""
    if address is None:
        return None
    host = f"[{address.host}]" if ":" in address.host else address.host
    try:
        # Never through a proxy, which the environment may name: the address is this machine's own.
        with httpx.Client(trust_env=False, timeout=_SECONDS) as client:
            answer = client.get(f"http://{host}:{address.port}/status").raise_for_status()
        return Status.model_validate_json(answer.content)
    except (httpx.HTTPError, ValidationError):
        return None
