"""The operator's console shows what is written, beside the server that writes it, and changes nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from common.identity import SiteId
from common.privacy.released import released_accuracy
from common.web import Door
from server.board import Board, Standing
from server.config import ServerConfig
from server.console import OperatorConsole
from server.health import Metrics, health_app
from server.journal import JournalReader, State
from server.listener import Address, listening
from server.status import ask
from tests.consortia import HOSTILE, SITES, History, files, history


@dataclass(frozen=True)
class Shown:
    """A console and what it shows of whom."""

    made: History
    client: TestClient

    def page(self, path: str) -> str:
        """Return what a page says, without its markup."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def opened(home: Path) -> TestClient:
    door = Door("127.0.0.1", 9445)
    client = TestClient(OperatorConsole(home).app(door), base_url="http://127.0.0.1:9445")
    assert client.get("/", params={"key": door.key}).status_code == 200
    return client


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    made = history(tmp_path_factory.mktemp("console"), title=HOSTILE)
    return Shown(made, opened(made.operator))


def paths(made: History) -> list[str]:
    studies = (made.finished, made.running, made.aborted, made.offered)
    return ["/", "/releases", "/sites", "/calls", *(f"/study/{study.digest}" for study in studies)]


def test_the_list_says_how_every_study_stands_and_whose_approval_is_awaited(shown: Shown) -> None:
    page = shown.page("/")
    assert re.search(r"Triage notes: urgent or not \w{16} finished", page)
    assert re.search(r"Referral letters by department \w{16} aborted .* CSL-602", page)
    assert re.search(r"Radiology reports: follow-up needed \w{16} running", page)
    assert re.search(r"offered approvals of hilltop, lakeside, northgate", page)


def test_a_hostile_title_stays_text(shown: Shown) -> None:
    for path in ("/", f"/study/{shown.made.offered.digest}"):
        source = shown.client.get(path).text
        assert "<script" not in source
        assert "<img" not in source
        assert "&lt;script&gt;" in source


def test_a_path_that_a_stranger_called_is_not_shown(shown: Shown) -> None:
    assert "evil.example" not in shown.client.get("/calls").text


def test_a_study_shows_its_rounds_sites_traffic_and_transcript(shown: Shown) -> None:
    page = shown.page(f"/study/{shown.made.finished.digest}")
    assert "12 of 12 done" in page
    assert "text-classification: it assigns one of 2 labels to a text; its score: accuracy" in page
    assert re.search(r"Training (SGD|Adam) at the sites", page)
    assert re.search(r"coast approved 10 of 12", page)
    assert re.search(r"\b5 1 4 \S+ 246 kB 593 kB coast", page)
    assert "In all: 3.50 MB from the sites, 8.45 MB to them." in page
    links = JournalReader(ServerConfig.load(shown.made.laid.server).journal_url).transcript(shown.made.finished.digest)
    assert f"Head: {links[-1].digest}" in page
    assert "round 4 done by 4 sites, at attempt 2" in page
    assert "What is not promised" in page


def test_a_released_figure_is_the_simulators_with_its_interval_wherever_it_stands(shown: Shown) -> None:
    made = shown.made
    ending = JournalReader(ServerConfig.load(made.laid.server).journal_url).of(made.finished.digest).ending()
    assert ending is not None
    assert ending.counts is not None
    share, low, high = (f"{100 * value:.1f}" for value in released_accuracy(ending.counts, 5, made.finished))
    for path in ("/releases", f"/study/{made.finished.digest}"):
        assert re.search(rf"{share}\s%.{{0,20}} {low}\s% to {high}\s%", shown.page(path)), path
    figure = shown.client.get("/releases").text
    assert f"released: {share}%, 95% interval {low}% to {high}%" in figure


def test_sites_are_shown_with_their_certificates_dates(shown: Shown) -> None:
    page = shown.page("/sites")
    for site in SITES:
        assert re.search(rf"{site} (\w{{4}}-){{4}}\w{{4}} 1 \d{{4}}-\d\d-\d\d", page)


