"""The figures of the operator's console, each with a text that says what it shows."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from common.figures import Bar, Mark, Panel, Row, bar_chart, dot_plot, line_panels, percent
from common.pages import both, size
from server.calls import Calls
from server.progress import RoundRecord
from server.studies import Release


def rounds(done: Sequence[RoundRecord]) -> Markup | None:
    """Draw the length of each round's mean update, its sites and its bytes; None for no rounds."""
    if not done:
        return None
    norms = tuple((record.round_index + 1, record.update_norm) for record in done)
    sites = tuple((record.round_index + 1, float(len(record.survivors))) for record in done)
    sent = tuple((record.round_index + 1, float(record.bytes_up + record.bytes_down)) for record in done)
    panels = (
        Panel("length of the mean update", "federated", norms, lambda value: f"{value:.3g}", is_fraction=False),
        Panel("sites in the sum", "small", sites, lambda value: f"{value:.0f}"),
        Panel("bytes, both ways", "small", sent, size),
    )
    said = (
        f"{len(done)} rounds; the length of the mean update went from {norms[0][1]:.3g} to {norms[-1][1]:.3g}, "
        f"with {min(len(record.survivors) for record in done)} to {max(len(record.survivors) for record in done)} "
        "sites in a sum"
    )
    return both(lambda width: line_panels(panels, width=width, label="Rounds", description=said))


def released(releases: Sequence[Release]) -> Markup | None:
    """Draw every released accuracy with its interval; None for none."""
    told = [release for release in releases if release.figure is not None]
    if not told:
        return None
    rows = []
    for release in told:
        assert release.figure is not None
        share, low, high = release.figure
        said = f"released: {percent(share)}, 95% interval {percent(low)} to {percent(high)}"
        rows.append(Row(release.title, (Mark("released", share, said, low, high),), percent(share)))
    words = "; ".join(f"{row.name}: {row.marks[0].hint}" for row in rows)
    return both(lambda width: dot_plot(rows, width=width, label="Released accuracies", description=words))


def calls(found: Calls) -> Markup | None:
    """Draw how many calls there were of each name and status; None for none."""
    if not found.lines:
        return None
    bars = [Bar(f"{line.name} {line.status}", line.count, f"{line.count:,}") for line in found.lines]
    said = ", ".join(f"{bar.name}: {bar.text}" for bar in bars)
    return both(lambda width: bar_chart(bars, width=width, label="Calls of the last day", description=said))
