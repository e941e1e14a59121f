"""From a finished study to a hospital's verdict: what it evaluated is kept, judged and shown, and nothing leaves."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from click.testing import Result
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from starlette.testclient import TestClient
from typer.testing import CliRunner

from client.cli import app
from client.console import StewardConsole
from client.preparing import adapted
from client.released import keep_vector, kept_vector
from common.adapters.release import released_vector, save_release
from common.errors import ConsiliumError
from common.link.inprocess import OPERATOR_NODE, RUN, InProcessGrid
from common.parts import Digest
from common.payloads import parse_vector
from common.study import BackboneManifest
from common.web import Door
from server.coordinator import Coordinator, Outcome
from server.witnesses import MemoryWitnesses
from tests.client.verdict.sites import TELLING
from tests.encoders import write_encoder
from tests.federations import DIMENSION
from tests.hospitals import PASSPHRASE, VARIABLE, WORKED, Hospital, hospital
from tests.studies import Signed, signed_study

LABELS = ("home", "ward")
RECORDS = 120
ONE_ROUND = {"rounds": 1, "steps_per_round": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BackboneManifest]:
    folder = tmp_path_factory.mktemp("encoder")
    return folder, write_encoder(folder)


@pytest.fixture
def signed(encoder: tuple[Path, BackboneManifest]) -> Signed:
    return signed_study(
        4,
        **WORKED,
        backbone=encoder[1].model_dump(mode="json"),
        task={"labels": list(LABELS), "label_texts": ["mild cough", "severe chest fall"]},
        training=ONE_ROUND,
        privacy={"unit": "patient", "max_records_per_unit": 2},
        personal={"method": "head", "steps": 10},
        reference={"data": "invented", "mean": [0.0] * 32, "deviation": [0.2] * 32},
    )


@pytest.fixture
def made(tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Signed) -> Hospital:
    """A hospital where the study ran, whose records say by their words whether a patient may go home."""
    there = hospital(tmp_path / "home", signed)
    there.agree(signed)
    (there.home / "data").mkdir()
    dice = np.random.default_rng(5)
    rows = []
    for number in range(RECORDS):
        label = int(dice.integers(2))
        words = " ".join(dice.choice(TELLING[2 * label], size=4))
        rows.append(f"p{number // 2},{words} unheard,{LABELS[label]}")
    (there.home / "data" / "notes.csv").write_text("\n".join(["patient,note,label", *rows]) + "\n")
    file = there.home / "site.toml"
    text = file.read_text()
    text = text.replace('query = "SELECT 1"', "query = \"FROM read_csv('notes.csv', all_varchar = true)\"")
    text = text.replace('{ text = "t", label = "l" }', '{ text = "note", label = "label", unit = "patient" }')
    file.write_text(text.replace("[verified]", f'[backbone]\nfolder = "{encoder[0]}"\n[verified]'))
    return there


def said(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={VARIABLE: PASSPHRASE})


def test_a_verdict_is_printed_kept_and_shown_and_nothing_leaves(
    made: Hospital, signed: Signed, encoder: tuple[Path, BackboneManifest]
) -> None:
    digest = signed.study.digest
    model = adapted(signed.study, encoder[0])
    keep_vector(made.config.state, digest, model.read_vector().tobytes())
    spent = made.spent()
    result = said("verdict", digest[:12], "--home", str(made.home), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["study"] == digest
    assert found["side"] == "test"
    assert (found["training"]["records"] + found["held_out"]["records"]) == RECORDS
    assert found["training"]["units"] * 2 == found["training"]["records"]
    names = [one["candidate"] for one in found["decision"]["standings"]]
    assert names == ["shared", "backbone only", "local only", "personalised"]
    kept = made.config.state / "verdicts" / f"{digest[:16]}.json"
    assert json.loads(kept.read_text()) == found
    assert made.spent() == spent
    assert not made.config.egress_file.exists()

    door = Door("127.0.0.1", 9446)
    client = TestClient(StewardConsole(made.home).app(door), base_url="http://127.0.0.1:9446")
    assert client.get("/console.css", params={"key": door.key}).status_code == 200
    page = unescape(client.get(f"/study/{digest}").text)
    assert found["decision"]["said"] in page
    assert "Whether it helped here" in page
    assert "personalised" in page

    shown = said("verdict", digest[:12], "--home", str(made.home))
    assert shown.exit_code == 0, shown.output
    assert "Kept for this site" in shown.stdout
    assert "for want of validation records" in shown.stdout


def test_before_a_verdict_the_console_names_the_command(made: Hospital, signed: Signed) -> None:
    door = Door("127.0.0.1", 9446)
    client = TestClient(StewardConsole(made.home).app(door), base_url="http://127.0.0.1:9446")
    client.get("/console.css", params={"key": door.key})
    assert f"consilium-client verdict {signed.study.digest[:16]}" in client.get(f"/study/{signed.study.digest}").text


def test_without_an_evaluation_a_release_is_asked_for_and_taken(
    made: Hospital, signed: Signed, encoder: tuple[Path, BackboneManifest], tmp_path: Path
) -> None:
    digest = signed.study.digest
    refused = said("verdict", digest[:12], "--home", str(made.home))
    assert (refused.exit_code, "CSL-611" in refused.stderr) == (2, True)
    model = adapted(signed.study, encoder[0])
    vector = np.random.default_rng(1).normal(0, 0.3, model.dimension).astype(np.float32)
    model.write_vector(vector)
    (tmp_path / "release").mkdir()
    save_release(model, tmp_path / "release", study=digest)
    assert np.array_equal(released_vector(tmp_path / "release", model, study=digest), vector)
    with pytest.raises(ConsiliumError, match=r"CSL-610.*is of study"):
        released_vector(tmp_path / "release", model, study=Digest("0" * 64))
    taken = said("verdict", digest[:12], "--home", str(made.home), "--release", str(tmp_path / "release"), "--json")
    assert taken.exit_code == 0, taken.output


def test_a_mismatch_is_measured_before_anything_is_spent(made: Hospital, signed: Signed) -> None:
    spent = made.spent()
    result = said("mismatch", signed.study.digest[:12], "--home", str(made.home), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["features"]["distance"] > found["features"]["by_chance"]
    assert found["vocabulary"]["unknown"] == pytest.approx(0.2)
    assert 0 <= found["calibration"]["error"] <= 1
    assert found["labels"]["absent"] == []
    assert made.spent() == spent
    shown = said("mismatch", signed.study.digest[:12], "--home", str(made.home))
    assert "20.0% of the tokens are unknown" in shown.stdout


def ran(folder: Path) -> tuple[Outcome, list[Hospital]]:
    """Run a whole study between four daemons in this process."""
    signed = signed_study(4, **WORKED, training=ONE_ROUND)
    homes = [hospital(folder / site, signed, site=site) for site in signed.sites]
    for home in homes:
        home.agree(signed)
    apps = {OPERATOR_NODE + 1 + place: cast(ClientApp, home.daemon()) for place, home in enumerate(homes)}
    start = np.zeros(DIMENSION, dtype=np.float32)
    coordinator = Coordinator(signed.agreement, signed.operator, start, witnesses=MemoryWitnesses())
    coordinator.app()(InProcessGrid(apps), Context(RUN, OPERATOR_NODE, {}, RecordDict(), {}))
    return coordinator.outcome, homes


def test_a_daemon_keeps_the_last_vector_that_it_evaluated(tmp_path: Path) -> None:
    outcome, homes = ran(tmp_path)
    assert outcome.counts is not None
    for home in homes:
        found = kept_vector(home.config.state, home.signed.study.digest)
        assert np.array_equal(parse_vector(found, DIMENSION), outcome.vector.astype(np.float32))


def test_a_vector_that_cannot_be_kept_costs_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.daemon.keep_vector", full)
    outcome, _ = ran(tmp_path)
    assert outcome.counts is not None
