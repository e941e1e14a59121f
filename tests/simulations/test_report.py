from __future__ import annotations

import base64
import hashlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.figures import percent
from common.pages import size
from common.privacy.statement import statement
from common.prose import statement_blocks
from common.study import Study
from simulations import findings
from simulations.metrics import Metrics
from simulations.pages import TEMPLATES
from simulations.report import duration, render, small, write_report
from tests.simulations.pages import Page
from tests.simulations.runs import run, study

HOSTILE = (
    "<script>alert('x')</script><img src=https://evil.example/p.png onerror=alert(2)>\" onload=\"alert(3) & {{ 7*7 }}"
)


@pytest.fixture(scope="module")
def agreed() -> Study:
    return study()


@pytest.fixture(scope="module")
def metrics(agreed: Study) -> Metrics:
    return run(agreed)


@pytest.fixture(scope="module")
def page(metrics: Metrics, agreed: Study) -> Page:
    return Page(render(metrics, agreed))


def unusual() -> dict[str, tuple[Metrics, Study]]:
    """Runs at the edges of what a report meets."""
    plain, many, hostile = study(), study(120), study(4, title=HOSTILE, purpose={"statement": HOSTILE})
    regression = {"kind": "regression", "low": 0.0, "high": 10.0, "max_tokens": 64}
    shares = study(task=regression, pretraining={"rounds": 3})
    names = (HOSTILE, "H" * 300, "x\u202etxt.exe\x00", "ok")
    return {
        "bare": (run(plain, baselines=False, released=False, tuned=False, private=True, synthetic=False), plain),
        "many": (run(many), many),
        "hostile": (run(hostile, names=names, title=HOSTILE, command=HOSTILE), hostile),
        "shares": (run(shares, judged=True), shares),
        "no curve": (run(plain).model_copy(update={"curve": ()}), plain),
    }


UNUSUAL = unusual()


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_page_stands_by_itself(name: str) -> None:
    html = render(*UNUSUAL[name])
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.tags:
        assert not {key for key in attributes if key.startswith("on") or key in {"src", "style", "srcset", "action"}}
        assert attributes.get("href", "#").startswith("#")
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|expression|https?:", style)


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_tag_is_closed_in_order(name: str) -> None:
    page = Page(render(*UNUSUAL[name]))
    assert not page.misnested
    assert not page.left_open


def test_only_our_own_style_is_allowed_to_apply(metrics: Metrics, agreed: Study) -> None:
    html = render(metrics, agreed)
    style = html[html.index("<style>") + len("<style>") : html.index("</style>")]
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(
        attributes["content"]
        for tag, attributes in Page(html).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"


def test_hostile_strings_are_shown_and_never_markup() -> None:
    html = render(*UNUSUAL["hostile"])
    page = Page(html)
    assert HOSTILE in page.text
    assert "<script" not in html
    assert "\u202e" not in html
    assert "\x00" not in html
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in Page(render(run(study()), study())).tags}


def test_every_figure_has_a_text_alternative(page: Page) -> None:
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len([figure for figure in figures if figure.get("role") == "img"]) >= 6
    for figure in figures:
        assert figure.get("aria-hidden") == "true" or (figure["role"] == "img" and figure["aria-label"])
    assert sum(tag == "desc" for tag, _ in page.tags) == sum(figure.get("role") == "img" for figure in figures)


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_page_can_be_walked_by_headings_captions_and_links(name: str) -> None:
    page = Page(render(*UNUSUAL[name]))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(table.caption for table in page.tables)
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identities)) == len(identities)
    targets = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    labels = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert targets | labels <= set(identities)


def test_the_arms_on_the_page_are_those_of_the_metrics(page: Page, metrics: Metrics) -> None:
    told, base = page.table("arms"), metrics.baselines
    assert base.majority
    assert base.local_only
    assert base.federated_nonprivate
    assert base.centralised_nonprivate
    assert metrics.released
    shown = {row[0].text.replace("\u00a0", " "): row[1] for row in told.rows[1:]}
    expected = {
        "Most frequent label": base.majority.accuracy,
        "Each site alone (mean)": base.local_only.accuracy,
        "Together, ε = 8": metrics.pooled.accuracy,
        "Together, no privacy": base.federated_nonprivate.accuracy,
        "All records in one place": base.centralised_nonprivate.accuracy,
        "As released": metrics.released.accuracy,
    }
    assert {name: cell.values for name, cell in shown.items()} == {name: [value] for name, value in expected.items()}
    assert {name: cell.text for name, cell in shown.items()} == {n: f"{100 * v:.1f}%" for n, v in expected.items()}


