"""Offers and approvals over a grid: what travels, who decides, and what an operator or a hospital cannot make of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from client.daemon import Daemon
from client.egress import EgressEntry
from client.ledger import MemoryLedger
from client.shelf import APPROVAL
from common import agreement as agreements
from common.agreement import Approval, countersign, sign, verify_study
from common.identity import Identity, SiteId
from common.link.inprocess import InProcessGrid
from common.messages import Stage
from common.study import Kind, Study
from server.offering import Offering, offers
from server.witnesses import MemoryWitnesses
from simulations.authoring import Consortium
from simulations.network.rehearsal import Rehearsed, rehearsal
from tests.homes import Homes, homes


@dataclass
class Parties:
    """An operator with an offer, and hospitals' daemons that are all connected."""

    made: Homes
    study: Study
    daemons: dict[int, Daemon]
    nodes: dict[SiteId, int]
    left: list[EgressEntry] = field(default_factory=list)

    @property
    def offering(self) -> Offering:
        home = self.made.operator
        return Offering(
            home / "offers", home / "studies", self.made.operator_identity, MemoryWitnesses(), self.nodes.get, every=0.0
        )

    def exchange(self) -> None:
        """Let offers and approvals travel once."""
        self.offering.exchange(InProcessGrid(self.daemons))

    def offer_at(self, site: SiteId) -> Path:
        return self.made.sites[site] / "offers" / self.study.digest[:16]

    def study_at(self, site: SiteId) -> Path:
        return self.made.sites[site] / "studies" / self.study.digest[:16]

    def approve(self, site: SiteId, identity: Identity | None = None) -> None:
        """Lay an approval with the offer, as the steward's command does."""
        approval = countersign(self.study, self.study.digest, site, self.made.identity(site))
        if identity is not None:
            approval = Approval(site, self.study.digest, type(approval.signature)(bytes(64)))
        fields = {"site": site, "digest": self.study.digest, "signature": approval.signature.hex()}
        (self.offer_at(site) / APPROVAL).write_text(json.dumps(fields))


def parties(folder: Path, *, kind: Kind = Kind.SIMULATION) -> Parties:
    made = homes(folder, 4)
    keys = Consortium(made.operator_identity, {site: made.identity(site) for site in made.sites})
    study = rehearsal(keys, list(made.sites), rounds=1, dimension=10)
    agreements.write(made.operator / "offers" / "one", sign(study, made.operator_identity), ())
    left: list[EgressEntry] = []
    daemons = {}
    nodes = {site: 2 + number for number, site in enumerate(sorted(made.sites))}
    for site, node in nodes.items():
        daemons[node] = Daemon(
            made.config(site),
            made.identity(site),
            lambda _: Rehearsed(10),
            MemoryLedger(),
            record=left.append,
            kind=kind,
        )
    return Parties(made, study, daemons, nodes, left)


def test_an_offer_lies_with_each_hospital_and_nothing_comes_back_before_somebody_approved(tmp_path: Path) -> None:
    there = parties(tmp_path)
    there.exchange()
    for site in there.nodes:
        signed, approvals = agreements.read(there.offer_at(site))
        assert verify_study(signed, there.made.operator_identity.public_key) == there.study
        assert approvals == ()
        assert not there.study_at(site).exists()
    (waiting,) = offers(there.made.operator / "offers", there.made.operator_identity.public_key)
    assert set(waiting.missing) == set(there.nodes)
    assert {(entry.stage, entry.part_bytes["approval"]) for entry in there.left} == {(Stage.OFFER, 0)}


def test_a_study_runs_only_once_every_hospital_has_approved(tmp_path: Path) -> None:
    there = parties(tmp_path)
    there.exchange()
    *most, last = sorted(there.nodes)
    for site in most:
        there.approve(site)
    there.exchange()
    (waiting,) = offers(there.made.operator / "offers", there.made.operator_identity.public_key)
    assert waiting.missing == (last,)
    assert not any(there.study_at(site).exists() for site in there.nodes)
    there.approve(last)
    there.exchange()
    assert not any(offers(there.made.operator / "offers", there.made.operator_identity.public_key))
    assert (there.made.operator / "studies" / "one" / "study.json").is_file()
    for site in there.nodes:
        _, approvals = agreements.read(there.study_at(site))
        assert {approval.site for approval in approvals} == set(there.nodes)


def test_an_approval_that_its_site_did_not_sign_counts_for_nothing(tmp_path: Path) -> None:
    there = parties(tmp_path)
    there.exchange()
    for site in there.nodes:
        there.approve(site, Identity.generate() if site == "site-02" else None)
    there.exchange()
    (waiting,) = offers(there.made.operator / "offers", there.made.operator_identity.public_key)
    assert waiting.missing == ("site-02",)


def test_a_hospital_that_withdrew_takes_up_no_agreement(tmp_path: Path) -> None:
    there = parties(tmp_path)
    there.exchange()
    for site in there.nodes:
        there.approve(site)
    first = min(there.nodes)
    signed, _ = agreements.read(there.offer_at(first))
    approvals = tuple(
        countersign(there.study, there.study.digest, site, there.made.identity(site)) for site in there.nodes
    )
    (there.offer_at(first) / APPROVAL).unlink()
    agreements.write(there.made.operator / "offers" / "one", signed, approvals)
    there.exchange()
    assert not there.study_at(first).exists()
    assert there.study_at(max(there.nodes)).exists()


def test_an_offer_that_another_operator_signed_is_not_kept(tmp_path: Path) -> None:
    there = parties(tmp_path)
    stranger = Identity.generate()
    fields = json.loads(there.study.canonical()) | {"operator": stranger.public_key.hex()}
    forged = Study.from_fields(fields)
    agreements.write(there.made.operator / "offers" / "one", sign(forged, stranger), ())
    there.exchange()
    assert there.left == []
    assert [path for home in there.made.sites.values() for path in (home / "offers").glob("*/study.json")] == []


def test_a_simulation_is_not_even_kept_by_a_hospitals_daemon(tmp_path: Path) -> None:
    there = parties(tmp_path, kind=Kind.DEPLOYMENT)
    there.exchange()
    assert there.left == []
    assert not any(there.offer_at(site).exists() for site in there.nodes)


def test_a_study_in_which_this_hospital_has_another_key_is_not_kept(tmp_path: Path) -> None:
    there = parties(tmp_path)
    fields = json.loads(there.study.canonical())
    fields["roster"][0]["key"] = Identity.generate().public_key.hex()
    changed = Study.from_fields(fields)
    agreements.write(there.made.operator / "offers" / "one", sign(changed, there.made.operator_identity), ())
    there.exchange()
    first = there.made.sites[min(there.nodes)]
    assert not list((first / "offers").glob("*/study.json"))
    assert list((there.made.sites[max(there.nodes)] / "offers").glob("*/study.json"))


def test_offers_that_nobody_reads_do_not_fill_the_disk(tmp_path: Path) -> None:
    there = parties(tmp_path)
    first = min(there.nodes)
    for number in range(100):
        (there.made.sites[first] / "offers" / f"old-{number}").mkdir()
    there.exchange()
    assert not there.offer_at(first).exists()
