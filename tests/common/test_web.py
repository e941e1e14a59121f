"""Nobody but who started a console is answered by it, nothing can be changed there, and no browser runs anything."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from common import errors
from common.errors import ConsiliumError
from common.web import HEADERS, Door, Missing, Page, console, serve

ROOT = Path(__file__).resolve().parents[2]
DOOR = Door("127.0.0.1", 9445, "a key of this test")
HOSTILE = "<script>alert(1)</script>\u202e"
NOW = datetime(2026, 12, 1, 8, 30, tzinfo=UTC)


def read(named: Mapping[str, str]) -> Mapping[str, object]:
    if named.get("name") == "absent":
        raise Missing
    if named.get("name") == "damaged":
        raise ConsiliumError(errors.OPERATOR_DAMAGED, HOSTILE)
    return {"text": named.get("name", HOSTILE)}


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """Return a browser that has not opened the printed address yet."""
    (tmp_path / "page.html.j2").write_text(
        '{% extends "console.html.j2" %}{% block title %}{{ text }}{% endblock %}{% block content %}{% endblock %}'
    )
    pages = (Page("/", "page.html.j2", read, "First"), Page("/named/{name}", "page.html.j2", read))
    app = console("Console", HOSTILE, pages, tmp_path, DOOR, clock=lambda: NOW)
    return TestClient(app, base_url="http://127.0.0.1:9445", follow_redirects=False)


@pytest.fixture
def let_in(client: TestClient) -> TestClient:
    """Return one that has."""
    assert client.get("/", params={"key": DOOR.key}).status_code == 303
    return client


def test_every_answer_carries_the_policy_that_lets_nothing_run_or_load(let_in: TestClient) -> None:
    for path in ("/", "/console.css", "/nowhere", "/named/absent", "/named/damaged"):
        answer = let_in.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path
    policy = HEADERS["Content-Security-Policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert {"base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'"} < set(policy)
    assert "script-src" not in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_refusals_carry_the_policy_too(client: TestClient) -> None:
    for answer in (client.get("/"), client.post("/"), client.get("/", headers={"Host": "evil.example"})):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_what_comes_from_outside_is_escaped_and_cannot_turn_the_text_round(let_in: TestClient) -> None:
    page = let_in.get("/").text
    assert "<script" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;\ufffd") == 3


def test_a_page_says_of_when_it_is(let_in: TestClient) -> None:
    assert "As of 2026-12-01 08:30:00 UTC" in let_in.get("/").text


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9445",
        "127.0.0.1",
        "127.0.0.1:9446",
        "127.0.0.1:9445.evil.example",
        "",
        "[::1]:9445",
    ],
)
def test_another_name_for_the_address_is_refused(let_in: TestClient, host: str) -> None:
    assert let_in.get("/", headers={"Host": host}).status_code == 421


def test_localhost_is_the_address_too(let_in: TestClient) -> None:
    cookie = {"Cookie": f"{DOOR.cookie}={let_in.cookies[DOOR.cookie]}"}
    assert let_in.get("/", headers={"Host": "localhost:9445", **cookie}).status_code == 200


def test_on_port_80_the_port_is_left_out() -> None:
    assert Door("::1", 80).names == {"[::1]:80", "[::1]", "localhost:80", "localhost"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_only_get_and_head_are_answered(let_in: TestClient, method: str) -> None:
    answer = let_in.request(method, "/")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_the_page(let_in: TestClient) -> None:
    answer = let_in.head("/")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/console.css", "/named/absent", "/?key=", "/?key=another"])
def test_without_the_key_nothing_is_answered(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 403
    assert "html" not in answer.headers["Content-Type"]


def test_the_key_goes_from_the_address_into_a_cookie_that_no_other_site_is_sent(client: TestClient) -> None:
    answer = client.get("/named/one", params={"key": DOOR.key, "other": "1"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/named/one")
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
    assert client.get("/named/one").status_code == 200


def test_each_start_draws_another_key_and_a_door_does_not_print_it() -> None:
    one, other = Door("127.0.0.1", 1), Door("127.0.0.1", 1)
    assert one.key != other.key
    assert len(one.key) >= 32
    assert one.key not in repr(one)


def test_what_is_not_there_is_said_so(let_in: TestClient) -> None:
    for path in ("/nowhere", "/named/absent", "/named/..%2f..%2fetc%2fpasswd"):
        answer = let_in.get(path)
        assert (answer.status_code, "There is no page" in answer.text) == (404, True)


def test_a_coded_error_is_a_page_with_its_mend(let_in: TestClient) -> None:
    answer = let_in.get("/named/damaged")
    assert answer.status_code == 503
    assert "CSL-631" in answer.text
    assert errors.OPERATOR_DAMAGED.mend in answer.text.replace("&#39;", "'")
    assert "<script" not in answer.text


def test_no_template_holds_a_script_a_style_or_an_address_elsewhere() -> None:
    found = [path for folder in ("common", "client", "server") for path in (ROOT / folder / "templates").glob("*.j2")]
    assert len(found) > 10
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script|<style|\bstyle=|\son\w+=|https?:|<form|\|\s*safe\b", text), path.name


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::", "localhost", "a.example", "", "127.0.0.1.evil"])  # noqa: S104
def test_a_console_listens_on_loopback_or_not_at_all(host: str) -> None:
    with pytest.raises(ConsiliumError) as raised:
        serve(lambda door: pytest.fail("it was made"), host, 0, tell=lambda said: pytest.fail("it was told"))
    assert raised.value.fault is errors.CONSOLE_EXPOSED


def test_a_port_that_is_taken_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConsiliumError) as raised:
        serve(lambda door: pytest.fail("it was made"), "127.0.0.1", taken.getsockname()[1], tell=print)
    assert raised.value.fault is errors.LINK_LISTEN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_console_is_served_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "page.html.j2").write_text('{% extends "console.html.j2" %}{% block title %}Here{% endblock %}')
    program = f"""
from pathlib import Path
from common.web import Page, console, serve
pages = (Page("/", "page.html.j2", lambda named: {{}}, "First"),)
serve(lambda door: console("Console", "owner", pages, Path({str(tmp_path)!r}), door), "127.0.0.1", 0,
      tell=lambda said: print(said, flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            with httpx.Client(trust_env=False, follow_redirects=True) as browser:
                assert "<h1>Here</h1>" in browser.get(address).text
        finally:
            process.send_signal(number)
        assert process.wait(30) == 0
