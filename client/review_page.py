"""A verdict on one page, for people: what is usual in black, what to heed in yellow, what forbids it in red."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.review import Verdict
from common.console import printable
from common.privacy.statement import rounded_up
from common.wording import listed

_LONG = 40


def page(verdict: Verdict) -> RenderableType:
    """Return the page as rich prints it, at any width."""
    allowed = not verdict.violations
    count = len(verdict.violations)
    said = "within this site's policy" if allowed else f"FORBIDDEN in {count} point{'s' if count > 1 else ''}"
    head = Table.grid(expand=True)
    head.add_column(ratio=1, overflow="fold")
    head.add_column(justify="right", no_wrap=True)
    head.add_row(
        Text(printable(verdict.title), style="bold"), Text(said, style="bold green" if allowed else "bold red")
    )
    body = Table.grid(padding=(0, 2), pad_edge=False)
    body.add_column(style="bold", no_wrap=True)
    body.add_column(overflow="fold")
    for heading, lines in _SECTIONS.items():
        for place, line in enumerate(lines(verdict)):
            body.add_row("" if place else heading, Text(printable(line.plain), style=line.style))
    return Group(head, body)


def _study_lines(verdict: Verdict) -> Iterator[Text]:
    yield Text(f"{verdict.digest} ({verdict.state.value})")
    yield Text(f"signed by the operator of site.toml, {verdict.operator}")
    yield Text(f"until {verdict.expires}; for software {verdict.software}, here is {verdict.installed}")


def _purpose_lines(verdict: Verdict) -> Iterator[Text]:
    yield from map(Text, verdict.purpose)
    yield Text(f"“{verdict.statement}”")


def _task_lines(verdict: Verdict) -> Iterator[Text]:
    line = verdict.task
    yield Text(f"{line.kind}: it {line.does}; its score: {line.score}")
    yield Text(f"reads {line.reads}")
    if line.labels:
        yield Text(f"labels: {listed(line.labels)}")
    if line.fields:
        yield Text(f"{len(line.fields)} fields: {listed(line.fields)}")


def _backbone_lines(verdict: Verdict) -> Iterator[Text]:
    line = verdict.backbone
    size = "not on this machine" if line.megabytes is None else f"{line.megabytes:.1f} MB here"
    yield Text(f"{line.name}, revision {line.revision}, from {line.source}; {line.files} file(s), {size}")
    yield Text(f"licence {line.licence}; trained on: {line.training_data}")


def _travel_lines(verdict: Verdict) -> Iterator[Text]:
    line = verdict.travels
    yield Text(line.adapter)
    if line.ranks:
        yield Text(line.ranks)
    yield Text(
        f"{line.rounds} rounds of {line.steps_per_round} steps, {line.charges} charges allowed; "
        f"{line.evaluations} evaluation(s)"
    )
    yield Text(line.training)
    if line.pretraining:
        yield Text(line.pretraining)
    if line.coordinates is None:
        yield Text(f"each coordinate in {line.bits} bits; how many there are is counted with --model")
        return
    up = "cannot be encoded" if line.megabytes_up is None else f"{line.megabytes_up:.2f} MB up"
    yield Text(
        f"{line.coordinates:,} coordinates in {line.bits} bits: {up}, {line.megabytes_down:.2f} MB down in each round"
    )


def _here_lines(verdict: Verdict) -> Iterator[Text]:
    return (Text(said) for said in (verdict.personal, verdict.reference) if said)


def _privacy_lines(verdict: Verdict) -> Iterator[Text]:
    line = verdict.privacy
    epsilon = "cannot be computed" if line.epsilon is None else f"{rounded_up(line.epsilon)} recomputed here"
    yield Text(f"each {line.unit.value}: epsilon {epsilon}, {line.stated:g} stated; delta {line.delta:g}")
    yield Text(
        f"noise {line.noise_multiplier:g} in each step, {line.evaluation_noise_multiplier:g} in each evaluation, "
        "times the most that one can add"
    )
    if line.left is None:
        yield Text(f"account {line.account}: cannot be read, or is not open", style="red")
    else:
        after = "not known" if line.after is None else f"{line.after:.4f}"
        yield Text(
            f"account {line.account}: epsilon {line.left:.4f} left now, {after} after",
            style="red" if line.after is None or line.after < 0 else "",
        )


def _cohort_lines(verdict: Verdict) -> Iterator[Text]:
    line = verdict.cohort
    verified = sum(peer.standing == "verified" for peer in line.peers)
    yield Text(
        f"{len(line.peers)} sites, {verified} of {len(line.peers) - 1} others verified; a sum needs {line.survivors} "
        f"survivors, {line.tolerated} may collude"
    )
    if line.obstacle:
        yield Text(f"this site would not take part yet: {line.obstacle}", style="yellow")
    for peer in line.peers:
        yield Text(
            f"{peer.fingerprint}  {peer.standing:<12}  {peer.site}, band {peer.band:,}",
            style="yellow" if peer.standing == "not verified" else "",
        )


def _heed_lines(verdict: Verdict) -> Iterator[Text]:
    return (Text(line, style="yellow") for line in verdict.concerns)


def _difference_lines(verdict: Verdict) -> Iterator[Text]:
    if verdict.differs_from is None:
        yield Text("no other study may run here")
        return
    yield Text(f"{len(verdict.differences)} fields are not as in {verdict.differs_from[:12]}, the last that may run")
    for one in verdict.differences:
        yield Text(f"{one.field}: {_shown(one.before)} → {_shown(one.after)}")


def _shown(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= _LONG else f"{value[:_LONG]}…"


def _violation_lines(verdict: Verdict) -> Iterator[Text]:
    for one in verdict.violations:
        yield Text(str(one), style="red")
    if not verdict.violations:
        yield Text("none", style="green")


_SECTIONS: Mapping[str, Callable[[Verdict], Iterator[Text]]] = {
    "Study": _study_lines,
    "Purpose": _purpose_lines,
    "Task": _task_lines,
    "Backbone": _backbone_lines,
    "Travels": _travel_lines,
    "Here": _here_lines,
    "Privacy": _privacy_lines,
    "Cohort": _cohort_lines,
    "Heed": _heed_lines,
    "Differs": _difference_lines,
    "Forbidden": _violation_lines,
}