@pytest.mark.parametrize("name", ["many", "bare"])
def test_the_sites_on_the_page_are_those_of_the_metrics(name: str) -> None:
    metrics, agreed = UNUSUAL[name]
    table = Page(render(metrics, agreed)).table("site-table")
    assert len(table.rows) == len(metrics.sites) + 1
    for site in metrics.sites:
        row = table.row(site.id)
        expected = [
            site.accuracy_local_only, site.accuracy, site.accuracy_federated_nonprivate, site.accuracy_centralised,
            site.accuracy_local_only_on_pooled, site.macro_f1, site.epsilon,
        ]  # fmt: skip
        assert [value for cell in row for value in cell.values] == [value for value in expected if value is not None]
        assert [cell.text for cell in row[1:4]] == [
            f"{site.units:,}",
            f"{site.train_examples:,}",
            f"{site.test_examples:,}",
        ]
        gained = findings.site_gain(site)
        if gained is not None:
            assert table.column("Gain, points")[table.rows.index(row) - 1].text == findings.signed(gained)


def test_the_guarantee_on_the_page_is_that_of_the_metrics(page: Page, metrics: Metrics) -> None:
    told, privacy = page.table("guarantee"), metrics.privacy
    expected = {
        "ε": privacy.epsilon,
        "δ": privacy.delta,
        "Noise multiplier σ": privacy.noise_multiplier,
        "Sampling rate q": privacy.sampling_rate,
        "Steps accounted for": privacy.steps,
        "Clip norm": privacy.clip_norm,
        "Noise on evaluation counts": privacy.evaluation_noise_multiplier,
    }
    assert {name: told.row(name)[1].values for name in expected} == {name: [value] for name, value in expected.items()}
    assert told.row("Accountant")[1].text == privacy.accountant


def test_traffic_and_seconds_on_the_page_are_those_of_the_metrics(page: Page, metrics: Metrics) -> None:
    traffic = metrics.traffic
    assert {
        traffic.bytes_up_per_site_round, traffic.bytes_down_per_site_round, traffic.vector_parameters,
        traffic.messages, metrics.seconds.total,
    } <= {value for _, value in page.figures}  # fmt: skip
    assert "55.3 kB" in page.text
    assert "2 min 51 s" in page.text


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_figure_shown_is_its_unrounded_value_in_print(name: str) -> None:
    prints = (percent, size, duration, small, findings.epsilon_text, "{:,.0f}".format, "{:.4g}".format, str)
    for shown, value in Page(render(*UNUSUAL[name])).figures:
        assert shown in {show(value) for show in prints}, (shown, value)


@pytest.mark.parametrize("name", UNUSUAL)
def test_no_figure_is_shown_that_is_neither_in_the_metrics_nor_pooled_from_them(name: str) -> None:
    metrics, agreed = UNUSUAL[name]
    known = set(numbers(metrics.model_dump(mode="json")))
    known |= {n for groups in findings.subgroups(metrics).values() for g in groups for n in (g.accuracy, g.examples)}
    assert {value for _, value in Page(render(metrics, agreed)).figures} <= known


def test_subgroups_stand_on_the_page_pooled_over_sites(page: Page, metrics: Metrics) -> None:
    tables = [table for table in page.tables if table.identity == "subgroup"]
    assert [table.caption.split(":")[0] for table in tables] == ["age", "interpreter"]
    for table, groups in zip(tables, findings.subgroups(metrics).values(), strict=True):
        for group in groups:
            assert table.row(group.value)[1].values == [group.examples]
            assert table.row(group.value)[2].values == [group.accuracy]


def test_every_trial_of_the_tuning_is_shown_and_marked(page: Page, metrics: Metrics) -> None:
    assert metrics.tuning
    assert "Tuned non-privately." in page.text
    assert [cell.values for cell in page.table("trials").column("Validation accuracy")] == [
        [trial.accuracy] for trial in metrics.tuning.trials
    ]
    assert [cell.text for cell in page.table("trials").column("Way of training")] == [
        "Together, with privacy", "Together, with privacy", "Each site alone",
    ]  # fmt: skip


