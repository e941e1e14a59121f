"""Everything that a hospital's check can find wrong is made wrong, and found under its name with its code."""

from __future__ import annotations

import datetime
import email.utils
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from client.daemon import alone
from client.enrolment import FILE
from client.home_check import examine_home
from client.ledger import SqliteLedger
from common import agreement as agreements
from common.agreement import sign
from common.findings import Finding
from common.identity import SiteId
from common.keystore import read_node_key
from common.link.fleet_app import fleet_app
from common.link.nodes import node_key_bytes
from common.link.relay import Relay
from common.study import Unit
from server.authority import Authority
from server.guard import Guard
from server.listener import Address, listening, tls_context
from simulations.authoring import Consortium
from simulations.network.processes import free_port
from simulations.network.rehearsal import rehearsal
from tests.homes import PASSPHRASE, Homes, homes

SITE = SiteId("site-00")


@pytest.fixture
def made(tmp_path: Path) -> Homes:
    there = homes(tmp_path, 4, port=free_port())
    keys = Consortium(there.operator_identity, {site: there.identity(site) for site in there.sites})
    study = rehearsal(keys, list(there.sites), rounds=1, dimension=10)
    agreements.write(there.sites[SITE] / "offers" / study.digest[:16], sign(study, there.operator_identity), ())
    with SqliteLedger(there.config(SITE).ledger_file) as ledger:
        ledger.open_account("default", population="tests", unit=Unit.RECORD, epsilon=1000.0, delta=1e-2)
    return there


def port_of(made: Homes) -> int:
    return int(made.config(SITE).link.server.rpartition(":")[2])


def edit(made: Homes, old: str, new: str) -> None:
    path = made.sites[SITE] / FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@contextmanager
def operator_of(made: Homes, *, admitted: bool = True) -> Iterator[None]:
    """Listen as the operator does."""
    relay, tls = Relay(), made.operator / "tls"
    if admitted:
        key = load_pem_public_key((made.operator / "sites" / f"{SITE}.pem").read_bytes())
        relay.admit(node_key_bytes(key), SITE)  # type: ignore[arg-type]
    context = tls_context(str(tls / "server.pem"), str(tls / "server.key"), str(tls / "ca.pem"), PASSPHRASE)
    with listening(Guard(fleet_app(relay), audit=lambda _: None), Address("127.0.0.1", port_of(made)), context):
        try:
            yield
        finally:
            relay.close()


