"""The sites in the processes of a Ray cluster, several a process, for many cores, GPUs or machines.

The coordinator stays here. What travels between it and a site are the sealed envelopes of a deployment, as bytes; the
sites are the same ClientApps. Without ``RAY_ADDRESS`` a cluster is started on this machine: it listens on the loopback
interface only, has no dashboard, sends no statistics of use, and ends with the study.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import torch
from flwr.app import Error, Message

from client.evaluation import Judged
from client.site import SiteLog
from client.training.features import Features
from common import errors
from common.adapters import AdaptedModel, Vector
from common.agreement import Agreement
from common.errors import ConsiliumError
from common.identity import Identity, SiteId
from common.link.inprocess import InProcessGrid
from common.link.records import from_records, to_records
from common.messages import Sealed
from simulations.engines import EntropySource, node_of
from simulations.hosting import LocalSites, Part

if TYPE_CHECKING:
    from ray import ObjectRef

Result = TypeVar("Result")
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Posted:
    """A message as it travels between processes.

    sealed   what was said; None for an error
    failure  code and reason of a Flower error
    """

    node: int
    stage: str
    group: str
    sealed: Sealed | None
    failure: tuple[int, str] = (0, "")


@dataclass(frozen=True, slots=True)
class Packed:
    """A :class:`simulations.hosting.Part` whose key can be sent to a process of the same simulation."""

    site: SiteId
    number: int
    private: bytes
    training: Features
    testing: Features
    pretraining: Features | None

    @classmethod
    def of(cls, part: Part) -> Packed:
        """Pack a part."""
        return cls(part.site, part.number, part.identity.private_bytes(), part.training, part.testing, part.pretraining)

    def part(self) -> Part:
        """Return the part."""
        return Part(
            self.site,
            self.number,
            Identity.from_private_bytes(self.private),
            self.training,
            self.testing,
            self.pretraining,
        )


class Host:
    """Several sites in one process of the cluster."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._sites: LocalSites | None = None

    def open(self, agreement: Agreement, model: AdaptedModel, parts: Sequence[Packed], seed: int | None) -> None:
        """Make the sites; raises what is wrong with them."""
        self._sites = LocalSites(agreement, model, tuple(part.part() for part in parts), EntropySource(seed))

    def answer(self, posted: Sequence[Posted]) -> tuple[list[Posted], float]:
        """Answer messages for these sites, in order; returns the replies and the seconds that it took."""
        start = time.perf_counter()
        replies = []
        for each in posted:
            assert each.sealed is not None
            message = Message(to_records(each.sealed), each.node, each.stage, group_id=each.group)
            (reply,) = self._opened().grid.send_and_receive([message])
            if reply.has_error():
                failure = (reply.error.code, reply.error.reason or "")
                replies.append(replace(each, sealed=None, failure=failure))
            else:
                replies.append(replace(each, sealed=from_records(reply.content)))
        return replies, time.perf_counter() - start

    def logs(self) -> Mapping[SiteId, SiteLog]:
        """Return what each site keeps for itself."""
        return self._opened().logs()

    def judge(self, vector: Vector) -> Mapping[SiteId, Judged]:
        """Return what a vector makes of each site's own test records."""
        return self._opened().judge(vector)

    def _opened(self) -> LocalSites:
        assert self._sites is not None
        return self._sites


