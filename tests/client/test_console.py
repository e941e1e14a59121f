"""The steward's console shows what is offered, spent and gone, beside the daemon, and changes nothing."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from client.config import SiteConfig
from client.console import StewardConsole
from client.data_report import DataReport, Figures, write_report
from client.egress_log import read
from client.ledger.book import Book
from client.ledger.recovery import inspect
from client.ledger.report import account_lines
from common.privacy.statement import rounded_up
from common.web import Door
from tests.consortia import HOSTILE, History, files, history


def opened(home: Path) -> TestClient:
    door = Door("127.0.0.1", 9446)
    client = TestClient(StewardConsole(home).app(door), base_url="http://127.0.0.1:9446")
    assert client.get("/console.css", params={"key": door.key}).status_code == 200
    return client


def page(client: TestClient, path: str) -> str:
    """Return what a page says, without its markup."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(tmp_path_factory.mktemp("console"), title=HOSTILE)


@pytest.fixture(scope="module")
def client(made: History) -> TestClient:
    return opened(made.hospital)


def paths(made: History) -> list[str]:
    return ["/", "/ledger", "/egress", *(f"/study/{study.digest}" for study in (made.offered, made.running))]


def test_the_list_says_which_study_waits_for_a_decision_and_which_runs(client: TestClient) -> None:
    shown = page(client, "/")
    assert re.search(r"\w{16} offered", shown)
    assert re.search(r"Triage notes: urgent or not \w{16} running here", shown)


def test_a_hostile_title_stays_text(client: TestClient, made: History) -> None:
    for path in ("/", f"/study/{made.offered.digest}"):
        source = client.get(path).text
        assert "<script" not in source
        assert "<img" not in source
        assert "&lt;script&gt;" in source


def test_an_offer_is_shown_with_its_cost_its_sites_and_the_command_to_type(client: TestClient, made: History) -> None:
    shown = page(client, f"/study/{made.offered.digest}")
    assert f"consilium-client study approve {made.offered.digest[:16]}" in shown
    assert "within this site’s policy" in shown
    assert re.search(r"epsilon 0\.\d{4}, recomputed here; 8 stated", shown)
    assert re.search(r"coast (\w{4}-){4}\w{4} verified 800", shown)
    assert "hilltop" in shown
    assert "text-classification: it assigns one of 2 labels to a text; its score: accuracy" in shown
    assert re.search(r"Labels \w+, \w+", shown)
    assert "What is not promised" in shown


def test_what_the_policy_forbids_is_shown_without_a_command_to_approve_it(made: History, tmp_path: Path) -> None:
    there = made.copied(tmp_path)
    file = there.hospital / "site.toml"
    file.write_text(re.sub(r"(?m)^max_epsilon = .*$", "max_epsilon = 0.1", file.read_text()))
    shown = page(opened(there.hospital), f"/study/{there.offered.digest}")
    assert "policy forbids it in 1 point" in shown
    assert "study approve" not in shown


def test_the_ledger_is_shown_as_it_stands(client: TestClient, made: History) -> None:
    config = SiteConfig.load(made.hospital / "site.toml")
    found = inspect(config.ledger_file, config.ledger.anchor)
    (account,) = account_lines(Book(found.entries))
    shown = page(client, "/ledger")
    assert f"{rounded_up(account.epsilon_committed)} of 6 committed" in shown
    assert "12 of 14" in shown
    assert f"26 entries verified when this page was made, and the anchor agrees. Head: {found.last.digest}" in shown
    assert client.get("/ledger").text.count('<rect class="part-') == 3


def test_what_left_is_shown_by_day_and_stage_with_its_guarantee(client: TestClient, made: History) -> None:
    log = read(SiteConfig.load(made.hospital / "site.toml").egress_file)
    shown = page(client, "/egress")
    assert f"{len(log)} entries." in shown
    assert "63 replies of 1.31 MB in all" in shown
    assert re.search(r"train\.fit 12 \S+ kB differentially private update, masked", shown)
    assert "push-messages" in shown


def test_a_ledger_that_lost_its_end_is_said_so_with_the_command_that_mends_it(made: History, tmp_path: Path) -> None:
    there = made.copied(tmp_path)
    (there.hospital / "state" / "ledger.sqlite.anchor").unlink()
    shown = page(opened(there.hospital), "/ledger")
    assert "CSL-212 the anchor is missing" in shown
    assert "consilium-client ledger recover" in shown


def test_a_log_that_was_changed_is_a_coded_page(made: History, tmp_path: Path) -> None:
    there = made.copied(tmp_path)
    log = there.hospital / "state" / "egress.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"instance":1,', b'"instance":2,', 1))
    answer = opened(there.hospital).get("/egress")
    assert (answer.status_code, "CSL-603" in answer.text) == (503, True)


def test_a_data_report_is_shown_where_there_is_one(client: TestClient, made: History, tmp_path: Path) -> None:
    assert client.get("/data").status_code == 404
    assert 'href="/data"' not in client.get("/").text
    there = made.copied(tmp_path)
    report = there.hospital / "state" / "data-report.json"
    kept = Figures(records=812, units=640, classes={"urgent": 700, "<script>": 112})
    write_report(
        report,
        DataReport(
            made="2026-12-01T08:30:00+00:00", source="letters", query="a" * 64, fingerprint="b" * 64, rows=815,
            dropped={"label": 3}, missing={"label": 3}, kept=kept, sides={"test": kept},
        ),
    )  # fmt: skip
    reading = opened(there.hospital)
    assert 'href="/data"' in reading.get("/").text
    shown = page(reading, "/data")
    assert "815, of which 812 contribute, of 640 units" in shown
    assert "urgent 700" in shown
    assert "<script" not in reading.get("/data").text
    report.write_text("{")
    assert reading.get("/data").status_code == 503


def test_a_home_in_which_nothing_has_happened_is_shown_too(made: History, tmp_path: Path) -> None:
    there = made.copied(tmp_path)
    for place in ("studies", "offers", "state"):
        for path in sorted((there.hospital / place).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    reading = opened(there.hospital)
    assert "No study is known here" in page(reading, "/")
    assert "There is no ledger yet" in page(reading, "/ledger")
    assert "Nothing has left this hospital" in page(reading, "/egress")


@pytest.mark.parametrize("digest", ["0" * 64, "0" * 16, "..%2f..%2fsite.toml", "%00"])
def test_a_study_that_is_not_there_is_said_so(client: TestClient, digest: str) -> None:
    assert client.get(f"/study/{digest}").status_code == 404


def test_every_table_has_a_caption(client: TestClient, made: History) -> None:
    for path in paths(made):
        source = client.get(path).text
        assert source.count("<table") == source.count("<caption"), path
        assert source.count("<h1>") == 1


def test_the_console_reads_beside_a_running_daemon(made: History, tmp_path: Path) -> None:
    there = made.copied(tmp_path)
    reading = opened(there.hospital)
    with there.held():
        for path in paths(there):
            assert reading.get(path).status_code == 200


def test_the_console_changes_no_byte_and_no_time_and_makes_no_file(client: TestClient, made: History) -> None:
    before = files(made.hospital)
    for path in paths(made):
        client.get(path)
    assert files(made.hospital) == before
