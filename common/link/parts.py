"""What a Flower message consists of, as its own bytes say it: every object names its children by their SHA-256.

Flower also sends the tree of a message beside it. Whoever reads only what the hashes vouch for need not believe a tree,
and another node that registers an object under false children leads nobody astray.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.supercore.inflatable.inflatable_object import get_object_children_ids_from_object_content, get_object_id

from common import errors
from common.errors import ConsiliumError

MAX_PARTS = 4096
MAX_MESSAGE = 1 << 31


def parts_of(root: str, content_of: Callable[[str], bytes]) -> dict[str, bytes]:
    """Return the contents of an object and of all below it, by the hash that names each.

    content_of  returns what is said to be the content under a name; what it raises is raised
    Raises CSL-645 for content that its name does not vouch for, and for more of it than any message has.
    """
    contents: dict[str, bytes] = {}
    wanted, total = [root], 0
    while wanted:
        name = wanted.pop()
        if name in contents:
            continue
        if len(contents) == MAX_PARTS:
            raise ConsiliumError(errors.LINK_MALFORMED, f"more than {MAX_PARTS} parts")
        content = content_of(name)
        if get_object_id(content) != name:
            raise ConsiliumError(errors.LINK_MALFORMED, "a part is another")
        total += len(content)
        if total > MAX_MESSAGE:
            raise ConsiliumError(errors.LINK_MALFORMED, "the message is too large")
        contents[name] = content
        wanted += _children(content)
    return contents


def _children(content: bytes) -> list[str]:
    try:
        children = get_object_children_ids_from_object_content(content)
    except ValueError as error:
        raise ConsiliumError(errors.LINK_MALFORMED, "a part has no head") from error
    if len(children) > MAX_PARTS:
        raise ConsiliumError(errors.LINK_MALFORMED, f"more than {MAX_PARTS} parts")
    return children