class RayGrid(InProcessGrid):
    """A grid whose nodes live in the cluster's processes.

    ask         answers messages for some nodes, and says how long that took
    lost, tap   as in :class:`InProcessGrid`
    """

    def __init__(
        self,
        nodes: Iterable[int],
        ask: Callable[[Sequence[Posted]], tuple[list[Posted], float]],
        *,
        lost: Callable[[Message], bool],
        tap: Callable[[Message], None],
    ) -> None:
        super().__init__({}, lost=lost, tap=tap)
        self._nodes, self._ask = sorted(nodes), ask
        self._arrived: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return every node, in ascending order."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send all messages, wait for their replies and keep them; returns the messages' identifiers."""
        start = time.perf_counter()
        named = {uuid.uuid4().hex: message for message in messages}
        sent = {name: message for name, message in named.items() if not self._lost(message)}
        replies, busy = self._ask([_posted(message) for message in sent.values()])
        for (name, message), reply in zip(sent.items(), replies, strict=True):
            self._arrived[name] = _reply(message, reply)
            self._tap(self._arrived[name])
        self.seconds += time.perf_counter() - start - busy
        return list(named)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the replies that have come, once."""
        return [self._arrived.pop(name) for name in message_ids if name in self._arrived]


class RaySites:
    """A study's sites in a Ray cluster: as many processes as it has GPUs where the model is on one, else cores.

    Raises CSL-521 where Ray is not installed, CSL-522 where it cannot start, and what is wrong with a site.
    """

    def __init__(
        self,
        agreement: Agreement,
        model: AdaptedModel,
        parts: tuple[Part, ...],
        entropy: EntropySource,
        *,
        lost: Callable[[Message], bool] = lambda _: False,
        tap: Callable[[Message], None] = lambda _: None,
    ) -> None:
        self._ray = started()
        try:
            resource = "GPU" if model.device.type == "cuda" else "CPU"
            there = max(1, int(self._ray.cluster_resources().get(resource, 1)))
            processes = min(there, len(parts))
            remote = self._ray.remote(**{"num_gpus" if resource == "GPU" else "num_cpus": 1})(Host)
            self._hosts = [remote.remote(torch.get_num_threads()) for _ in range(processes)]
            self._host_of = {node_of(part.number): part.number % processes for part in parts}
            shared = self._ray.put(model)
            shares = [
                [Packed.of(part) for part in parts if part.number % processes == place] for place in range(processes)
            ]
            self._all(
                [
                    host.open.remote(agreement, shared, share, entropy.seed)
                    for host, share in zip(self._hosts, shares, strict=True)
                ]
            )
        except BaseException:
            self.close()
            raise
        self.grid = RayGrid(self._host_of, self._ask, lost=lost, tap=tap)

    def logs(self) -> Mapping[SiteId, SiteLog]:
        """Return what each site keeps for itself."""
        return {
            name: log for logs in self._all([host.logs.remote() for host in self._hosts]) for name, log in logs.items()
        }

    def judge(self, vector: Vector) -> Mapping[SiteId, Judged]:
        """Return what a vector makes of each site's own test records."""
        found = self._all([host.judge.remote(vector) for host in self._hosts])
        return {name: labels for each in found for name, labels in each.items()}

    def seconds(self, name: str) -> float:
        """Return the seconds that all sites together spent on one thing."""
        return sum(log.watch.seconds(name) for log in self.logs().values())

    def close(self) -> None:
        """End the cluster, or leave the one that was there."""
        self._ray.shutdown()

    def _ask(self, posted: Sequence[Posted]) -> tuple[list[Posted], float]:
        shares: dict[int, list[int]] = {}
        for place, each in enumerate(posted):
            shares.setdefault(self._host_of[each.node], []).append(place)
        found = self._all(
            [self._hosts[host].answer.remote([posted[place] for place in share]) for host, share in shares.items()]
        )
        replies = dict[int, Posted]()
        for share, (answers, _) in zip(shares.values(), found, strict=True):
            replies.update(zip(share, answers, strict=True))
        return [replies[place] for place in range(len(posted))], max((busy for _, busy in found), default=0.0)

    def _all(self, pending: Sequence[ObjectRef[Result]]) -> list[Result]:
        """Return every result; raises a site's coded error as it was, CSL-522 for whatever else happened there."""
        try:
            return list(self._ray.get(list(pending)))
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, ConsiliumError) else _failed(cause or error)) from error
        except self._ray.exceptions.RayError as error:
            raise _failed(error) from error


def started() -> ModuleType:
    """Return Ray, connected to the cluster of ``RAY_ADDRESS`` or to one that is started here.

    Raises CSL-521 where it is not installed, CSL-522 where it cannot start.
    """
    here = not os.environ.get("RAY_ADDRESS")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if here:
        # Ray's one way to its loopback mode, read as it is imported; a node address of 127.0.0.1 it would replace.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConsiliumError(errors.ENGINE_MISSING, "ray") from error
    try:
        if here:
            # "local": without it Ray would join any cluster of which it finds traces on this machine.
            ray.init(
                address="local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
                num_cpus=os.cpu_count(),
            )
        else:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise _failed(error) from error
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    if here and {node["NodeManagerAddress"] for node in nodes} != {_LOOPBACK}:
        ray.shutdown()
        raise ConsiliumError(errors.ENGINE_FAILED, "Ray would listen beyond this machine: it was imported too early")
    return ray


def _posted(message: Message) -> Posted:
    metadata = message.metadata
    return Posted(metadata.dst_node_id, metadata.message_type, metadata.group_id, from_records(message.content))


def _reply(request: Message, posted: Posted) -> Message:
    if posted.sealed is None:
        return Message(Error(*posted.failure), reply_to=request)
    return Message(to_records(posted.sealed), reply_to=request)


def _failed(error: BaseException) -> ConsiliumError:
    return ConsiliumError(
        errors.ENGINE_FAILED, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    )
