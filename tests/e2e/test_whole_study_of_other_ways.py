"""Whole studies from hospitals' files to a released adapter: ranks that differ, pretraining, and images.

Real preparation, training, ledgers and secure sums, through the in-process grid; the messages are those of the link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from numpy.typing import NDArray

from client.ledger import MemoryLedger
from client.preparing import prepare
from client.site import Site
from client.workload import ModelWorkload
from common.adapters import Vector
from common.adapters.release import load_release, released_vector
from common.backbone import load
from common.identity import SiteId
from common.link.inprocess import OPERATOR_NODE, RUN, InProcessGrid
from server.conduct import Conduct
from server.coordinator import Coordinator, Outcome
from server.product import AdapterProduct
from server.witnesses import MemoryWitnesses
from tests.modalities import Checkpoint, checkpoint, deployed, write_site
from tests.studies import NOW, Signed

TOLERANCE = 1e-4
"""Stochastic rounding to 32 bits under a clamp of 1: a hundredth of an update's size here."""
PRECISE: dict[str, object] = {"bits": 32}
ADAPTER: Mapping[str, object] = {"method": "ffa-lora", "rank": 4, "last_layers": 1}


@dataclass
class Watched:
    """A site's workload whose starts and updates are kept; ``planted`` is sent from ``beyond`` on."""

    workload: ModelWorkload
    beyond: int | None = None
    planted: float = 0.0
    sent: list[Vector] = field(default_factory=list)
    began: list[Vector] = field(default_factory=list)

    @property
    def dimension(self) -> int:
        return self.workload.dimension

    def train(self, start: Vector, round_index: int) -> Vector:
        self.began.append(start.copy())
        update = self.workload.train(start, round_index)
        if self.beyond is not None:
            assert not update[self.beyond :].any()
            update[self.beyond :] = self.planted
        self.sent.append(update.copy())
        return update

    def evaluate(self, vector: Vector) -> NDArray[np.int64]:
        return self.workload.evaluate(vector)


@dataclass
class Studied:
    """A study that has run to its end."""

    signed: Signed
    start: Vector
    outcome: Outcome
    sites: Mapping[SiteId, Watched]
    product: AdapterProduct

    def moved_by(self, *without: SiteId) -> NDArray[np.float64]:
        """Return the sum over all rounds of the mean update; all bands are equal."""
        sent = [site.sent for name, site in self.sites.items() if name not in without]
        rounds: NDArray[np.float64] = np.array(sent, dtype=np.float64).mean(axis=0)
        return np.asarray(rounds.sum(axis=0))


def run(
    folder: Path,
    signed: Signed,
    backbone: Checkpoint,
    *,
    unlabelled: int = 0,
    watched: Callable[[SiteId, ModelWorkload], Watched] = lambda _, workload: Watched(workload),
) -> Studied:
    """Prepare every site from files of its own and run the study to its end."""
    sites: dict[SiteId, Watched] = {}
    apps = {}
    for number, (name, identity) in enumerate(signed.sites.items()):
        config = write_site(folder / name, signed.study, backbone.folder, name, 24, unlabelled=unlabelled)
        sites[name] = watched(name, prepare(config, signed.agreement, identity))
        apps[OPERATOR_NODE + 1 + number] = Site(
            signed.agreement,
            name,
            identity,
            sites[name],
            MemoryLedger(),
            verified=frozenset(signed.sites),
            clock=lambda: NOW,
        ).app()
    product = AdapterProduct(signed.study, backbone.source)
    start = product.start()
    conduct = Conduct(moves=product.moves)
    coordinator = Coordinator(signed.agreement, signed.operator, start, witnesses=MemoryWitnesses(), conduct=conduct)
    context = Context(run_id=RUN, node_id=OPERATOR_NODE, node_config={}, state=RecordDict(), run_config={})
    coordinator.app()(InProcessGrid(apps), context)
    return Studied(signed, start, coordinator.outcome, sites, product)


def released(folder: Path, studied: Studied, backbone: Checkpoint) -> Vector:
    """Write the release, read it as anybody would, and return its vector in the study's order."""
    folder.mkdir()
    signed = studied.signed
    studied.product.release(folder, studied.outcome.vector, signed.signed, signed.approvals)
    loaded = load_release(folder, load(backbone.folder, backbone.manifest))
    assert loaded.task.spec == signed.study.task
    return released_vector(folder, studied.product._model, study=signed.study.digest)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("bert"), "bert")


