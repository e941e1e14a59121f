"""A site with another clock, another version, other dimensions or a twin: refused by name, and nothing is charged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from common.identity import SiteId
from simulations.network import rehearsal as rehearsals
from simulations.network.processes import SITE, end, start
from tests.e2e import deaths
from tests.e2e.network import PASSPHRASE, network, until

VICTIM = SiteId("site-02")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        pytest.param(partial(deaths.clock_is_off, timedelta(days=1)), "CSL-641", id="a day ahead"),
        pytest.param(partial(deaths.software_is, "9.0"), "CSL-109", id="other software"),
        pytest.param(deaths.vector_is_longer, "CSL-311", id="another vector", marks=pytest.mark.slow),
    ],
)
def test_a_site_that_does_not_fit_is_refused_before_anything_is_charged(
    tmp_path: Path, fault: Callable[[], None], code: str
) -> None:
    with network(tmp_path, 6, deadline=60.0, dimension=100) as net:
        net.faults[VICTIM] = fault
        net.start()
        until(lambda: code in net.log(VICTIM), code)
        net.finish()
        net.end()
        net.check_release()
        assert net.charges(VICTIM) == ()
        assert net.left(VICTIM) == set()
        assert all(record.survivors == tuple(site for site in net.sites if site != VICTIM) for record in net.rounds())


def test_a_second_daemon_on_one_state_folder_ends_with_csl_604(tmp_path: Path) -> None:
    with network(tmp_path) as net:
        net.start(VICTIM)
        until(lambda: net.happened(VICTIM, "study opened") == 1, "a site")
        twin = start(SITE, net.laid.sites[VICTIM], PASSPHRASE, name="twin")
        try:
            assert twin.wait(60) == 2
        finally:
            end(twin)
        assert "CSL-604" in (net.place(VICTIM) / "twin.log").read_text()
        assert net.processes[VICTIM].exitcode is None


def test_a_daemon_without_its_file_ends_with_one_coded_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, code in (("site", "CSL-530"), ("operator", "CSL-540")):
        assert rehearsals.main([side, str(tmp_path / "none.toml")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(code)
