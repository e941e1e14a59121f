"""`consilium-client check`: whether a study could run here, asked before anything is approved or charged.

Each finding is one thing that was looked at, with the coded error that names the mend where it is wrong. The
model is examined on invented inputs; no record is read (RULES 14).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from client.commands import Home
from client.ledger.book import Book
from client.ledger.recovery import inspect
from client.preparing import adapted
from common import agreement, errors
from common.console import DEFAULT_SOURCE, HERE, Json, Source, coded_errors
from common.errors import ConsiliumError
from common.findings import Finding, conclude, finding
from common.identity import SiteId, fingerprint, parse_public_key
from common.keystore import read_passphrase
from common.payloads import count_encoding, vector_encoding
from common.privacy.concerns import concerns
from common.privacy.plan import PrivacyPlan
from common.study import Kind, Study

if TYPE_CHECKING:
    from common.adapters import AdaptedModel

_DRAWS = 100_000
_DEVIATIONS = 6.0


def check(
    study: Annotated[Path | None, typer.Option(help="folder with study.json and signatures.json")] = None,
    site: Annotated[str | None, typer.Option(help="this site's name in the roster")] = None,
    operator: Annotated[str | None, typer.Option(help="the operator's public key, as compared by telephone")] = None,
    backbone: Annotated[Path | None, typer.Option(help="folder of the backbone's files")] = None,
    ledger: Annotated[Path | None, typer.Option(help="the ledger's file", envvar="CONSILIUM_LEDGER")] = None,
    anchor: Annotated[
        Path | None, typer.Option(help="its anchor; default: beside it", envvar="CONSILIUM_LEDGER_ANCHOR")
    ] = None,
    account: Annotated[str, typer.Option(help="the account that would pay")] = "default",
    home: Home = HERE,
    passphrase: Source = DEFAULT_SOURCE,
    json: Json = False,
) -> None:
    """Check this hospital before a study starts: keys, connection, data, and each study that was offered.

    With --study, --site and --operator one study alone is looked at, without a home: signature, privacy, noise,
    backbone, model, encoding, ledger and budget.
    """
    with coded_errors():
        if study is None:
            from client.home_check import examine_home

            found = examine_home(home, read_passphrase(passphrase))
        elif site is None or operator is None:
            raise ConsiliumError(errors.SITE_FILE_INVALID, "--study needs --site and --operator")
        else:
            signed, _ = agreement.read(study)
            agreed = agreement.verify_study(signed, parse_public_key(operator))
            found = examine(agreed, SiteId(site), backbone=backbone, ledger=ledger, anchor=anchor, account=account)
        findings = list(found)
    conclude(findings, json=json)


def examine(
    study: Study,
    site: SiteId,
    *,
    backbone: Path | None,
    ledger: Path | None,
    anchor: Path | None = None,
    account: str = "default",
    now: datetime | None = None,
) -> Iterator[Finding]:
    """Yield one finding after the other; what has no file given is passed over.

    study  whose operator's signature was verified
    """
    yield finding("study", lambda: _study(study, now or datetime.now(UTC)))
    privacy = finding("privacy", lambda: _privacy(study, site))
    yield privacy
    if privacy.verdict == "right":
        for concern in concerns(study):
            yield Finding(name=concern.topic, verdict="heed", said=concern.text)
    yield finding("noise", _noise)
    dimension: int | None = None
    if backbone is not None:
        yield finding("backbone", lambda: _backbone(study, backbone))

        def model() -> str:
            nonlocal dimension
            made = adapted(study, backbone)
            dimension = made.dimension
            return _preflight(made, study, site)

        yield finding("model", model)
    yield finding("encoding", lambda: _encoding(study, site, dimension))
    if ledger is not None:
        yield finding("ledger", lambda: _ledger(ledger, anchor))
        yield finding("budget", lambda: _budget(study, site, ledger, anchor, account))


def _study(study: Study, now: datetime) -> str:
    if study.kind is not Kind.DEPLOYMENT:
        raise ConsiliumError(errors.STUDY_KIND_REFUSED, f"it is a {study.kind.value} study")
    study.check_software(version("consilium"))
    study.check_valid_at(now)
    return f"{study.digest[:12]}, signed by {fingerprint(parse_public_key(study.operator))}, until {study.expires}"


def _privacy(study: Study, site: SiteId) -> str:
    plan = PrivacyPlan.for_site(study, site)
    return f"epsilon {plan.epsilon():.4f} at delta {plan.delta:g} for each {plan.unit.value}, recomputed here"


def _noise() -> str:
    """Draw from two sources: what they give is normal, and not the same."""
    from client.training.noise import SystemNoise

    first, second = SystemNoise().gaussian(_DRAWS), SystemNoise().gaussian(_DRAWS)
    bound = _DEVIATIONS / np.sqrt(_DRAWS)
    off = max(abs(first.mean()), abs(first.var() - 1.0) / np.sqrt(2.0), abs(np.corrcoef(first, second)[0, 1]))
    if not off < bound:
        raise ConsiliumError(errors.NOISE_FAULT, f"{_DRAWS:,} draws are off by {off:.1e}")
    return f"{_DRAWS:,} draws are normal, and independent of another source's"


def _backbone(study: Study, folder: Path) -> str:
    from common.backbone import verify

    verify(folder, study.backbone)
    return f"{study.backbone.name}: {len(study.backbone.files)} files as signed"


def _preflight(model: AdaptedModel, study: Study, site: SiteId) -> str:
    """Look at what this site trains: where it has a rank of its own, less than the study's model."""
    from client.preflight import check as preflight
    from common.adapters import attach_at, ranks, shapes_of

    ranks.check_blocks(study, shapes_of(model))
    return preflight(attach_at(model, site, study.stream)).summary()


def _encoding(study: Study, site: SiteId, dimension: int | None) -> str:
    """Make what a start makes: a study whose sums cannot be encoded never starts, and must not be approved."""
    counts = count_encoding(study)
    said = f"counts within {counts.bound:,.0f} either side of 0"
    if dimension is None:
        return f"{said} cannot overflow; whether updates fit is known with --backbone"
    band = study.member(site).band
    PrivacyPlan.of(study.privacy, study.training, study.evaluation, population=band).check_dimension(dimension)
    updates = vector_encoding(study, dimension)
    return f"updates of {dimension:,} coordinates in {updates.bits} bits, and {said}, cannot overflow"


def _ledger(path: Path, anchor: Path | None) -> str:
    found = inspect(path, anchor)
    if found.reason:
        raise ConsiliumError(found.fault, found.reason)
    return f"{len(found.links)} entries verify, the anchor agrees"


def _budget(study: Study, site: SiteId, path: Path, anchor: Path | None, account: str) -> str:
    book = Book(inspect(path, anchor).entries)
    plan = PrivacyPlan.for_site(study, site)
    if book.join(account, study.digest, plan) is None:
        return f"{account} pays for this study already"
    left = book.balance(account).epsilon_remaining
    return f"{account} has epsilon {left:.4f} left, the study commits {plan.epsilon():.4f}"
