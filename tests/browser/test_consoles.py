"""Both consoles, as commands of their own, in a real browser: quiet, alone with this machine, good by keyboard."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import pytest

from server.board import Board, Standing
from server.health import Metrics, health_app
from server.listener import Address, listening
from tests.consortia import HOSTILE, SITES, History, history

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
IMAGES = "CONSILIUM_TEST_IMAGES"
"""Names a folder in which the pages of the documentation are photographed anew."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM} (Debian: apt-get install chromium)"),
]


@dataclass
class Opened:
    """One page of a browser on one console, with everything it asked for and complained about."""

    page: Page
    base: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        answer = self.page.goto(self.base + path, wait_until="load")
        assert answer is not None
        assert answer.status == 200, path


@dataclass(frozen=True)
class Consoles:
    """Where the two consoles are, with their keys, and a path of each page."""

    addresses: dict[str, str]
    paths: dict[str, tuple[str, ...]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@contextmanager
def served(made: History) -> Iterator[Consoles]:
    """Run both commands beside the daemons' stores, which are held as by the daemons."""
    addresses, processes = {}, []
    with made.held():
        for name, home in (("server", made.operator), ("client", made.hospital)):
            program = f"from {name}.cli import main; main()"
            command = [sys.executable, "-P", "-c", program, "console", "--home", str(home), "--port", "0"]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
            processes.append(process)
            assert process.stdout is not None
            addresses[name] = process.stdout.readline().strip()
        studies = tuple(f"/study/{study.digest}" for study in (made.finished, made.running, made.offered))
        yield Consoles(
            addresses,
            {
                "server": ("/", "/releases", "/sites", "/calls", *studies),
                "client": ("/", "/ledger", "/egress", *studies),
            },
        )
        for process in processes:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def consoles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consoles]:
    with served(history(tmp_path_factory.mktemp("consoles"), title=HOSTILE)) as running:
        yield running


