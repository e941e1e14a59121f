"""What a simulated study came to: `metrics.json`, as frozen models.

The exact figures in here (pooled, per site, curve) were read by the simulator from the sites' own records; only
`released` is what an operator would have seen. Nothing in this module computes a figure: it names, bounds, writes and
reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from client.verdict import Decision
from common import errors
from common.errors import ConsiliumError
from common.parts import Hex32, describe
from simulations.outputs import save

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0.0)]

NOT_PRIVATE = (
    "NOT PRIVATE: the noise came from a seed so that this run can be repeated; whoever knows the seed can undo it."
)
SYNTHETIC = "SYNTHETIC DATA: no patient stands behind these texts, and no figure here says anything about real ones."
TUNED = "TUNED NON-PRIVATELY: settings were chosen on exact validation figures, which epsilon does not cover."
SITE_FIGURES = "SIMULATOR ONLY: per-site, exact and baseline figures are never released by a real study."


class Part(BaseModel):
    """Base of every part: frozen, strict, unknown keys refused, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Score(Part):
    """Exact quality on a test set of `examples` records."""

    accuracy: Fraction
    macro_f1: Fraction | None = None
    examples: Count


class Released(Part):
    """The pooled accuracy as an operator sees it: noised, with its interval. Noise may carry it outside [0, 1]."""

    accuracy: float
    low: float
    high: float
    note: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.accuracy <= self.high:
            raise ValueError("released: low <= accuracy <= high must hold")
        return self


class Group(Part):
    """Exact accuracy within one value of a subgroup column."""

    accuracy: Fraction
    examples: Count


class SiteMetrics(Part):
    """One site, by its own records. Never released; a baseline not asked for is null.

    accuracy                        the federated model on this site's test records
    accuracy_local_only             the site's own model, trained alone, on this site's test records
    accuracy_local_only_on_pooled   that same model on the pooled test records
    """

    id: str = Field(min_length=1)
    accuracy: Fraction
    macro_f1: Fraction | None = None
    accuracy_local_only: Fraction | None = None
    accuracy_local_only_on_pooled: Fraction | None = None
    accuracy_federated_nonprivate: Fraction | None = None
    accuracy_centralised: Fraction | None = None
    epsilon: Amount
    delta: Amount
    train_examples: Count
    test_examples: Count
    units: Count
    released: Literal[False] = False
    subgroups: dict[str, dict[str, Group]] = {}


class Verdict(Part):
    """What one site would find out about the transfer by itself, by the very code of a hospital. Never released.

    units     held-out units by which it judges
    side      of which records they are
    """

    id: str = Field(min_length=1)
    units: Count
    side: Literal["validation", "test"]
    decision: Decision
    released: Literal[False] = False

    def mean(self, candidate: str) -> float | None:
        """Return a candidate's mean score, None where the site did not compare it."""
        return next((found.mean for found in self.decision.standings if found.candidate == candidate), None)


class Baseline(Part):
    """One comparison, exact, on the pooled test records."""

    accuracy: Fraction
    macro_f1: Fraction | None = None


class LocalOnly(Part):
    """Every site alone: `accuracy` is the mean over sites on the pooled test, `own_test_accuracy` on their own."""

    accuracy: Fraction
    own_test_accuracy: Fraction
    macro_f1: Fraction | None = None


class Baselines(Part):
    """The comparisons that were asked for; the others are null."""

    majority: Baseline | None = None
    local_only: LocalOnly | None = None
    federated_nonprivate: Baseline | None = None
    centralised_nonprivate: Baseline | None = None


class CurvePoint(Part):
    """The global model after `round` sums (0: before training), on the pooled validation records. Simulator only."""

    round: Count
    accuracy: Fraction | None = None
    learning_rate: Amount | None = None
    update_norm: Amount | None = None


class PrivacyMetrics(Part):
    """The guarantee and what it was made of. `private` is true only if real, secret noise was added at every step."""

    unit: str
    neighbour: str = Field(description="the neighbour relation, in words")
    epsilon: Amount
    delta: Amount
    noise_multiplier: Amount
    sampling_rate: Fraction
    steps: Count
    clip_norm: Amount
    accountant: str
    evaluation_noise_multiplier: Amount | None = None
    statement: str = Field(description="the full statement, plain text or markdown")
    private: bool


