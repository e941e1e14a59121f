"""`report.html`: one page that a person reads to the end, made from `Metrics` and the `Study` alone.

It stands by itself: no request, no script, style allowed by its hash only, figures as inline SVG. Equal input gives
equal bytes. Whatever comes from outside (titles, sites, columns, the command) is escaped, by Jinja or in `figures`.
It must never compute a result: comparisons are in `findings`, numbers in `metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from client.verdict import Candidate
from common import errors, figures, wording
from common.errors import ConsiliumError
from common.figures import Bar, Mark, Panel, Row, percent
from common.pages import SHARED, both, drawn, environment, size
from common.prose import statement_blocks
from common.study import Study, Unit
from common.task_specs import AnyTask
from common.transfer import RANKED
from simulations import findings
from simulations.metrics import SITE_FIGURES, Metrics, SiteMetrics
from simulations.outputs import save
from simulations.pages import TEMPLATES, Style, sheet

MOST_ROWS = 60
"""Sites drawn in one figure; of more, those that gain most and least."""
OPEN_TABLE = 40
"""Sites in a table that is open from the start."""
METHODS = {
    "ffa-lora": "FFA-LoRA: of each low-rank pair only B trains; A stays as drawn from the study’s public stream",
    "lora": "LoRA: both matrices of each low-rank pair train",
    "rolora": "RoLoRA: the matrices of each low-rank pair train by turns",
    "ia3": "IA3: vectors that scale what linear layers put out",
    "bitfit": "BitFit: biases",
    "layer-norm": "gains and shifts of layer norms",
    "bottleneck": "a small network behind each layer",
    "full": "every weight of the layers",
    "head-only": "the head alone",
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ARMS = {
    "federated": "Together, with privacy",
    "local_only": "Each site alone",
    "federated_nonprivate": "Together, no privacy",
    "centralised_nonprivate": "All records in one place",
}
_WITHIN = ("full", "bitfit", "layer-norm")
"""Methods that train weights of the backbone's own."""
PARTS = ("setup", "features", "tuning", "training", "secagg", "transport", "evaluation", "verdicts", "baselines")


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning in two parts; `calm` if it is true of every simulation."""

    head: str
    rest: str
    calm: bool


def write_report(metrics: Metrics, study: Study, path: Path) -> None:
    """Write the page. Raises CSL-513 if the path cannot be written, CSL-514 if the metrics are of another study."""
    save(render(metrics, study), path)


def render(metrics: Metrics, study: Study) -> str:
    """Return the page; raises CSL-514 if the metrics are of another study."""
    if metrics.study_digest != study.digest:
        raise ConsiliumError(errors.METRICS_INVALID, "the metrics belong to another study")
    style = Style.of(sheet("report.css"), _stamp(metrics))
    sites = findings.sites_by_gain(metrics)
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            metrics=metrics,
            study=study,
            style=style,
            warnings=[_warned(text) for text in metrics.warnings],
            verdict=findings.verdict(metrics),
            evidence=findings.evidence(metrics),
            arms=findings.arms(metrics),
            sites=sites,
            kinds=_kinds(metrics),
            compared=any(findings.site_gain(site) is not None for site in sites),
            subgroups=findings.subgroups(metrics),
            score=_score(metrics),
            Score=_score(metrics).capitalize(),
            scored=wording.scored(study.task),
            chooses=metrics.pooled.macro_f1 is not None,
            task=_task(study.task),
            frozen=study.adapter.method not in _WITHIN,
            candidates=_candidates(metrics),
            objective=f"it {wording.does(study.pretraining.objective)}" if study.pretraining is not None else "",
            trains=_trains(study, metrics.config.layers),
            unit=_unit(study),
            colluders=len(study.roster) // 3,
            statement=tuple(statement_blocks(metrics.privacy.statement)),
            guess=findings.guess_at_best(metrics.privacy.epsilon, metrics.privacy.delta),
            open_table=OPEN_TABLE,
            arms_figure=_arms_figure(metrics),
            sites_figure=_sites_figure(sites, _score(metrics)),
            sites_left_out=max(len(sites) - MOST_ROWS, 0),
            curve_figure=_curve_figure(metrics),
            seconds_figure=_seconds_figure(metrics),
            cell=lambda group: _cell(group, metrics.pooled.accuracy),
        )
    )


def duration(seconds: float) -> str:
    """Print seconds as a person says them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def small(value: float) -> str:
    """Print a probability such as delta: 1e-5 as 10⁻⁵, 0.02 as it is."""
    if value == 0 or value >= 0.001:
        return f"{value:g}"
    digits, power = f"{value:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".")
    raised = "10" + str(int(power)).translate(SUPERSCRIPTS)
    return raised if digits == "1" else f"{digits} × {raised}"