@contextmanager
def opened(
    browser: Browser,
    address: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
) -> Iterator[Opened]:
    """Open the address that a console has printed."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    found = Opened(page, address.partition("/?")[0])
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("requestfailed", lambda request: found.complaints.append(f"failed: {request.url}"))
    page.goto(address, wait_until="load")
    yield found
    context.close()


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("width", [1280, 360])
def test_no_page_complains_or_asks_anything_but_its_own_console(
    browser: Browser, consoles: Consoles, name: str, width: int
) -> None:
    with opened(browser, consoles.addresses[name], width=width) as here:
        for path in consoles.paths[name]:
            here.go(path)
            assert here.page.title() != "taken"
        assert here.complaints == []
        own = urlsplit(here.base).netloc
        others = [url for url in here.requests if not url.startswith("data:") and urlsplit(url).netloc != own]
        assert others == []
        assert {f"{here.base}{path}" for path in consoles.paths[name]} <= set(here.requests)


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_key_does_not_stay_in_the_address_and_others_are_not_let_in(
    browser: Browser, consoles: Consoles, name: str
) -> None:
    with opened(browser, consoles.addresses[name]) as here:
        assert here.page.url == f"{here.base}/"
    stranger = browser.new_context().new_page()
    answer = stranger.goto(here.base)
    assert answer is not None
    assert answer.status == 403
    stranger.context.close()


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_first_key_press_offers_to_skip_to_the_content(browser: Browser, consoles: Consoles, name: str) -> None:
    with opened(browser, consoles.addresses[name]) as here:
        here.page.keyboard.press("Tab")
        skip = here.page.locator("a.skip")
        assert skip.evaluate("link => link === document.activeElement")
        assert skip.evaluate("link => link.getBoundingClientRect().top") >= 0
        here.page.keyboard.press("Enter")
        assert here.page.evaluate("document.activeElement.id") == "content"
        here.page.keyboard.press("Tab")
        assert here.page.evaluate("document.querySelector('main').contains(document.activeElement)")


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_tab_key_reaches_every_link_in_order_and_shows_where_it_is(
    browser: Browser, consoles: Consoles, name: str
) -> None:
    with opened(browser, consoles.addresses[name]) as here:
        for path in consoles.paths[name]:
            here.go(path)
            links = here.page.evaluate("[...document.links].map(link => link.href)")
            reached = []
            for _ in range(len(links) + 40):
                here.page.keyboard.press("Tab")
                href, shown = here.page.evaluate(
                    "[document.activeElement.href || '', getComputedStyle(document.activeElement).outlineStyle]"
                )
                if href:
                    reached.append(href)
                    assert shown == "solid", (path, href)
                if len(reached) == len(links):
                    break
            assert reached == links, path


def test_a_study_is_opened_by_keyboard_alone(browser: Browser, consoles: Consoles) -> None:
    with opened(browser, consoles.addresses["client"]) as here:
        link = here.page.locator("tbody a").last
        title = link.inner_text()
        link.focus()
        with here.page.expect_navigation():
            here.page.keyboard.press("Enter")
        assert here.page.locator("h1").inner_text() == title


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("width", [1280, 640, 360])
def test_no_page_scrolls_sideways_not_even_at_twice_the_size(
    browser: Browser, consoles: Consoles, name: str, width: int
) -> None:
    """A window of 1280 pixels at 200 % is one of 640."""
    with opened(browser, consoles.addresses[name], width=width) as here:
        for path in consoles.paths[name]:
            here.go(path)
            assert here.page.evaluate("document.documentElement.scrollWidth") <= width, path


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(
    browser: Browser, consoles: Consoles, name: str, scheme: Literal["light", "dark"]
) -> None:
    """WCAG 2.2, success criterion 1.4.3: a contrast of at least 4.5."""
    weakest = """() => {
        const parts = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 :
            ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = element => {
            for (let e = element; e; e = e.parentElement) {
                const colour = parts(getComputedStyle(e).backgroundColor);
                if (colour.length === 3 || colour[3] > 0) return colour;
            }
        };
        return [...document.body.querySelectorAll('p, a, th, td, dt, dd, li, h1, h2, code, small, span, caption')]
            .filter(e => e.textContent.trim() && e.className !== 'skip').map(e => {
                const [a, b] = [light(parts(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
                return (a + 0.05) / (b + 0.05);
            }).reduce((least, contrast) => Math.min(least, contrast), 21);
    }"""
    with opened(browser, consoles.addresses[name], scheme=scheme) as here:
        for path in consoles.paths[name]:
            here.go(path)
            assert here.page.evaluate(weakest) >= 4.5, path


@pytest.mark.parametrize("name", ["server", "client"])
def test_texts_of_figures_lie_within_them(browser: Browser, consoles: Consoles, name: str) -> None:
    outside = """[...document.querySelectorAll('figure svg')].filter(s => s.clientWidth).flatMap(s => {
        const box = s.getBoundingClientRect();
        return [...s.querySelectorAll('text')].filter(e => {
            const b = e.getBoundingClientRect();
            return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
        }).map(e => e.textContent)})"""
    for width in (1280, 360):
        with opened(browser, consoles.addresses[name], width=width) as here:
            for path in consoles.paths[name]:
                here.go(path)
                assert here.page.evaluate(outside) == [], (path, width)


@pytest.mark.skipif(IMAGES not in os.environ, reason=f"photographs only where {IMAGES} names a folder")
def test_the_documentations_photographs_are_taken(browser: Browser, tmp_path: Path) -> None:
    folder, made, board = Path(os.environ[IMAGES]), history(tmp_path), Board()
    board.begin(SITES)
    now = (Standing.MASKED, Standing.MASKED, Standing.WORKING, Standing.WORKING, Standing.UNAVAILABLE)
    for site, standing in zip(SITES, now, strict=True):
        board.set(site, standing)
    status = {"study": made.running.digest, "admitted": list(SITES)}
    with listening(health_app(Metrics(), board, lambda: status), Address("127.0.0.1", 0), None) as port:
        file = made.laid.server
        file.write_text(re.sub(r"(?m)^# health.*$", f'health = "127.0.0.1:{port}"', file.read_text()))
        with served(made) as running:
            for name, path, image, height in (
                ("server", f"/study/{made.running.digest}", "operator-console.png", 1232),
                ("client", "/ledger", "steward-console.png", 840),
            ):
                with opened(browser, running.addresses[name], width=900, height=height) as here:
                    here.go(path)
                    here.page.screenshot(path=folder / image)
                assert (folder / image).stat().st_size < 200_000
