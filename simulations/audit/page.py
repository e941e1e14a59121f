"""An audit on one page: what was claimed, what was proven, what could have been noticed. Pure functions, no torch.

The page is self-contained HTML with one figure drawn here; every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulations.audit.findings import BOUND_LEVEL, MECHANISM_LEVEL, Audit, Game, MechanismTest
from simulations.figures import Axis, safe, ticks

MARKED = "SIMULATOR ONLY: nothing on this page is released, and no real patient is protected or exposed by it."
_WIDTH, _HEIGHT = 720, 420
_BINS = 41
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1b1f23}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{text-align:right;padding:.3rem .5rem;"
    "border-bottom:1px solid #d0d4d9}td:first-child,th:first-child{text-align:left}.bad{color:#a4262c;font-weight:600}"
    ".good{color:#1e6b3a;font-weight:600}.mark{background:#fff4ce;padding:.5rem}svg{max-width:100%;height:auto}"
)


def page(audit: Audit) -> str:
    """Return the page as HTML."""
    sabotaged = f"<p class=bad>Broken on purpose: {safe(audit.sabotage.value)}.</p>" if audit.sabotage else ""
    faults = "".join(f"<li>{safe(fault)}</li>" for fault in audit.faults)
    notes = "".join(f"<p>{safe(note)}</p>" for note in audit.notes)
    kind = "bad" if audit.faults else "good"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Audit: {safe(audit.title)}</title><style>{_STYLE}</style><h1>Audit: {safe(audit.title)}</h1>"
        f"<p class=mark>{MARKED}</p>{sabotaged}"
        f"<p>{audit.canaries} canary patients among the {audit.patients:,} of {safe(audit.site)}; epsilon "
        f"{audit.epsilon:g} at delta {audit.delta:g} for each {audit.unit.value}, noise {audit.noise_multiplier:g} "
        f"clip norms, sampling rate {audit.sampling_rate:g}, {audit.rounds} rounds.</p>"
        f"<p class={kind}>{safe(audit.verdict).capitalize()}.</p><ul>{faults}</ul>{notes}"
        f"<figure>{figure(audit)}</figure>{_games(audit.games)}{_tests(audit.tests)}{_membership(audit)}"
        f"<p>False alarms: {BOUND_LEVEL:.0%} for both bounds together, {MECHANISM_LEVEL:.0%} for both tests together. "
        "How to read this: docs/audit.md.</p></html>"
    )


def figure(audit: Audit) -> str:
    """Return an SVG: above, the attacker's scores of canaries in and out; below, each bound beside its claim."""
    inside, outside = audit.log_odds_in, audit.log_odds_out
    reach = max((abs(value) for value in (*inside, *outside)), default=1.0) or 1.0
    reach = min(reach, 12.0)
    across = Axis(-reach, reach, 60.0, _WIDTH - 20.0)
    tallest = max(*_counts(inside, reach), *_counts(outside, reach), 1.0)
    up = Axis(0.0, tallest, 210.0, 30.0)
    parts = [
        _text(60, 18, "how sure the attacker is that a canary was in, of each coin of one charge (log odds)"),
        _steps(_counts(outside, reach), across, up, "#7a7a7a", "canaries that were out"),
        _steps(_counts(inside, reach), across, up, "#b3492d", "canaries that were in"),
        *(_text(across.at(mark), 228, f"{mark:g}", anchor="middle") for mark in ticks(-reach, reach, 7)),
        _text(_WIDTH - 20, 48, "in", anchor="end", fill="#b3492d"),
        _text(_WIDTH - 44, 48, "out", anchor="end", fill="#7a7a7a"),
    ]
    longest = max([game.claim for game in audit.games] + [game.bound for game in audit.games] + [1e-6])
    along = Axis(0.0, longest, 170.0, _WIDTH - 60.0)
    for place, game in enumerate(audit.games):
        top = 262.0 + 76.0 * place
        parts += [
            _text(160, top + 18, game.name, anchor="end"),
            _bar(along, game.claim, top, "#c9ced6", f"{game.claim:.3g} claimed"),
            _bar(along, game.bound, top + 28.0, "#b3492d", f"{game.bound:.3g} proven"),
        ]
    said = f"{audit.verdict}; " + "; ".join(
        f"{game.name}: {game.bound:.3g} proven of {game.claim:.3g} claimed" for game in audit.games
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" font-family="sans-serif" font-size="13"><title>Audit</title><desc>{safe(said)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def _counts(values: Sequence[float], reach: float) -> list[float]:
    """Return shares of the values in equal bins over [-reach, reach]; what lies beyond is in the last ones."""
    counts = [0.0] * _BINS
    for value in values:
        place = int((min(max(value, -reach), reach) + reach) / (2.0 * reach) * _BINS) if math.isfinite(value) else 0
        counts[min(place, _BINS - 1)] += 1.0 / len(values)
    return counts


def _steps(counts: Sequence[float], across: Axis, up: Axis, colour: str, hint: str) -> str:
    width = (across.end - across.start) / _BINS
    points = [(across.start, up.at(0.0))]
    for place, count in enumerate(counts):
        points += [(across.start + place * width, up.at(count)), (across.start + (place + 1) * width, up.at(count))]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*points, (across.end, up.at(0.0))])
    return (
        f'<polyline points="{drawn}" fill="{colour}" fill-opacity="0.15" stroke="{colour}" stroke-width="1.5">'
        f"<title>{hint}</title></polyline>"
    )


