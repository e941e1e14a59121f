"""The report, and the page of an audit, in a real browser: they ask nobody for anything, and fit their screen."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from simulations.audit.findings import Sabotage
from simulations.audit.page import page as audit_page
from simulations.report import write_report
from tests.simulations.audit.audits import findings
from tests.simulations.runs import run, study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
HOSTILE = (
    "<script>document.title='taken'</script><img src=https://evil.example/p.png onerror=\"document.title='taken'\">"
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM} (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, few, many = tmp_path_factory.mktemp("reports"), study(), study(30)
    hostile = study(title=HOSTILE)
    shares = study(task={"kind": "regression", "low": 0.0, "high": 10.0, "max_tokens": 64})
    names = ("Universitätsklinikum der Freien und Hansestadt am großen Fluss", "H" * 300, HOSTILE, "ok")
    runs = {
        "few": (run(few), few),
        "many": (run(many), many),
        "shares": (run(shares, judged=True), shares),
        "bare": (run(few, baselines=False, released=False, tuned=False), few),
        "hostile": (run(hostile, names=names, title=HOSTILE, command=HOSTILE), hostile),
    }
    for name, (metrics, agreed) in runs.items():
        write_report(metrics, agreed, folder / f"{name}.html")
    audits = {
        "audit": findings(),
        "broken": findings(title=HOSTILE, site="H" * 64, command=HOSTILE, bound=9.0, sabotage=Sabotage.NO_NOISE),
    }
    for name, found in audits.items():
        (folder / f"{name}.html").write_text(audit_page(found), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in (*runs, *audits)}


def opened(
    browser: Browser, path: Path, *, width: int = 1280, scheme: Literal["light", "dark"] = "light"
) -> tuple[Page, list[str]]:
    """Open a page and return it with all it asked for and all it complained about; the page itself is first."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.goto(path.as_uri(), wait_until="load")
    return page, seen


@pytest.mark.parametrize("name", ["few", "many", "bare", "hostile", "audit", "broken"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_requests_nothing_and_the_console_stays_empty(
    browser: Browser, reports: dict[str, Path], name: str, width: int
) -> None:
    page, seen = opened(browser, reports[name], width=width)
    assert seen == [reports[name].as_uri()]
    assert page.title() != "taken"
    page.context.close()


def test_the_policy_blocks_what_a_slip_in_escaping_would_let_in(
    browser: Browser, reports: dict[str, Path], tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(
        reports["few"].read_text(encoding="utf-8").replace("</main>", f"{HOSTILE}</main>"), encoding="utf-8"
    )
    page = browser.new_page()
    finished: list[str] = []
    stopped: dict[str, str | None] = {}
    page.on("requestfinished", lambda request: finished.append(request.url))
    page.on("requestfailed", lambda request: stopped.update({request.url: request.failure}))
    page.goto(spoilt.as_uri(), wait_until="load")
    assert finished == [spoilt.as_uri()]
    assert stopped == {"https://evil.example/p.png": "csp"}
    assert page.title() != "taken"
    page.close()


@pytest.mark.parametrize("name", ["few", "many", "bare", "hostile", "shares", "audit", "broken"])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_page_never_scrolls_sideways(browser: Browser, reports: dict[str, Path], name: str, width: int) -> None:
    page, _ = opened(browser, reports[name], width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


@pytest.mark.parametrize(("width", "shown", "hidden"), [(1280, ".wide", ".narrow"), (360, ".narrow", ".wide")])
def test_one_of_the_two_drawings_of_each_figure_is_shown(
    browser: Browser, reports: dict[str, Path], width: int, shown: str, hidden: str
) -> None:
    page, _ = opened(browser, reports["few"], width=width)
    drawings = page.locator("figure")
    assert drawings.count() == 4
    for index in range(drawings.count()):
        assert drawings.nth(index).locator(shown).is_visible()
        assert not drawings.nth(index).locator(hidden).is_visible()
    page.context.close()


def test_dark_is_dark_and_paper_is_white(browser: Browser, reports: dict[str, Path]) -> None:
    """Also shows that the style passed the page's own policy: without it there would be no background."""
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    light, _ = opened(browser, reports["few"], scheme="light")
    dark, _ = opened(browser, reports["few"], scheme="dark")
    assert min(light.evaluate(brightness)) > 240
    assert max(dark.evaluate(brightness)) < 40
    dark.emulate_media(media="print")
    assert dark.evaluate(brightness) == [255, 255, 255]
    light.context.close()
    dark.context.close()


def test_text_in_figures_is_never_shrunk_below_ten_pixels(browser: Browser, reports: dict[str, Path]) -> None:
    smallest = """Math.min(...[...document.querySelectorAll('figure svg')].filter(s => s.clientWidth).map(
        s => s.getBoundingClientRect().width / s.viewBox.baseVal.width * 11.5))"""
    for width in (1280, 800, 750, 390, 360):
        page, _ = opened(browser, reports["few"], width=width)
        assert page.evaluate(smallest) >= 10, width
        page.context.close()


def test_marks_and_names_lie_within_their_figure(browser: Browser, reports: dict[str, Path]) -> None:
    outside = """[...document.querySelectorAll('figure svg')].filter(s => s.clientWidth).flatMap(s => {
        const box = s.getBoundingClientRect();
        return [...s.querySelectorAll('text, .mark')].filter(e => {
            const b = e.getBoundingClientRect();
            return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
        }).map(e => e.textContent)})"""
    for name in ("few", "many", "bare", "hostile"):
        for width in (1280, 360):
            page, _ = opened(browser, reports[name], width=width)
            assert page.evaluate(outside) == [], (name, width)
            page.context.close()
