"""What both consoles are made of: pages that only who started them can ask for, and that ask nobody for anything.

A console is a process of its own on a loopback address that reads and never writes. Three things keep others out: the
address itself; the Host header, against names that a stranger's DNS points here; and a key drawn at each start, which
the printed address carries and a cookie keeps, against the other users of this machine. There is no script and no form.
"""

from __future__ import annotations

import ipaddress
import secrets
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from jinja2 import Environment
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import errors
from common.errors import ConsiliumError
from common.pages import SHARED, environment, moment

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer carries."""
_STYLE = "/console.css"
_HEAD_BYTES = 16 << 10
_CONNECTIONS = 32
_IDLE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a console.

    path      as Starlette writes it
    template  which is shown with what ``read`` returns for the path's parameters
    heading   in the list of pages; empty for one that is not in it
    """

    path: str
    template: str
    read: Callable[[Mapping[str, str]], Mapping[str, object]]
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Door:
    """Who may ask: whoever names the address as it is, and has the key.

    host, port  of the loopback address
    """

    host: str
    port: int
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def address(self) -> str:
        """The address as it stands in a browser."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def names(self) -> frozenset[str]:
        """What the Host header may say."""
        full = frozenset({self.address, f"localhost:{self.port}"})
        # A browser leaves port 80 out.
        return full | {name.removesuffix(":80") for name in full}

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies do not tell ports apart, and two consoles may be open."""
        return f"consilium-{self.port}"


class Missing(Exception):  # noqa: N818  it is no error: somebody asked for what is not there
    """There is no such page."""


def console(
    name: str,
    owner: str,
    pages: Sequence[Page],
    templates: Path,
    door: Door,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ASGIApp:
    """Return a console.

    name       in the title of every page
    owner      whose it is, beside the name
    templates  folder of the pages' templates; each extends ``console.html.j2``
    clock      for the time of which a page is
    """
    drawn = environment(templates, SHARED)
    listed = [page for page in pages if page.heading]
    drawn.globals.update(console=name, owner=owner, pages=listed, style=_STYLE, now=lambda: moment(clock()))
    style = (_HERE / "static" / "console.css").read_bytes()

    def sheet(_request: Request) -> Response:
        return Response(style, media_type="text/css")

    routes = [Route(_STYLE, sheet), *(Route(page.path, _endpoint(drawn, page)) for page in pages)]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: lambda request, error: _absent(drawn, request, error),
            Missing: lambda request, error: _absent(drawn, request, error),
            ConsiliumError: lambda request, error: _faulty(drawn, request, error),
        },
    )
    return _Guarded(app, door)


def serve(make: Callable[[Door], ASGIApp], host: str, port: int, *, tell: Callable[[str], None]) -> None:
    """Serve a console until SIGTERM or SIGINT.

    make  makes the console for the door that the address has
    port  0 lets the system choose
    tell  is told the address to open, which holds the key, once it can be opened

    Raises CSL-650 for an address that is not loopback, CSL-644 where it cannot be listened on.
    """
    sock = _bound(host, port)
    with sock:
        door = Door(host, int(sock.getsockname()[1]))
        config = uvicorn.Config(
            make(door),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=_HEAD_BYTES,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises once more what has ended it.
            signal.signal(number, lambda *_: None)
        tell(f"http://{door.address}/?key={door.key}")
        uvicorn.Server(config).run(sockets=[sock])


class _Guarded:
    """In front of every page: who may ask, how, and what a browser may do with the answer."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refused(Request(scope))
        await (self._app if refusal is None else refusal)(scope, receive, sent)

    def _refused(self, request: Request) -> Response | None:
        """Return the answer for whoever may not ask; None lets a request through."""
        if Headers(scope=request.scope).getlist("host") not in [[name] for name in self._door.names]:
            return PlainTextResponse("this console has another name", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("nothing can be changed here", 405, {"Allow": "GET, HEAD"})
        if _same(request.query_params.get("key", ""), self._door.key):
            # The key goes from the address bar into a cookie that only this console is sent.
            there = RedirectResponse(request.url.path, 303)
            there.set_cookie(self._door.cookie, self._door.key, httponly=True, samesite="strict", path="/")
            return there
        if not _same(request.cookies.get(self._door.cookie, ""), self._door.key):
            return PlainTextResponse("open the address that the command printed when it started", 403)
        return None


def _same(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode())


def _endpoint(drawn: Environment, page: Page) -> Callable[[Request], Response]:
    def show(request: Request) -> Response:
        read = page.read({name: str(value) for name, value in request.path_params.items()})
        return HTMLResponse(drawn.get_template(page.template).render(here=page.path, **read))

    return show


def _absent(drawn: Environment, request: Request, error: Exception) -> Response:
    del request
    status = error.status_code if isinstance(error, HTTPException) else 404
    return HTMLResponse(drawn.get_template("absent.html.j2").render(here=""), status)


def _faulty(drawn: Environment, request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ConsiliumError)
    return HTMLResponse(drawn.get_template("fault.html.j2").render(here="", error=error), 503)


def _bound(host: str, port: int) -> socket.socket:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name may lead elsewhere tomorrow.
        loopback = False
    if not loopback:
        raise ConsiliumError(errors.CONSOLE_EXPOSED, host)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConsiliumError(errors.LINK_LISTEN, f"{host}:{port}: {error}") from error
    return sock
