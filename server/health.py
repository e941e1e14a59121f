"""Health, metrics and the status board over plain HTTP on a loopback address, apart from the sites' listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from server.board import Board, Standing
from server.guard import Call


@dataclass(slots=True)
class Metrics:
    """What is counted, in a registry of its own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests: Counter = field(init=False)
    received: Counter = field(init=False)
    sent: Counter = field(init=False)
    seconds: Histogram = field(init=False)
    rounds: Counter = field(init=False)
    sites: Gauge = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Counter(
            "consilium_requests", "Requests by call and status", ("call", "status"), registry=self.registry
        )
        self.received = Counter("consilium_received_bytes", "Bytes of bodies received", registry=self.registry)
        self.sent = Counter("consilium_sent_bytes", "Bytes of bodies sent", registry=self.registry)
        self.seconds = Histogram("consilium_request_seconds", "Seconds a request took", registry=self.registry)
        self.rounds = Counter("consilium_rounds", "Rounds done by this process", registry=self.registry)
        self.sites = Gauge("consilium_sites", "Sites by standing", ("standing",), registry=self.registry)

    def call(self, call: Call) -> None:
        """Count a request; paths that are not ours are one."""
        name = call.path.rpartition("/")[2] if call.path.startswith("/v1/fleet/") and call.status != 404 else "other"
        self.requests.labels(name, str(call.status)).inc()
        self.received.inc(call.received)
        self.sent.inc(call.sent)
        self.seconds.observe(call.seconds)


def health_app(metrics: Metrics, board: Board, status: Callable[[], Mapping[str, object]]) -> ASGIApp:
    """Return the app: /healthz, /metrics for Prometheus, /status as JSON."""

    def healthz(_request: Request) -> Response:
        return JSONResponse({"healthy": True})

    def prometheus(_request: Request) -> Response:
        standings = [stood.standing for stood in board.sites().values()]
        for standing in Standing:
            metrics.sites.labels(standing.value).set(standings.count(standing))
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def shown(_request: Request) -> Response:
        sites = {
            site: {"standing": stood.standing.value, "since": stood.since.isoformat(timespec="seconds")}
            for site, stood in board.sites().items()
        }
        return JSONResponse({**status(), "sites": sites})

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", prometheus), Route("/status", shown)])
