"""Ranks of their own at some sites, under one secure sum: where the columns of B lie in the vector, and whose they are.

All sites share the frozen A, so that the first columns of B mean the same everywhere [as in HetLoRA, Cho et al. 2024,
arXiv 2401.06432]. The vector holds first what all sites train, then the columns that fewer do, rank by rank: each such
part is a block of :class:`common.study.Aggregation`, whose mean is over those who contribute to it (RULES 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.study import Block, Study
from common.transfer import AdapterSpec

Shapes = Mapping[str, torch.Size]
"""The shape of each trainable parameter, by its name, in the model's order."""


def order(spec: AdapterSpec, shapes: Shapes) -> NDArray[np.int64] | None:
    """Return, for each place of the vector, the place in the model's own order; None where they are the same."""
    return np.argsort(_tiers(spec, shapes), kind="stable") if spec.site_ranks and shapes else None


def blocks(spec: AdapterSpec, shapes: Shapes, sites: Sequence[str]) -> tuple[Block, ...]:
    """Return the blocks of the vector to which only some sites contribute, none where all train every rank.

    sites  all sites of the study
    """
    if not spec.site_ranks:
        return ()
    sizes = np.bincount(_tiers(spec, shapes))
    edges, levels = np.cumsum(sizes), _levels(spec)
    return tuple(
        Block(
            name=f"rank-{levels[tier - 1] + 1}-to-{levels[tier]}",
            start=int(edges[tier - 1]),
            stop=int(edges[tier]),
            sites=tuple(sorted(site for site in sites if spec.rank_at(site) >= levels[tier])),
        )
        for tier in range(1, len(levels))
    )


def check_blocks(study: Study, shapes: Shapes) -> None:
    """Raise CSL-310 for a study whose blocks are not those of its ranks: a sum would mix what differs (RULES 4)."""
    if blocks(study.adapter, shapes, [member.site for member in study.roster]) != study.aggregation.blocks:
        raise ConsiliumError(errors.ADAPTER_INVALID, "the study's blocks are not those of its ranks")


def places(spec: AdapterSpec, shapes: Shapes, rank: int) -> NDArray[np.int64]:
    """Return where in the study's vector each number of a truncated model's vector lies.

    spec, shapes  of the study's model
    rank          of the truncated one, whose vector is in its model's own order
    """
    positions = order(spec, shapes)
    where = np.empty(sum(shape.numel() for shape in shapes.values()), dtype=np.int64)
    where[positions if positions is not None else slice(None)] = np.arange(len(where))
    kept, offset = [], 0
    for name, shape in shapes.items():
        own = where[offset : offset + shape.numel()].reshape(shape)
        kept.append((own[:, :rank] if ".lora_B." in name else own).reshape(-1))
        offset += shape.numel()
    return np.concatenate(kept)


def _levels(spec: AdapterSpec) -> list[int]:
    return sorted({spec.rank, *spec.site_ranks.values()})


def _tiers(spec: AdapterSpec, shapes: Shapes) -> NDArray[np.int64]:
    """Return for each number, in the model's own order, how many of the study's ranks do not reach it."""
    levels = np.array(_levels(spec))
    found = []
    for name, shape in shapes.items():
        tiers = np.zeros(shape, dtype=np.int64)
        if ".lora_B." in name:
            column = np.searchsorted(levels, np.arange(shape[1]), side="right")
            tiers += column.reshape((1, -1) + (1,) * (len(shape) - 2))
        found.append(tiers.reshape(-1))
    return np.concatenate(found)
