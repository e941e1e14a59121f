"""How every `site.toml` of the tests begins: who, whose operator, where to, and which keys."""

from __future__ import annotations


def opening(site: str, operator: str, keys_opened_by: str = "fd:0") -> str:
    """Return the lines before the data; paths are below the file's own folder."""
    return f"""
site = "{site}"
operator = "{operator}"
state = "state"
studies = "studies"
[link]
server = "server:443"
[keys]
identity = "identity.pem"
node = "node.pem"
passphrase = "{keys_opened_by}"
"""