def test_warnings_stand_before_every_figure_and_none_is_lost(metrics: Metrics, agreed: Study) -> None:
    html = render(metrics, agreed)
    text = Page(html).text
    for warning in metrics.warnings:
        head, _, rest = warning.partition(":")
        assert 0 < text.index(head) < text.index(rest.strip()) < text.index("Verdict")


def test_a_run_without_privacy_says_so_in_its_title_at_its_guarantee_and_on_every_sheet_of_paper() -> None:
    agreed = study()
    seeded, real = render(run(agreed), agreed), render(run(agreed, private=True, synthetic=False), agreed)
    for sign in ("<title>NOT PRIVATE", "This run was not private", 'content: "NOT PRIVATE · SYNTHETIC DATA"'):
        assert sign in seeded
        assert sign not in real


def test_what_was_not_measured_is_not_shown() -> None:
    page = Page(render(*UNUSUAL["bare"]))
    assert "Nothing about quality was released" in page.text
    assert "Gain, points" not in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.split()


def test_the_page_says_what_was_agreed(page: Page, agreed: Study) -> None:
    for said in (
        agreed.purpose.statement, agreed.backbone.name, agreed.backbone.licence, agreed.backbone.revision,
        agreed.backbone.training_data, "26,124 parameters", "(last 2 of 6 layers)",
        "one patient with all their records, of which at most 4",
        "No sum of fewer than 3 of the 4 sites", agreed.digest, "a hospital’s client refuses it",
    ):  # fmt: skip
        assert said in page.text


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"server_optimizer": "fedmomentum", "server_momentum": 0.7}, "FedAvg with momentum 0.7 at the server"),
        ({"server_optimizer": "fedyogi"}, "; FedYogi at the server"),
        ({"proximal": 0.25}, "(cosine), pulled to the round’s start by 0.25; FedAvg at the server"),
    ],
)
def test_the_page_names_the_optimiser_by_its_name_in_the_papers(training: dict[str, object], said: str) -> None:
    agreed = study(training={"rounds": 20, "steps_per_round": 8, **training})
    assert said in Page(render(run(agreed), agreed)).text


def test_a_score_that_is_no_accuracy_is_never_called_one() -> None:
    page = Page(render(*UNUSUAL["shares"]))
    assert "accuracy" not in page.text.lower()
    assert "Macro F1" not in page.text
    said = (
        "It predicts a number from 0 to 10 for a text. It reads texts, up to 64 tokens of each",
        "The score is closeness: one less the error in parts of the distance from 0 to 10, the mean over records.",
        "the federated model scores 87.3%",
        "The first 3 rounds learn without labels: it predicts masked tokens of a text, 15% of them",
        "4 sites, 20 rounds, regression; scenario",
    )
    for sentence in said:
        assert sentence in page.text
    bare = run(UNUSUAL["shares"][1], baselines=False, released=False)
    assert "scores 87.3% on the pooled test" in Page(render(bare, UNUSUAL["shares"][1])).text


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (
            {"method": "bottleneck", "rank": 4},
            "a small network behind each layer; rank 4 (last 2 of 6 layers); and the",
        ),
        ({"method": "full", "last_layers": 1}, "every weight of the layers (last 2 of 6 layers); and the head: 26,124"),
        ({"method": "head-only"}, "the head alone: 26,124 parameters"),
        ({"method": "ia3", "targets": ["key"]}, "put out on key (last 2 of 6 layers); and the head"),
        ({"method": "ffa-lora", "site_ranks": {"site-000": 1}}, "less at 1 of 4 sites; and the head"),
    ],
)
def test_the_page_says_what_trains(adapter: dict[str, object], said: str) -> None:
    agreed = study(adapter=adapter)
    text = Page(render(run(agreed), agreed)).text
    assert said in text
    assert ("licence Apache-2.0, frozen" in text) == (adapter["method"] != "full")


def test_the_sites_verdicts_stand_apart_and_are_marked() -> None:
    metrics, agreed = UNUSUAL["shares"]
    page = Page(render(metrics, agreed))
    assert "SIMULATOR ONLY. Did the transfer help here?" in page.text
    table = page.table("verdict-table")
    assert [verdict.decision.outcome for verdict in metrics.verdicts] == ["helped", "harmed", "undecided", "helped"]
    for verdict in metrics.verdicts:
        row = table.row(verdict.id)
        assert row[1].text == f"{verdict.units}{' test' if verdict.side == 'test' else ''}"
        assert [cell.values for cell in row[2:5]] == [
            [verdict.mean(candidate)] for candidate in ("shared", "backbone only", "local only")
        ]
        assert [cell.text for cell in row[6:]] == [verdict.decision.outcome, verdict.decision.keep]
    assert [cell.text == "–" for cell in table.column("Personalised")] == [False, False, False, True]
    plain = study()
    assert "own verdicts" not in Page(render(run(plain), plain)).text


