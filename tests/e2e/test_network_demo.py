"""The real thing in small: the product's own daemons train a real encoder over TLS, and release what they agreed on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from client.config import SiteConfig
from client.egress_log import Payload, read
from client.ledger import SqliteLedger
from client.ledger.recovery import inspect
from common import agreement as agreements
from common.agreement import verify_agreement
from common.messages import Stage
from common.study import Kind
from simulations.network import demo

ROUNDS = 4


@pytest.mark.slow
def test_the_demonstration_ends_with_a_release_that_its_agreement_and_its_books_bear_out(tmp_path: Path) -> None:
    folder = tmp_path / "network"
    release = demo.run(folder, ROUNDS, Console(quiet=True))
    configs = [SiteConfig.load(path) for path in sorted(folder.glob("*/site.toml"))]
    assert len(configs) == demo.HOSPITALS

    signed, approvals = agreements.read(release / "agreement")
    agreed = verify_agreement(signed, approvals, configs[0].operator_key, now=datetime.now(UTC), kind=Kind.DEPLOYMENT)
    assert {member.site_id for member in agreed.study.roster} == {config.site_id for config in configs}
    assert len(json.loads((release / "result.json").read_text())["rounds"]) == ROUNDS

    # An adapter of this method begins with B at zero: what is not zero was trained.
    weights = load_file(release / "adapter_model.safetensors")
    trained = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert trained
    assert all(np.isfinite(tensor).all() and np.abs(tensor).max() > 0 for tensor in trained)

    for config in configs:
        assert inspect(config.ledger_file).reason == ""
        with SqliteLedger(config.ledger_file) as ledger:
            charges = ledger.charges(agreed.digest)
        # Each round and the final counts, once and at the first attempt.
        assert [key.stage for key in charges] == [Stage.FIT] * ROUNDS + [Stage.COUNTS]
        assert {key.attempt for key in charges} == {0}
        payloads = [entry for entry in read(config.egress_file) if isinstance(entry, Payload)]
        masked = [entry.stage for entry in payloads if entry.stage in (Stage.FIT, Stage.COUNTS)]
        assert masked == [key.stage for key in charges]