def test_a_block_of_ranks_is_the_mean_of_those_who_have_them_whatever_a_smaller_site_sends_there(
    tmp_path: Path, bert: Checkpoint
) -> None:
    """The attack on RULES 4: a site of rank 2 writes numbers of its own beyond its rank, and none reaches the sum."""
    small = SiteId("site-000")
    made = deployed(
        "text-classification",
        bert,
        6,
        adapter={**ADAPTER, "site_ranks": {small: 2}},
        training={"rounds": 2},
        aggregation=PRECISE,
    )
    (block,) = made.study.aggregation.blocks

    def lying(name: SiteId, workload: ModelWorkload) -> Watched:
        return Watched(workload, block.start, 0.9) if name == small else Watched(workload)

    studied = run(tmp_path, made, bert, watched=lying)
    ours, theirs = slice(0, block.start), slice(block.start, block.stop)
    moved = studied.outcome.vector - studied.start
    assert moved[ours] == pytest.approx(studied.moved_by()[ours], abs=TOLERANCE)
    assert moved[theirs] == pytest.approx(studied.moved_by(small)[theirs], abs=TOLERANCE)
    assert np.abs(moved[theirs]).max() > 10 * TOLERANCE
    assert [record.survivors for record in studied.outcome.rounds] == [tuple(made.sites)] * 2
    assert released(tmp_path / "release", studied, bert) == pytest.approx(studied.outcome.vector)


def test_a_block_that_too_few_contribute_to_is_left_out_of_every_sum(tmp_path: Path, bert: Checkpoint) -> None:
    """Of six sites two may collude, so that five must contribute: to ranks 3 and 4 it is four."""
    ranks = {"site-000": 1, "site-001": 2}
    made = deployed("text-classification", bert, 6, adapter={**ADAPTER, "site_ranks": ranks}, aggregation=PRECISE)
    second, rest = made.study.aggregation.blocks
    assert [(block.name, len(block.sites)) for block in (second, rest)] == [("rank-2-to-2", 5), ("rank-3-to-4", 4)]
    studied = run(tmp_path, made, bert)
    moved = studied.outcome.vector - studied.start
    assert all(studied.sites[SiteId(site)].sent[0][rest.start :].any() for site in rest.sites)
    assert not moved[rest.start : rest.stop].any()
    within = slice(second.start, second.stop)
    assert moved[within] == pytest.approx(studied.moved_by(SiteId("site-000"))[within], abs=TOLERANCE)


def test_a_study_pretrains_on_texts_without_labels_and_goes_on_with_its_task(tmp_path: Path, bert: Checkpoint) -> None:
    objective = {"kind": "masked-language-modelling", "max_tokens": 24}
    made = deployed(
        "text-classification",
        bert,
        adapter={"method": "ffa-lora", "last_layers": 1},
        training={"rounds": 3, "steps_per_round": 1, "learning_rate": 0.1, "server_optimizer": "fedadam"},
        pretraining={"rounds": 2, "objective": objective},
    )
    studied = run(tmp_path, made, bert, unlabelled=20)
    model = studied.product._model
    sizes = [model.get_parameter(name).numel() for name in model.names]
    in_head = np.repeat([name.startswith("head.") for name in model.names], sizes)
    for site in studied.sites.values():
        pretrained, task = site.sent[:2], site.sent[2]
        assert all(update[~in_head].any() and not update[in_head].any() for update in pretrained)
        assert task[in_head].any()
        # A step that knows no scale would make of a sum's rounding as much as of an update.
        assert np.array_equal(site.began[2][in_head], studied.start[in_head])
        assert not np.array_equal(site.began[2][~in_head], studied.start[~in_head])
    assert studied.outcome.counts is not None
    assert released(tmp_path / "release", studied, bert) == pytest.approx(studied.outcome.vector)


@pytest.mark.parametrize(
    ("task", "family"), [("image-classification", "vit"), ("audio-classification", "ast")], ids=["images", "recordings"]
)
def test_hospitals_that_hold_files_run_a_whole_study(tmp_path: Path, task: str, family: str) -> None:
    backbone = checkpoint(tmp_path / "backbone", family)
    made = deployed(task, backbone, adapter={"method": "ffa-lora", "last_layers": 1}, aggregation=PRECISE)
    studied = run(tmp_path, made, backbone)
    moved = studied.outcome.vector - studied.start
    assert moved == pytest.approx(studied.moved_by(), abs=TOLERANCE)
    assert np.abs(moved).max() > 10 * TOLERANCE
    assert studied.outcome.counts is not None
    assert released(tmp_path / "release", studied, backbone) == pytest.approx(studied.outcome.vector)