def _templates() -> Environment:
    templates = environment(TEMPLATES, SHARED)
    templates.filters.update(
        percent=percent, signed=findings.signed, size=size, duration=duration, small=small,
        epsilon=findings.epsilon_text, gain=findings.site_gain, count=lambda value: f"{value:,}",
        interval=_interval, long=_long, known=lambda name: (wording.OPTIMIZERS | ARMS).get(name, name),
        wilson=lambda share, count: findings.wilson(share, count), swatch=lambda kind: drawn(figures.swatch(kind)),
    )  # fmt: skip
    return templates


def _score(metrics: Metrics) -> str:
    """What a figure is called in a heading; the page says once in full what the score is."""
    return "accuracy" if findings.is_accuracy(metrics) else "score"


def _task(task: AnyTask) -> str:
    """Say what is learned, from what, among which labels."""
    labels = f": {wording.listed(task.known_labels)}" if task.known_labels else ""
    return f"It {wording.does(task)}{labels}. It reads {wording.reads(task)}"


def _trains(study: Study, layers: str) -> str:
    """Say which weights train; language models and embeddings have no head beside an adapter."""
    adapter, said = study.adapter, METHODS[study.adapter.method]
    if adapter.method == "head-only":
        return said
    if adapter.method in RANKED:
        said += f"; rank {adapter.rank}"
    if adapter.method in ("ffa-lora", "lora", "rolora", "ia3"):
        said += f" on {', '.join(adapter.targets)}"
    said += f" ({layers} layers)"
    if adapter.site_ranks:
        said += f", less at {len(adapter.site_ranks)} of {len(study.roster)} sites"
    return f"{said}; and the head" if wording.has_head(study.task, adapter) else said


def _candidates(metrics: Metrics) -> tuple[str, ...]:
    """Return what any site compared, in the order of their enumeration."""
    there = {standing.candidate for verdict in metrics.verdicts for standing in verdict.decision.standings}
    return tuple(candidate for candidate in Candidate if candidate in there)


def _arms_figure(metrics: Metrics) -> Markup | None:
    rows = []
    for arm in findings.arms(metrics):
        low, high = arm.interval or (None, None)
        marks = [Mark(arm.kind, arm.accuracy, f"{arm.name}: {percent(arm.accuracy)}", low, high)]
        if arm.kind == "local":
            marks[:0] = [
                Mark("each", alone, f"{site.id} alone: {percent(alone)}")
                for site in metrics.sites
                if (alone := site.accuracy_local_only_on_pooled) is not None
            ]
        rows.append(Row(arm.name, tuple(marks), percent(arm.accuracy)))
    beside = ""
    if metrics.released is not None:
        told = metrics.released
        beside = f", interval {_interval((told.low, told.high))}"
        hint = f"released: {percent(told.accuracy)}{beside}"
        mark = Mark("released", told.accuracy, hint, told.low, told.high)
        rows.append(Row("As released, with noise", (mark,), percent(told.accuracy)))
    if len(rows) < 2:
        return None
    said = "; ".join(f"{row.name}: {row.aside}" for row in rows) + beside
    label = f"{_score(metrics).capitalize()} on the pooled test records, by way of training"
    return both(lambda width: figures.dot_plot(rows, width=width, label=label, description=said, guide="federated"))


