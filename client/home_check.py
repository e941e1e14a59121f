"""What `consilium-client check` looks at when it stands in a hospital's home: everything between here and a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from client.check import examine
from client.config import SiteConfig
from client.connectivity import UnreachableError, looks
from client.daemon import is_held
from client.data import Examples
from client.enrolment import FILE
from client.shelf import State, known
from common import errors
from common.errors import ConsiliumError
from common.findings import Finding, finding
from common.identity import Identity, fingerprint
from common.keystore import read_identity, read_node_key
from common.study import Study
from common.task_specs import TabularClassification, TaskSpec


def examine_home(home: Path, passphrase: bytes) -> Iterator[Finding]:
    """Yield one finding after the other; raises CSL-530 or CSL-531 for a site file that cannot be read.

    Records are read, to see whether they can be; nothing of them is shown but counts, and nothing is sent.
    """
    config = SiteConfig.load(home / FILE)
    try:
        identity = read_identity(config.keys.identity, passphrase)
        node = read_node_key(config.keys.node, passphrase)
    except ConsiliumError as error:
        yield Finding(name="keys", verdict="wrong", said=str(error))
        return
    yield Finding(name="keys", verdict="right", said=f"this hospital is {fingerprint(identity.public_key)}")
    yield from _connection(config, node, passphrase)
    now = datetime.now(UTC)
    studies = [one.study for one in known(config)[0] if one.state_at(now) is not State.EXPIRED]
    for study in studies:
        yield finding(f"peers of {study.title}", _peers(config, study))
        yield finding(f"data for {study.title}", _data(config, study, identity))
        yield from _of(study, config)
    if not studies:
        yield Finding(
            name="studies", verdict="heed", said="none was offered yet: data and budget are looked at with one"
        )


def _connection(config: SiteConfig, node: ec.EllipticCurvePrivateKey, passphrase: bytes) -> Iterator[Finding]:
    for name, look in looks(config, node, passphrase, is_running=is_held(config.state)):
        try:
            yield Finding(name=name, verdict="right", said=look())
        except ConsiliumError as error:
            yield Finding(name=name, verdict="wrong", said=str(error))
            if isinstance(error, UnreachableError):
                return


def _of(study: Study, config: SiteConfig) -> Iterator[Finding]:
    for found in examine(
        study,
        config.site_id,
        backbone=None,
        ledger=config.ledger_file if config.ledger_file.is_file() else None,
        anchor=config.ledger.anchor,
        account=config.account,
    ):
        yield found.model_copy(update={"name": f"{found.name} of {study.title}"})


def _peers(config: SiteConfig, study: Study) -> Callable[[], str]:
    def look() -> str:
        from common.secagg.terms import Terms

        verified = config.verified_in(study)
        others = [member.site for member in study.roster if member.site != config.site]
        missing = sorted(set(others) - set(verified))
        try:
            Terms.from_study(study).check_reachable(config.site_id, verified)
        except ConsiliumError as error:
            raise ConsiliumError(
                errors.PEERS_UNVERIFIED, f"{len(verified)} of {len(others)}; missing: {', '.join(missing)}"
            ) from error
        return f"{len(verified)} of {len(others)} are verified" + (f"; not {', '.join(missing)}" if missing else "")

    return look


def _data(config: SiteConfig, study: Study, identity: Identity) -> Callable[[], str]:
    def look() -> str:
        from client.records import load

        train, test = load(config, study, identity)
        missing = sorted(set(study.task.known_labels) - set(train.labels))
        without = f"; no record to train on has {', '.join(missing)}" if missing else ""
        alone = sum(not study.task.accepts(label) for label in train.labels)
        pretrained = f", of which {alone:,} have no label and only pretrain" if alone else ""
        sizes = f"{len(train):,} records to train on{pretrained}, {len(test):,} to test on"
        return f"{sizes}{without}{gaps(study.task, train)}"

    return look


def gaps(task: TaskSpec, train: Examples) -> str:
    """Say of which fields the records to train on lack values, or have values that the study cannot read."""
    if not isinstance(task, TabularClassification):
        return ""
    rows = [content for content in train.contents if isinstance(content, tuple)]
    lack = {one.name: sum(row[at] is None for row in rows) for at, one in enumerate(task.fields)}
    said = ", ".join(f"{name} {count:,}" for name, count in lack.items() if count)
    return f"; without a value that can be read: {said}" if said else ""