def test_a_certificate_that_ends_soon_is_said_so(shown: Shown) -> None:
    door = Door("127.0.0.1", 9445)
    later = OperatorConsole(shown.made.operator, clock=lambda: datetime.fromisoformat("2999-01-01T00:00:00Z"))
    client = TestClient(later.app(door), base_url="http://127.0.0.1:9445")
    assert client.get("/sites", params={"key": door.key}).text.count("expired") == len(SITES)


def test_calls_are_of_the_last_day(shown: Shown) -> None:
    page = shown.page("/calls")
    assert "1,491 calls since" in page
    assert "17 were refused" in page
    assert "push-object" not in page


@pytest.mark.parametrize("digest", ["0" * 64, "0" * 16, "..%2f..%2fserver.toml", "A" * 64, "%00"])
def test_a_study_that_is_not_there_is_said_so(shown: Shown, digest: str) -> None:
    assert shown.client.get(f"/study/{digest}").status_code == 404


def test_every_table_has_a_caption_and_every_figure_says_what_it_shows(shown: Shown) -> None:
    for path in paths(shown.made):
        source = shown.client.get(path).text
        assert source.count("<table") == source.count("<caption")
        for svg in re.findall(r"<svg[^>]*>.{0,30}", source):
            assert re.search(r'role="img" aria-label="[^"]+".*<desc>', svg), path
        assert len(re.findall("<h1>", source)) == 1


def test_the_console_reads_beside_a_running_server_and_shows_what_it_writes(shown: Shown, tmp_path: Path) -> None:
    made = shown.made.copied(tmp_path)
    client = opened(made.operator)
    with made.held() as journal:
        for path in paths(made):
            assert client.get(path).status_code == 200
        journal.enter(made.running.digest, State.ABORTED, "as the test says")
        assert "as the test says" in client.get("/").text


def test_the_console_changes_no_byte_no_time_and_makes_no_file(shown: Shown) -> None:
    before = files(shown.made.operator)
    for path in paths(shown.made):
        shown.client.get(path)
    assert files(shown.made.operator) == before


def test_a_journal_that_was_changed_is_a_coded_page(shown: Shown, tmp_path: Path) -> None:
    made = shown.made.copied(tmp_path)
    journal = made.operator / "state" / "journal.sqlite"
    journal.write_bytes(journal.read_bytes().replace(b"Triage notes", b"Triage goats"))
    answer = opened_without_looking(made.operator).get("/")
    assert answer.status_code == 503
    assert "CSL-631" in answer.text


def opened_without_looking(home: Path) -> TestClient:
    door = Door("127.0.0.1", 9445)
    client = TestClient(OperatorConsole(home).app(door), base_url="http://127.0.0.1:9445")
    client.get("/console.css", params={"key": door.key})
    return client


def test_the_board_is_the_running_servers_own(shown: Shown, tmp_path: Path) -> None:
    made = shown.made.copied(tmp_path)
    board = Board()
    board.begin(SITES)
    board.set(SiteId("coast"), Standing.UNAVAILABLE)
    status = {"study": made.running.digest, "admitted": list(SITES)}
    with listening(health_app(Metrics(), board, lambda: status), Address("127.0.0.1", 0), None) as port:
        path = made.laid.server
        path.write_text(re.sub(r"(?m)^# health.*$", f'health = "127.0.0.1:{port}"', path.read_text()))
        here = Shown(made, opened(made.operator))
        assert "The server runs study" in here.page("/")
        page = here.page(f"/study/{made.running.digest}")
        assert re.search(r"coast unavailable \d{4}-\d\d-\d\d \S+ UTC 5 of 7", page)
        assert "As the server sees them now" in page
        assert "As it is written" in here.page(f"/study/{made.finished.digest}")
    assert "does not answer on its health address" in here.page("/")


def test_an_answer_that_is_no_status_is_none() -> None:
    from starlette.responses import PlainTextResponse

    with listening(PlainTextResponse("<html>"), Address("127.0.0.1", 0), None) as port:
        assert ask(Address("127.0.0.1", port)) is None
    assert ask(None) is None
