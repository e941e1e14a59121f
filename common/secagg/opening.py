"""Taking the masks off a sum: secrets from shares, masks from secrets, in parallel and without a vector per site."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from common import errors
from common.errors import ConsiliumError
from common.secagg import shamir
from common.secagg.channels import KeyPair
from common.secagg.epoch import Epoch
from common.secagg.graph import Graph
from common.secagg.masks import Lanes, Mask, add_masks, mask_key
from common.secagg.terms import Terms
from common.secagg.wire import MASK, SEED, SHARE_BYTES

_THREADS = os.cpu_count() or 1


def open_total(epoch: Epoch, graph: Graph, total: Lanes, terms: Terms) -> None:
    """Take every mask that is left off ``total``, in place; raises CSL-407 for a mask key that is not its owner's.

    A survivor leaves its own mask; a lost site leaves its pairwise masks with every survivor in its circle. Memory: one
    vector a thread.
    """
    jobs = list(_left_over(epoch, graph, terms))

    def run(share: Sequence[Mask]) -> Lanes:
        lanes = np.zeros_like(total)
        add_masks(lanes, share)
        return lanes

    threads = max(1, min(_THREADS, len(jobs)))
    with ThreadPoolExecutor(threads) as pool:
        for lanes in pool.map(run, [jobs[start::threads] for start in range(threads)]):
            total += lanes


def _left_over(epoch: Epoch, graph: Graph, terms: Terms) -> Iterator[Mask]:
    alive = set(epoch.survivors)
    for owner, secret in _secrets(epoch, graph).items():
        if owner in alive:
            yield mask_key(secret, SEED, epoch.context), True
            continue
        pair = KeyPair(secret)
        if pair.public != epoch.prepares[owner].prepare.key:
            raise ConsiliumError(errors.SECAGG_SHARE, f"the mask key of {terms.roster[owner]} is not its own")
        for peer in graph.peers(owner):
            if peer in alive:
                # The survivor added the mask if its index is below the lost site's, and subtracted it otherwise.
                yield mask_key(pair.agree(epoch.prepares[peer].prepare.key), MASK, epoch.context), peer < owner


def _secrets(epoch: Epoch, graph: Graph) -> dict[int, bytes]:
    """Return each member's secret of the kind that was revealed; owners with the same holders are opened together."""
    together: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for owner in epoch.members:
        found = [(holder, place) for place, holder in enumerate(graph.circle(owner)) if holder in epoch.revealed]
        holders, places = zip(*found[: graph.threshold], strict=True)
        together.setdefault((holders, places), []).append(owner)
    secrets: dict[int, bytes] = {}
    for (holders, places), owners in together.items():
        shares = [b"".join(epoch.revealed[holder][owner] for owner in owners) for holder in holders]
        joined = shamir.combine(places, shares)
        for at, owner in enumerate(owners):
            secrets[owner] = joined[at * SHARE_BYTES : (at + 1) * SHARE_BYTES]
    return secrets
