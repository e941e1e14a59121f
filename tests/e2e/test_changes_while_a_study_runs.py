"""A site is removed, another renews its certificate, a third is admitted, all while a study runs: it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client import enrolment as hospitals
from common.identity import SiteId
from common.study import Unit
from server import enrolment as operators
from simulations.network.consortium import Account, lay_out, publish
from simulations.network.processes import REHEARSED_OPERATOR, REHEARSED_SITE, end, free_port, running, start
from simulations.network.rehearsal import NO_DATA, STEP, rehearsal

PASSPHRASE = "of a consortium that changes"
ROUNDS = 60
LIMIT = 240.0


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.1)


def events(log: Path) -> list[dict[str, object]]:
    """Return the whole lines of a daemon's log."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n") and line.startswith("{")]


@pytest.mark.slow
def test_a_study_goes_on_while_sites_are_removed_renewed_and_admitted(tmp_path: Path) -> None:
    sites = [SiteId(f"site-{number:02d}") for number in range(6)]
    laid = lay_out(
        tmp_path / "consortium",
        sites,
        port=free_port(),
        health=None,
        passphrase=PASSPHRASE,
        account=Account(Unit.RECORD, 1000.0, 1e-2),
        deadline=60.0,
        data=dict.fromkeys(sites, NO_DATA),
        backbone="",
    )
    publish(laid, rehearsal(laid.keys, sites, rounds=ROUNDS, dimension=100))
    home, secret = laid.server.parent, PASSPHRASE.encode()
    log = home / "server.log"

    def rounds() -> int:
        return sum(event["event"] == "round done" for event in events(log))

    with running({"operator": start(REHEARSED_OPERATOR, laid.server, PASSPHRASE)}) as processes:
        for site, path in laid.sites.items():
            processes[site] = start(REHEARSED_SITE, path, PASSPHRASE)
        until(lambda: rounds() >= 2)

        # Renewed: the daemon takes the new certificate on its next connection, which removing the old key forces.
        renewing = laid.sites[sites[0]].parent
        hospitals.renew(renewing, passphrase=secret)
        operators.admit(home, renewing / hospitals.REQUEST, laid.keys.operator, secret, renewing / "renewed.json")
        before = (renewing / "tls" / "site.pem").read_bytes()
        hospitals.install(renewing, renewing / "renewed.json", passphrase=secret)
        assert (renewing / "tls" / "site.pem").read_bytes() != before
        end(processes[sites[0]])
        processes[sites[0]] = start(REHEARSED_SITE, laid.sites[sites[0]], PASSPHRASE)

        # Admitted: somebody who is in no study yet.
        newcomer = tmp_path / "newcomer"
        hospitals.make_home(
            newcomer, site="newcomer", passphrase=secret, source="env:NOBODY", data=NO_DATA, backbone=""
        )
        hospitals.join(newcomer, home / operators.CONSORTIUM, band=10, passphrase=secret)
        operators.admit(home, newcomer / hospitals.REQUEST, laid.keys.operator, secret, newcomer / "in.json")
        until(lambda: any(e["event"] == "admitted" and e.get("site") == "newcomer" for e in events(log)))

        # Removed: it can connect no longer, and the five that are left suffice.
        seen = rounds()
        operators.remove(home, sites[5])
        until(lambda: any(e["event"] == "dismissed" and e.get("site") == sites[5] for e in events(log)))
        until(lambda: rounds() >= min(ROUNDS, seen + 3))
        assert processes["operator"].wait(LIMIT) == 0

    done = [event for event in events(log) if event["event"] == "round done"]
    assert [event["round"] for event in done] == list(range(ROUNDS))
    assert max(int(str(event["sites"])) for event in done) == 6
    assert done[-1]["sites"] == 5
    (vector,) = (home / "state" / "releases").glob("*/vector.npy")
    assert np.allclose(np.load(vector, allow_pickle=False), ROUNDS * STEP, atol=ROUNDS * 1e-3)