def _bar(along: Axis, value: float, top: float, colour: str, text: str) -> str:
    width = along.at(value) - along.start
    return (
        f'<rect x="{along.start:.1f}" y="{top:.1f}" width="{max(width, 1.0):.1f}" height="22" fill="{colour}"/>'
        + _text(along.start + max(width, 1.0) + 6.0, top + 16.0, text)
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#1b1f23") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{safe(text)}</text>'


def _games(games: Sequence[Game]) -> str:
    rows = "".join(
        f"<tr><td>{game.name}</td><td>{game.bits:,}</td><td>{game.right} of {game.guesses}</td>"
        f"<td>{game.bound:.3g}</td><td>{game.claim:.3g}</td><td>{game.typical:.3g}</td><td>{game.ideal:.3g}</td>"
        f"<td>{game.noticed:.0%}</td></tr>"
        for game in games
    )
    return (
        "<table><tr><th>game</th><th>coins</th><th>right guesses</th><th>epsilon at least</th><th>claimed</th>"
        "<th>typical bound</th><th>ideal canaries</th><th>would notice a quarter of the noise</th></tr>"
        f"{rows}</table>"
    )


def _tests(tests: Sequence[MechanismTest]) -> str:
    if not tests:
        return ""
    rows = "".join(
        f"<tr><td>{test.name}</td><td>{test.measured:.3f}</td><td>{test.low:.3f} to {test.high:.3f}</td>"
        f"<td>{'below' if test.name == 'noise' else 'above'} {test.notices:.3f}</td>"
        f"<td>{'alarm' if test.alarm else 'none'}</td></tr>"
        for test in tests
    )
    return (
        "<table><tr><th>test of the mechanism</th><th>measured over claimed</th><th>limits</th>"
        f"<th>all but sure to notice</th><th>alarm</th></tr>{rows}</table>"
    )


def _membership(audit: Audit) -> str:
    found = audit.membership
    return (
        f"<p>Membership inference on the released adapter, {found.members} members and {found.others} others: area "
        f"under the curve {found.auc:.3f} (95 %: {found.low:.3f} to {found.high:.3f}; 0.5 is chance), {found.at_1:.1%} "
        f"of members found at 1 % false alarms, {found.at_5:.1%} at 5 %; epsilon at least {found.epsilon:.3g} if "
        "patients were independent trials.</p>"
    )
