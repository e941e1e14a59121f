"""A server's epoch as bytes and back, so that a server that was killed between two messages goes on (RULES 5).

In the binary form of the protocol's own messages: versioned, bounded, one reading only. What can be computed again is
not stored: the epoch's graph and the trees over prepares. Bytes that do not fit the study are CSL-401.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg.encoding import Encoding
from common.secagg.epoch import Epoch, Shared, Sum
from common.secagg.graph import Graph
from common.secagg.terms import Terms
from common.secagg.transitions import Phase
from common.secagg.wire import (
    DIGEST_BYTES,
    INDEX_BYTES,
    MAX_VECTOR_BYTES,
    NONCE_BYTES,
    SHARE_BYTES,
    SIGNATURE_BYTES,
    Hello,
    Kind,
    Prepare,
    Reader,
    Writer,
)

_PHASES = tuple(Phase)
_MAX_RESULT_BYTES = 4 * MAX_VECTOR_BYTES - 1


def dump_epoch(terms: Terms, epoch: Epoch) -> bytes:
    """Return an epoch as bytes."""
    writer = Writer(Kind.EPOCH).fixed(terms.study).number(_PHASES.index(epoch.phase), 1)
    writer.blob(epoch.nonce).indices(epoch.members).blob(epoch.session).number(epoch.instance, 8)
    writer.indices(sorted(epoch.hellos))
    for _, hello in sorted(epoch.hellos.items()):
        hello.write(writer)
    for prepares in (epoch.prepares, epoch.following):
        writer.indices(sorted(prepares))
        for _, shared in sorted(prepares.items()):
            shared.prepare.write(writer)
    for signatures in (epoch.acknowledgements, epoch.views):
        writer.indices(sorted(signatures))
        for _, signature in sorted(signatures.items()):
            writer.fixed(signature)
    writer.indices(sorted(epoch.answered)).blob(epoch.context).indices(epoch.survivors)
    writer.indices(sorted(epoch.revealed))
    for _, shares in sorted(epoch.revealed.items()):
        writer.indices(sorted(shares)).fixed(b"".join(share for _, share in sorted(shares.items())))
    writer.blob(b"" if epoch.encoding is None else epoch.encoding.digest())
    writer.blob(b"" if epoch.total is None else epoch.total.tobytes())
    _write_result(writer, terms, epoch.result)
    return writer.done()


def load_epoch(terms: Terms, stored: bytes, encodings: Collection[Encoding]) -> Epoch:
    """Return the epoch that :func:`dump_epoch` wrote; raises CSL-401."""
    below, epoch = len(terms.roster), Epoch()
    with Reader(stored, Kind.EPOCH) as reader:
        if reader.fixed(DIGEST_BYTES) != terms.study:
            raise ConsiliumError(errors.SECAGG_MALFORMED, "an epoch of another study")
        phase = reader.number(1)
        if phase >= len(_PHASES):
            raise ConsiliumError(errors.SECAGG_MALFORMED, "no such phase")
        epoch.phase = _PHASES[phase]
        epoch.nonce, epoch.members = reader.blob(NONCE_BYTES), reader.indices(below)
        epoch.session, epoch.instance = reader.blob(DIGEST_BYTES), reader.number(8)
        if epoch.session:
            epoch.graph = Graph.of(terms, epoch.session, epoch.members)
        epoch.hellos = {index: Hello.read(reader) for index in reader.indices(below)}
        epoch.prepares, epoch.following = _read_prepares(reader, below, epoch), _read_prepares(reader, below, epoch)
        epoch.acknowledgements, epoch.views = _read_signatures(reader, below), _read_signatures(reader, below)
        epoch.answered = set(reader.indices(below))
        epoch.context, epoch.survivors = reader.blob(DIGEST_BYTES), reader.indices(below)
        for index in reader.indices(below):
            owners = reader.indices(below)
            epoch.revealed[index] = {owner: reader.fixed(SHARE_BYTES) for owner in owners}
        digest, total = reader.blob(DIGEST_BYTES), reader.blob(MAX_VECTOR_BYTES)
        if digest:
            cohort = [terms.roster[index] for index in epoch.members]
            epoch.encoding = _encoding(terms, digest, cohort, encodings)
            epoch.total = epoch.encoding.empty()
            if len(total) != epoch.total.nbytes:
                raise ConsiliumError(errors.SECAGG_MALFORMED, "the sum has another length")
            epoch.total[:] = np.frombuffer(total, dtype=epoch.total.dtype)
        epoch.result = _read_result(reader, terms)
    return epoch


def _read_prepares(reader: Reader, below: int, epoch: Epoch) -> dict[int, Shared]:
    found: dict[int, Shared] = {}
    for index in reader.indices(below):
        if epoch.graph is None or index not in epoch.members:
            raise ConsiliumError(errors.SECAGG_MALFORMED, "a prepare of nobody in the epoch")
        prepare, holders = Prepare.read(reader), epoch.graph.circle(index)
        if len(prepare.sealed) != len(holders):
            raise ConsiliumError(errors.SECAGG_MALFORMED, "a prepare for another cohort")
        found[index] = Shared.of(prepare, holders)
    return found


def _read_signatures(reader: Reader, below: int) -> dict[int, bytes]:
    return {index: reader.fixed(SIGNATURE_BYTES) for index in reader.indices(below)}


def _encoding(terms: Terms, digest: bytes, cohort: list[SiteId], encodings: Collection[Encoding]) -> Encoding:
    for whole in encodings:
        encoding = whole.among(cohort, terms.contributors_needed, terms.max_share)
        if encoding.digest() == digest:
            return encoding
    raise ConsiliumError(errors.SECAGG_MALFORMED, "an encoding that is not the study's")


def _write_result(writer: Writer, terms: Terms, result: Sum | None) -> None:
    if result is None:
        writer.number(0, INDEX_BYTES)
        return
    writer.indices([terms.index(site) for site in result.survivors]).number(result.instance, 8)
    writer.fixed(result.values.dtype.kind.encode()).blob(result.values.tobytes())


def _read_result(reader: Reader, terms: Terms) -> Sum | None:
    survivors = reader.indices(len(terms.roster))
    if not survivors:
        return None
    instance, kind, raw = reader.number(8), reader.fixed(1), reader.blob(_MAX_RESULT_BYTES)
    if kind not in (b"f", b"i") or len(raw) % 8:
        raise ConsiliumError(errors.SECAGG_MALFORMED, "no result of a known kind")
    values: NDArray[np.float64] | NDArray[np.int64]
    values = np.frombuffer(raw, np.float64).copy() if kind == b"f" else np.frombuffer(raw, np.int64).copy()
    return Sum(values, tuple(terms.roster[index] for index in survivors), instance)