def _sites_figure(sites: tuple[SiteMetrics, ...], score: str) -> Markup:
    shown = sites if len(sites) <= MOST_ROWS else sites[: MOST_ROWS // 2] + sites[-MOST_ROWS // 2 :]
    rows = [_site_row(site) for site in shown]
    label = f"{score.capitalize()} on each site’s own test records"
    said = "; ".join(", ".join(mark.hint for mark in row.marks) for row in rows) + ". The table below has all figures."
    link = ("local", "federated")
    return both(lambda width: figures.dot_plot(rows, width=width, label=label, description=said, link=link))


def _site_row(site: SiteMetrics) -> Row:
    low, high = findings.wilson(site.accuracy, site.test_examples)
    others = (
        ("centralised", "one place", site.accuracy_centralised),
        ("nonprivate", "together, no privacy", site.accuracy_federated_nonprivate),
        ("local", "alone", site.accuracy_local_only),
    )
    marks = [
        Mark(kind, value, f"{site.id}, {name}: {percent(value)}") for kind, name, value in others if value is not None
    ]
    hint = f"{site.id}, together: {percent(site.accuracy)} of {site.test_examples:,}"
    gained = findings.site_gain(site)
    aside = percent(site.accuracy) if gained is None else findings.signed(gained)
    return Row(site.id, (*marks, Mark("federated", site.accuracy, hint, low, high)), aside)


def _kinds(metrics: Metrics) -> tuple[tuple[str, str], ...]:
    """The marks of the sites' figure, for its legend and its table: those measured at any site."""
    asked = (
        ("local", "alone", [site.accuracy_local_only for site in metrics.sites]),
        ("federated", "together", [site.accuracy for site in metrics.sites]),
        ("nonprivate", "together, no privacy", [site.accuracy_federated_nonprivate for site in metrics.sites]),
        ("centralised", "all in one place", [site.accuracy_centralised for site in metrics.sites]),
    )
    return tuple((kind, name) for kind, name, values in asked if any(value is not None for value in values))


def _curve_figure(metrics: Metrics) -> Markup | None:
    exact = tuple((point.round, point.accuracy) for point in metrics.curve if point.accuracy is not None)
    norms = tuple((point.round, point.update_norm) for point in metrics.curve if point.update_norm is not None)
    rates = tuple((point.round, point.learning_rate) for point in metrics.curve if point.learning_rate is not None)
    if not exact:
        return None
    panels = (
        Panel(f"{_score(metrics)} on validation records", "federated", exact, percent),
        Panel("length of the mean update", "small", norms, lambda value: f"{value:.3g}"),
        Panel("learning rate", "small", rates, lambda value: f"{value:.3g}"),
    )
    best = max(exact, key=lambda point: point[1])
    said = (
        f"From {percent(exact[0][1])} at round {exact[0][0]} to {percent(exact[-1][1])} at round {exact[-1][0]}; "
        f"highest {percent(best[1])} at round {best[0]}."
    )
    label = f"{_score(metrics).capitalize()} on validation records by round"
    return both(lambda width: figures.line_panels(panels, width=width, label=label, description=said))


def _seconds_figure(metrics: Metrics) -> Markup | None:
    spent = metrics.seconds
    named = [(name, getattr(spent, name)) for name in PARTS]
    rest = spent.total - sum(value for _, value in named)
    bars = [Bar(name, value, duration(value)) for name, value in named if value > 0]
    if rest > 0.01 * spent.total:
        bars.append(Bar("other", rest, duration(rest)))
    if not bars:
        return None
    said = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    label = "Seconds by part of the run"
    return both(lambda width: figures.bar_chart(bars, width=width, label=label, description=said))


def _cell(group: findings.SubgroupFinding, overall: float) -> Markup:
    mark = Mark("federated", group.accuracy, f"{group.value}: {percent(group.accuracy)}", group.low, group.high)
    return drawn(figures.cell_interval(mark, (0.0, 1.0), overall))


def _unit(study: Study) -> str:
    if study.privacy.unit is Unit.PATIENT:
        return f"one patient with all their records, of which at most {study.privacy.max_records_per_unit} are used"
    return "one record"


def _warned(text: str) -> Warned:
    head, colon, rest = text.partition(":")
    calm = text == SITE_FIGURES
    return Warned(head, rest.strip(), calm) if colon and head.isupper() else Warned("NOTE", text, calm)


def _stamp(metrics: Metrics) -> str:
    """Return the rule that prints the gravest facts in the margin of every sheet of paper."""
    known = ((not metrics.privacy.private, "NOT PRIVATE"), (metrics.config.synthetic, "SYNTHETIC DATA"))
    facts = [text for holds, text in known if holds]
    if not facts:
        return ""
    return f'@page {{ @top-right {{ content: "{" · ".join(facts)}"; color: #a3151b; font: 700 8pt sans-serif; }} }}\n'


def _interval(pair: tuple[float, float]) -> str:
    return f"{100 * pair[0]:.1f} – {percent(pair[1])}".replace("-", "−")


def _long(name: str) -> bool:
    """Too long for one line of a table."""
    return len(name) > 28
