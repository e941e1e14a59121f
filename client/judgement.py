"""A verdict as a site keeps it and shows it to its own people: one JSON file a study. Never sent."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from client.mismatch import FeatureDistance, LabelShift
from client.records import HeldOut
from client.verdict import FALSE_ALARMS, POWER, Candidate, Comparison, Decision
from common import errors
from common.durable import write_whole
from common.errors import ConsiliumError
from common.parts import Digest, Hex32, Part, describe


class Side(Part):
    """How many there were on one side."""

    units: int
    records: int


class SiteVerdict(Part):
    """A decision with what it rests on and what may explain it.

    unit      whom a score belongs to: a patient, or where the study knows none a record
    side      on which the held-out records are; no candidate was fitted to any of them
    training  what the site's own candidates were fitted to
    personal  how the study personalises
    domain    how far the backbone's features are from public ones, where the study has a reference
    labels    how far the shares of labels are from even ones, where the task has labels
    """

    schema_version: Literal[1] = 1
    study: Hex32
    made: str
    unit: Literal["patient", "record"]
    side: HeldOut
    training: Side
    held_out: Side
    personal: str
    decision: Decision
    domain: FeatureDistance | None
    labels: LabelShift | None

    @property
    def explained(self) -> tuple[str, ...]:
        """What to know beside the decision, one sentence each."""
        side = f"{self.side} records" + ("" if self.side == "validation" else ", for want of validation records")
        judged = {standing.candidate for standing in self.decision.standings}
        said = [
            f"judged on {self.held_out.units:,} {self.unit}s ({self.held_out.records:,} {side}); "
            f"own candidates were fitted to {self.training.units:,}",
            f"of studies that change nothing, at most {FALSE_ALARMS:.0%} get any difference claimed",
            *(_power(found, self.unit) for found in self.decision.comparisons),
        ]
        if Candidate.BACKBONE not in judged:
            said.append("the head alone trains, so that backbone only is the same as local only")
        return (*said, *(look.said for look in (self.domain, self.labels) if look is not None))


def keep_verdict(state: Path, verdict: SiteVerdict) -> Path:
    """Write a verdict in place of the study's last and return its file; raises CSL-164."""
    path = _file(state, Digest(verdict.study))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, (verdict.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise ConsiliumError(errors.STUDY_UNWRITABLE, f"{path}: {error.strerror}") from error
    return path


def kept_verdict(state: Path, study: Digest) -> SiteVerdict | None:
    """Return a study's verdict; None where none was made. Raises CSL-505 for a file that is none."""
    path = _file(state, study)
    try:
        return SiteVerdict.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConsiliumError(errors.DATA_VALUE, f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConsiliumError(errors.DATA_VALUE, f"{path}: {describe(error)}") from error


def _power(found: Comparison, unit: str) -> str:
    if found.noticeable is None:
        return f"too few {unit}s to notice any difference from {found.other.value}"
    return (
        f"from {found.other.value} a difference of {100 * found.noticeable:.1f} points would have been noticed with a "
        f"chance of {POWER:.0%}"
    )


def _file(state: Path, study: Digest) -> Path:
    return state / "verdicts" / f"{study[:16]}.json"
