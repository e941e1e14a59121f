"""The benchmarks run what they say: both protocols for real, every key in every row, nothing measured twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.backbone import load
from common.errors import ConsiliumError
from common.link import secaggplus
from simulations.benchmarks import encoding, features, secagg
from tests.encoders import write_encoder
from tests.studies import signed_study

KEYS = {"n", "d", "lost", "client_ms", "server_s", "bytes_up", "flwr_client_ms", "flwr_server_s", "flwr_bytes_up"}


def test_flower_s_protocol_as_driven_here_gives_the_mean_of_those_who_are_left() -> None:
    everybody = {node: secaggplus.Client(node, 5, 3) for node in range(1, 6)}
    keys = {node: client.setup() for node, client in everybody.items()}
    sealed = {node: client.share(keys) for node, client in everybody.items()}
    values = {node: np.full(7, 0.01 * node, dtype=np.float32) for node in everybody}
    active, dead = [1, 2, 4], [3, 5]
    total, revealed = None, {node: list[bytes]() for node in everybody}
    for node, client in everybody.items():
        masked = client.mask({peer: sealed[peer][node] for peer in everybody if peer != node}, values[node])
        if node in active:
            total = secaggplus.collect(masked, total)
            for owner, share in client.unmask(active, dead).items():
                revealed[owner].append(share)
    assert total is not None
    mean = secaggplus.open_total(total, revealed, active, {node: pair[0] for node, pair in keys.items()})
    np.testing.assert_allclose(mean, np.mean([0.01, 0.02, 0.04]), atol=1e-5)


def test_what_a_peer_seals_is_what_the_benchmark_gives_in_its_place() -> None:
    pair = {node: secaggplus.Client(node, 2, 2) for node in (1, 2)}
    keys = {node: client.setup() for node, client in pair.items()}
    for client in pair.values():
        client.share(keys)
    mine = (pair[2].state.rd_seed_share_dict[2], pair[2].state.sk1_share_dict[2])
    masked = pair[1].mask({2: secaggplus.sealed_with(pair[1], 2, mine)}, np.zeros(3, dtype=np.float32))
    assert sum(map(len, masked)) > 3 * 8
    assert pair[1].state.rd_seed_share_dict[2] == mine[0]


def test_another_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secaggplus, "version", lambda _: "1.42.0")
    with pytest.raises(ConsiliumError, match=r"CSL-109.*1\.41"):
        secaggplus.check_version()


@pytest.mark.parametrize("lost", [0, 20])
def test_a_cell_measures_both(lost: int) -> None:
    row = secagg.measure(5, 1000, lost)
    assert set(row) == KEYS
    assert (row["n"], row["d"], row["lost"]) == (5, 1000, lost)
    assert all(row[key] for key in KEYS - {"lost"})
    assert 2000 < (row["bytes_up"] or 0) < (row["flwr_bytes_up"] or 0)


def test_a_cell_that_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(secagg, "cells", lambda full: [(4, 10, 0), (5, 10, 0)])
    out = tmp_path / "secagg.json"
    assert secagg.main(["--out", str(out), "--sites", "4"]) == 0
    first = json.loads(out.read_text())
    assert [row["n"] for row in first] == [4]
    assert secagg.main(["--out", str(out)]) == 0
    assert json.loads(out.read_text())[0] == first[0]
    assert [row["n"] for row in json.loads(out.read_text())] == [4, 5]
    assert json.loads(out.with_suffix(".meta.json").read_text())["flwr"].startswith("1.41")
    assert "client ms" in capsys.readouterr().out


def test_a_wrong_sum_stops_the_benchmark() -> None:
    ours = secagg.Ours(4, 50)
    ours.take_sum(0)
    ours.values = ours.values + np.float32(0.01)
    with pytest.raises(RuntimeError, match="wrong sum"):
        ours._check()


def test_the_cells_are_those_that_are_promised() -> None:
    assert {(n, d, lost) for n in (10, 30, 100) for d in (100_000, 1_000_000) for lost in (0, 10, 30)} < set(
        secagg.cells(full=False)
    )
    assert (1000, 1_000_000, 10) in secagg.cells(full=False)
    assert (100, 10_000_000, 30) in secagg.cells(full=True)


def test_the_error_of_encoding_falls_with_the_bits_and_rotation_helps() -> None:
    study = signed_study(10, aggregation={"clamp": 0.06}).study
    dice = np.random.default_rng(3)
    updates = {
        member.site_id: np.where(dice.random(2000) < 0.01, 0.1, 0.001) * dice.standard_normal(2000)
        for member in study.roster
    }
    rounds = [{site: values.astype(np.float32) for site, values in updates.items()}]
    coarse, fine = (encoding.measure(study, rounds, bits, long=3000) for bits in (8, 16))
    assert coarse["error"] > 20 * fine["error"]
    assert fine["error"] < fine["error_unrotated"]
    assert 0 <= fine["clamped"] < 0.01
    assert fine["encode_ms_3000"] > 0


@pytest.mark.parametrize("method", features.ADAPTERS)
def test_a_row_of_features_measures_every_place(tmp_path: Path, method: str) -> None:
    row = features.measure(load(tmp_path, write_encoder(tmp_path)), method, records=12, batch=4, tokens=8, repeats=1)
    assert row["bytes"] == 12 * 32 * (4 if method == "head-only" else 2 * 8)
    for key in ("computing", "opening", "memory", "disk", "nowhere"):
        assert float(row[f"{key}_seconds"] or 0.0) > 0.0
    assert method in features.table([row])
