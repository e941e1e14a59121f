"""The one version of flwr whose inner modules this package knows."""

from __future__ import annotations

from importlib.metadata import version

from common import errors
from common.errors import ConsiliumError

KNOWN = "1.41."


def check_flwr() -> None:
    """Raise CSL-640 for another flwr than the one whose inner modules are known here."""
    found = version("flwr")
    if not found.startswith(KNOWN):
        raise ConsiliumError(errors.LINK_FLWR, f"flwr {found} is installed, {KNOWN}* is known")