@contextmanager
def plain_server(port: int, *, off: float = 0.0, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    """Serve HTTP with a clock of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            del timestamp
            there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=off)
            return email.utils.format_datetime(there, usegmt=True)

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def found(made: Homes) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_home(made.sites[SITE], PASSPHRASE)}


def wrong(made: Homes) -> dict[str, str]:
    """Return the code of everything that is wrong, by name."""
    return {name: finding.said.split()[0] for name, finding in found(made).items() if finding.verdict == "wrong"}


def test_a_hospital_where_all_is_right_is_told_so(made: Homes) -> None:
    with operator_of(made):
        findings = found(made)
    # The rehearsal is a simulation, which a hospital refuses: that alone is wrong.
    assert {name for name, finding in findings.items() if finding.verdict == "wrong"} == {"study of A rehearsal"}
    assert {"keys", "certificate", "address", "server", "clock", "admission"} <= findings.keys()
    assert "records to train on" in findings["data for A rehearsal"].said


def test_a_wrong_port_is_named_and_nothing_further_is_tried(made: Homes) -> None:
    findings = wrong(made)
    assert findings["address"] == "CSL-642"
    assert not {"server", "clock", "admission"} & found(made).keys()


def test_a_name_that_nobody_knows(made: Homes) -> None:
    edit(made, f"127.0.0.1:{port_of(made)}", "no-such-host.invalid:443")
    assert wrong(made)["address"] == "CSL-642"


def test_a_clear_text_port_is_told_from_a_wrong_certificate(made: Homes) -> None:
    with plain_server(port_of(made)):
        assert wrong(made)["server"] == "CSL-648"


def test_a_server_of_another_authority(made: Homes, tmp_path: Path) -> None:
    authority, _ = Authority.create("somebody else")
    tls = made.operator / "tls"
    key = read_node_key(tls / "server.key", PASSPHRASE).public_key()
    (tmp_path / "other.pem").write_bytes(authority.server(key, "127.0.0.1"))
    context = tls_context(str(tmp_path / "other.pem"), str(tls / "server.key"), None, PASSPHRASE)
    with plain_server(port_of(made), tls=context):
        findings = found(made)
    assert findings["server"].said.startswith("CSL-643")
    assert "not this consortium's" in findings["server"].said


def test_an_expired_certificate(made: Homes) -> None:
    home = made.sites[SITE]
    authority = Authority(
        read_node_key(made.operator / "keys" / "authority.pem", PASSPHRASE),
        (made.operator / "tls" / "ca.pem").read_bytes(),
    )
    key = read_node_key(home / "tls" / "site.key", PASSPHRASE).public_key()
    (home / "tls" / "site.pem").write_bytes(authority.site(key, SITE, days=0))
    assert wrong(made)["certificate"] == "CSL-647"


def test_no_certificate_at_all(made: Homes) -> None:
    (made.sites[SITE] / "tls" / "site.pem").unlink()
    assert wrong(made)["certificate"] == "CSL-647"


@pytest.mark.parametrize("off", [86_400.0, -86_400.0])
def test_a_clock_that_is_a_day_off(made: Homes, off: float) -> None:
    tls = made.operator / "tls"
    context = tls_context(str(tls / "server.pem"), str(tls / "server.key"), None, PASSPHRASE)
    with plain_server(port_of(made), off=off, tls=context):
        assert wrong(made)["clock"] == "CSL-649"


def test_a_node_key_that_is_not_admitted(made: Homes) -> None:
    with operator_of(made, admitted=False):
        assert wrong(made)["admission"] == "CSL-641"


def test_a_daemon_that_runs_keeps_its_connection(made: Homes) -> None:
    with operator_of(made), alone(made.config(SITE).state):
        assert "the daemon runs" in found(made)["admission"].said


def test_data_that_cannot_be_read(made: Homes) -> None:
    edit(made, "FROM range(40) t(i)", "FROM 'nothing-here.csv' t(i)")
    assert wrong(made)["data for A rehearsal"] == "CSL-501"


def test_a_label_that_the_study_does_not_have(made: Homes) -> None:
    edit(made, "'no' AS label", "'perhaps' AS label")
    assert wrong(made)["data for A rehearsal"] == "CSL-321"


def test_a_column_that_is_not_there(made: Homes) -> None:
    edit(made, "'no' AS label", "'no' AS verdict")
    assert wrong(made)["data for A rehearsal"] == "CSL-503"


def test_a_budget_that_is_spent(made: Homes, tmp_path: Path) -> None:
    edit(made, 'account = "default"', 'account = "poor"')
    with SqliteLedger(made.config(SITE).ledger_file) as ledger:
        ledger.open_account("poor", population="tests", unit=Unit.RECORD, epsilon=0.001, delta=1e-2)
    assert wrong(made)["budget of A rehearsal"] == "CSL-204"


def test_peers_that_nobody_has_verified(made: Homes) -> None:
    path = made.sites[SITE] / FILE
    path.write_text(path.read_text().partition("[verified]")[0] + "[verified]\n")
    assert wrong(made)["peers of A rehearsal"] == "CSL-145"


def test_a_wrong_passphrase(made: Homes) -> None:
    (finding,) = examine_home(made.sites[SITE], b"not the passphrase of these keys")
    assert finding.verdict == "wrong"
    assert finding.said.startswith("CSL-151")
