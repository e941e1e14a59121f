"""A small valid study, its keys and its parts, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from common.agreement import Agreement, Approval, SignedStudy, approve, sign, verify_agreement
from common.identity import Identity, SiteId
from common.study import Study

NOW = datetime(2026, 12, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Signed:
    """Everything a test needs about one signed and approved study."""

    study: Study
    operator: Identity
    sites: dict[SiteId, Identity]
    signed: SignedStudy
    approvals: tuple[Approval, ...]

    @property
    def agreement(self) -> Agreement:
        return verify_agreement(self.signed, self.approvals, self.operator.public_key, now=NOW, kind=self.study.kind)


def fields(sites: int = 4, **changes: object) -> tuple[dict[str, object], Identity, dict[SiteId, Identity]]:
    """Return a study's fields as parsed from TOML or JSON; ``changes`` merges tables by name."""
    operator = Identity.from_private_bytes(bytes(31) + b"\x01")
    keys = {
        SiteId(f"site-{i:03d}"): Identity.from_private_bytes(bytes(29) + b"\x02" + i.to_bytes(2, "big"))
        for i in range(sites)
    }
    study: dict[str, object] = {
        "schema_version": 1,
        "kind": "simulation",
        "title": "A study for tests",
        "operator": operator.public_key.hex(),
        "created": "2026-11-24T00:00:00Z",
        "expires": "2027-11-24T00:00:00Z",
        "stream": "5a" * 32,
        "purpose": {"duo": ["DUO:0000007"], "statement": "tests"},
        "backbone": {
            "name": "tiny",
            "source": "tests",
            "revision": "1",
            "licence": "Apache-2.0",
            "training_data": "none: random weights",
            "files": {"model.safetensors": "0" * 64},
        },
        "task": {"labels": ["no", "yes"], "max_tokens": 16},
        "adapter": {"method": "ffa-lora", "rank": 2, "alpha": 4.0, "targets": ["query", "value"], "last_layers": 1},
        "training": {"rounds": 3, "steps_per_round": 2, "learning_rate": 0.1},
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-5,
            "sampling_rate": 0.25,
            "noise_multiplier": 1.5,
            "clip_norm": 1.0,
            "max_charges": 4,
        },
        "evaluation": {},
        "aggregation": {"clamp": 1.0, "minimum_cohort": 3},
        "roster": [{"site": site, "key": identity.public_key.hex(), "band": 100} for site, identity in keys.items()],
    }
    for name, change in changes.items():
        old = study.get(name)
        study[name] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return study, operator, keys


def signed_study(sites: int = 4, **changes: object) -> Signed:
    """Return a study signed by its operator and approved by every site."""
    return signed_as(*fields(sites, **changes))


def signed_as(raw: dict[str, object], operator: Identity, keys: dict[SiteId, Identity]) -> Signed:
    """Return a study of these fields, signed by its operator and approved by every site."""
    study = Study.from_fields(raw)
    signed = sign(study, operator)
    approvals = tuple(approve(signed, site, identity, operator.public_key) for site, identity in keys.items())
    return Signed(study, operator, keys, signed, approvals)