def test_of_many_sites_the_figure_shows_the_extremes_and_the_table_all() -> None:
    metrics, agreed = UNUSUAL["many"]
    html = render(metrics, agreed)
    assert "of 120 sites the 30 that gain most and as many that gain least" in html
    assert html.count("<details>") == 1
    assert len(Page(html).table("site-table").rows) == 121


def test_equal_metrics_give_an_equal_page(metrics: Metrics, agreed: Study) -> None:
    assert render(metrics, agreed) == render(run(study()), study())


def test_metrics_of_another_study_are_refused(metrics: Metrics, tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="CSL-514"):
        write_report(metrics, study(title="Another"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_a_coded_error(metrics: Metrics, agreed: Study, tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="CSL-513"):
        write_report(metrics, agreed, tmp_path / "absent" / "report.html")


def test_the_statement_keeps_its_headings_lists_and_emphasis() -> None:
    text = (
        "# One <b>\nsaid **so** in `code`\n\n- first\n  goes on\n- second\nand on\n\n"
        "## Two\n| a | b & c |\n| - | -: |\n| 1 | 2 |\n\nlast\nline"
    )
    *others, table, last = statement_blocks(text)
    blocks = [(block.kind, [str(line) for line in block.lines]) for block in (*others, last)]
    assert blocks == [
        ("heading", ["One &lt;b&gt;"]),
        ("paragraph", ["said <strong>so</strong> in <code>code</code>"]),
        ("items", ["first goes on", "second and on"]),
        ("subheading", ["Two"]),
        ("paragraph", ["last line"]),
    ]
    assert (table.kind, table.lines, table.rows) == ("table", ("Two",), (("a", "b &amp; c"), ("1", "2")))


def test_the_statement_of_the_house_leaves_no_markdown_on_the_page() -> None:
    agreed = study()
    metrics = run(agreed)
    told = metrics.privacy.model_copy(update={"statement": statement(agreed)})
    text = Page(render(metrics.model_copy(update={"privacy": told}), agreed)).text
    shown = text[text.index("Privacy statement") : text.index("What left each site, and")]
    assert "What is not promised" in shown
    assert not re.search(r"\*\*|^#|\|", shown, re.M)


@given(text=st.text(alphabet=st.characters(), max_size=60) | st.text(alphabet="*`#-<>|&\n ab", max_size=60))
def test_no_statement_can_write_markup_of_its_own(text: str) -> None:
    for block in statement_blocks(text):
        for line in (*block.lines, *(cell for row in block.rows for cell in row)):
            assert not re.search(r"<(?!/?(strong|code)>)", str(line))


def numbers(tree: object) -> Iterator[float]:
    """Every number in parsed JSON."""
    if isinstance(tree, dict | list):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(branch)
    elif isinstance(tree, int | float):
        yield float(tree)


def contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_and_marks_can_be_told_from_the_paper_in_light_and_in_dark() -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for marks (1.4.11)."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    light, dark = schemes[0], schemes[1]
    for colours in (light, dark):
        for ground in ("paper", "panel", "alarm-paper"):
            for text in ("ink", "soft", "alarm"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for mark in ("federated", "local", "nonprivate", "centralised", "majority"):
            assert contrast(colours[mark], colours["paper"]) >= 4.5, mark


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (55_312, "55.3 kB"),
        (999_900, "1.00 MB"),
        (2.5e9, "2.50 GB"),
    ],
)
def test_sizes_are_printed_with_three_digits(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.4, "119 s"), (171.3, "2 min 51 s"), (7325, "2 h 02 min")],
)
def test_durations_are_printed_as_said(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(1e-5, "10⁻⁵"), (2.5e-6, "2.5 × 10⁻⁶"), (0.02, "0.02"), (0.0, "0")])
def test_small_probabilities_are_printed_as_powers(value: float, text: str) -> None:
    assert small(value) == text


def test_a_report_needs_no_machine_learning_library() -> None:
    code = "import sys, simulations.report; print({'torch', 'transformers', 'peft', 'opacus'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