class Traffic(Part):
    """Bytes on the wire (mean over sites and rounds, payloads with their envelopes) and what they carried."""

    bytes_up_per_site_round: Count
    bytes_down_per_site_round: Count
    vector_parameters: Count
    bits: Count = Field(description="of one encoded coordinate")
    messages: Count = Field(description="in the whole study, both directions")


class Seconds(Part):
    """Wall-clock seconds of the run and of its parts, which do not overlap; what no part names is left over."""

    total: Amount
    setup: Amount = 0.0
    features: Amount = 0.0
    tuning: Amount = 0.0
    training: Amount = 0.0
    secagg: Amount = 0.0
    transport: Amount = 0.0
    evaluation: Amount = 0.0
    verdicts: Amount = 0.0
    baselines: Amount = 0.0


class Trial(Part):
    """One setting that was tried for one arm, with its exact pooled validation accuracy."""

    arm: str
    settings: dict[str, float | int | str]
    accuracy: Fraction
    chosen: bool


class Tuning(Part):
    """How settings were chosen. Every arm had the same number of trials."""

    mark: Literal["tuned non-privately"] = "tuned non-privately"
    trials: tuple[Trial, ...] = Field(min_length=1)


class Config(Part):
    """What was run, and what it takes to run it again."""

    backbone: str
    revision: str
    licence: str
    method: str
    rank: Count
    layers: str = Field(description="which layers carry the adapter: `all`, `last 2 of 6`")
    sites: Count
    task: str = Field(default="text-classification", description="its kind")
    score: str = Field(default="accuracy", description="what every `accuracy` in this file is: the task's score")
    labels: Count
    data: str = Field(description="where the records came from, in words")
    synthetic: bool
    seed: int
    command: str
    device: str = "cpu"
    threads: Count = 1
    engine: str = Field(default="inline", description="how the sites were run: `inline`, `stacked` or `ray`")


class Metrics(Part):
    """One run of one scenario. See the module docstring."""

    schema_version: Literal[1] = 1
    study_digest: Hex32
    scenario: str
    title: str
    rounds: Count
    warnings: tuple[str, ...]
    pooled: Score
    released: Released | None = None
    sites: tuple[SiteMetrics, ...] = Field(min_length=1)
    verdicts: tuple[Verdict, ...] = ()
    baselines: Baselines = Baselines()
    curve: tuple[CurvePoint, ...] = ()
    privacy: PrivacyMetrics
    traffic: Traffic
    seconds: Seconds
    tuning: Tuning | None = None
    software: dict[str, str]
    config: Config

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        ids = [site.id for site in self.sites]
        if len(set(ids)) != len(ids):
            raise ValueError("sites: an id repeats")
        rounds = [point.round for point in self.curve]
        if rounds != sorted(set(rounds)):
            raise ValueError("curve: rounds must rise")
        if not self.privacy.private and not any(text.startswith("NOT PRIVATE") for text in self.warnings):
            raise ValueError("warnings: a run that is not private must say NOT PRIVATE (RULES 15)")
        if self.tuning is not None and TUNED not in self.warnings:
            raise ValueError("warnings: a tuned run must say TUNED NON-PRIVATELY (RULES 10)")
        if self.config.synthetic and SYNTHETIC not in self.warnings:
            raise ValueError("warnings: synthetic data must be called SYNTHETIC")
        return self


def standing_warnings(*, private: bool, synthetic: bool, tuned: bool) -> tuple[str, ...]:
    """Return the warnings that these facts demand, gravest first; a run may add its own after them.

    private     the noise was real and secret (false for seeded noise)
    synthetic   the records were generated
    tuned       settings were chosen on exact validation figures
    """
    demanded = ((not private, NOT_PRIVATE), (synthetic, SYNTHETIC), (tuned, TUNED), (True, SITE_FIGURES))
    return tuple(text for holds, text in demanded if holds)


def write(metrics: Metrics, path: Path) -> None:
    """Write `metrics.json`: keys sorted, one final newline; equal metrics give equal bytes. Raises CSL-513, CSL-514."""
    try:
        text = json.dumps(
            metrics.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
        )
    except ValueError as error:
        raise ConsiliumError(errors.METRICS_INVALID, str(error)) from error
    save(text + "\n", path)


def read(path: Path) -> Metrics:
    """Read what `write` wrote; raises CSL-514 for a missing file, an unknown key or a figure out of range."""
    try:
        return Metrics.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConsiliumError(errors.METRICS_INVALID, f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConsiliumError(errors.METRICS_INVALID, describe(error)) from error
