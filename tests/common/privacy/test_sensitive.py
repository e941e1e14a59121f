"""A private count is no number to divide by, to print or to send, for the type checker and at run time alike."""

from __future__ import annotations

import ast
import json
import logging
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.privacy.sensitive import PrivateCount

ROOT = Path(__file__).resolve().parents[3]
COUNT = PrivateCount(4711)
COMPUTING = (
    "client/training/step.py",
    "client/training/loop.py",
    "client/training/sampler.py",
    "client/evaluation.py",
    "client/workload.py",
)
REVIEWED = {
    # The last is for how many rows are held at once.
    "client/training/step.py": {
        "plan.divisor",
        "norms.clamp(min=clip_norm)",
        "norms.clamp(min=clip)",
        "grid.step",
        "max(1, dimension)",
    },
    "client/training/loop.py": {"(training.rounds * training.steps_per_round)"},
    "client/training/sampler.py": set[str](),
    # A unit's own records; the fixed-point scale; what was released, noised and summed over sites.
    "client/evaluation.py": {"np.maximum(records, 1)", "EVALUATION_SCALE", "weight", "square"},
    "client/workload.py": set[str](),
}
"""Every divisor on the way from records to what leaves. A new one is read by a person before it stands here."""


@pytest.mark.parametrize("act", [operator.truediv, operator.floordiv, operator.mod, operator.add, operator.mul])
def test_it_takes_part_in_no_arithmetic_on_either_side(act: Callable[[object, object], object]) -> None:
    for left, right in ((1.0, COUNT), (COUNT, 1.0), (COUNT, COUNT)):
        with pytest.raises(TypeError):
            act(left, right)


@pytest.mark.parametrize("turn", [int, float, operator.index, json.dumps, bytes, len, list])
def test_it_turns_into_nothing_that_could_be_sent(turn: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        turn(COUNT)


def test_its_number_is_in_no_text(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("consilium").warning("%s %r", COUNT, COUNT)
    for text in (str(COUNT), repr(COUNT), f"{COUNT}", f"{[COUNT]}", caplog.text):
        assert "4711" not in text


def test_on_site_it_is_the_number() -> None:
    assert COUNT.on_site() == 4711


def test_dividing_by_it_is_an_error_to_the_type_checker(tmp_path: Path) -> None:
    program = tmp_path / "divides.py"
    program.write_text(
        "from common.privacy.sensitive import PrivateCount\n"
        "count = PrivateCount(3)\n"
        "mean = 1.0 / count\n"
        "text = count + 1\n"
        "fine = count.on_site() + 1\n"
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path), program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.split(":")[1] for line in checked.stdout.splitlines() if "[operator]" in line]
    assert found == ["3", "4"], checked.stdout + checked.stderr


def divisors(source: str) -> set[str]:
    """Return what is divided by, in a module."""
    found = [
        node.right if isinstance(node, ast.BinOp) else node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div | ast.FloorDiv)
    ]
    return {f"({ast.unparse(node)})" if isinstance(node, ast.BinOp) else ast.unparse(node) for node in found}


@pytest.mark.parametrize("module", COMPUTING)
def test_what_is_divided_by_between_records_and_release_is_public(module: str) -> None:
    found = divisors((ROOT / module).read_text())
    public = {text for text in found if text.replace(".", "").isdigit()}
    assert found - public <= REVIEWED[module]


@pytest.mark.parametrize("planted", ["mean = total / len(rows)", "total /= drawn.size", "x = y // features.unit_count"])
def test_a_planted_private_divisor_is_found(planted: str) -> None:
    for module in COMPUTING:
        assert not divisors(planted) <= REVIEWED[module]


def test_nothing_is_averaged_on_the_way() -> None:
    """``mean`` divides by a count that nobody sees."""
    for module in COMPUTING:
        calls = {
            node.func.attr
            for node in ast.walk(ast.parse((ROOT / module).read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not calls & {"mean", "average", "nanmean"}
