"""A private count is no number to divide by, to print or to send, for the type checker and at run time alike."""

from __future__ import annotations

import ast
import copy
import json
import operator
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydantic_core
import pytest
import torch
from pydantic import PydanticSchemaGenerationError, TypeAdapter

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
DIVIDING = {"divide", "true_divide", "floor_divide", "div", "div_", "divmod", "reciprocal", "remainder"}
OTHERWISE = ("np.divide(total, n)", "x = torch.div(total, len(rows))", "x = total * len(rows) ** -1", "x = total % n")


@pytest.mark.parametrize("act", [operator.truediv, operator.floordiv, operator.mod, operator.add, operator.mul])
def test_it_takes_part_in_no_arithmetic_on_either_side(act: Callable[[object, object], object]) -> None:
    numbers = (1.0, np.float64(1.0), np.ones(3), torch.ones(3))
    for left, right in (*((number, COUNT) for number in numbers), *((COUNT, number) for number in numbers)):
        with pytest.raises(TypeError):
            act(left, right)


@pytest.mark.parametrize("turn", [int, float, operator.index, json.dumps, bytes, len, list, str, format, print])
def test_it_turns_into_nothing_that_could_be_sent(turn: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        turn(COUNT)


def test_what_a_traceback_shows_withholds_it() -> None:
    assert repr(COUNT) == repr([PrivateCount(7)])[1:-1] == f"{COUNT!r}"
    assert "4711" not in repr(COUNT)


@pytest.mark.parametrize("write", [pydantic_core.to_json, pydantic_core.to_jsonable_python, json.JSONEncoder().encode])
def test_it_is_in_no_message(write: Callable[[object], object]) -> None:
    """A dataclass would be: pydantic writes the fields of any that it meets."""
    with pytest.raises((TypeError, pydantic_core.PydanticSerializationError)):
        write({"units": COUNT})


def test_no_field_of_a_model_holds_it() -> None:
    with pytest.raises(PydanticSchemaGenerationError):
        TypeAdapter(PrivateCount)


@pytest.mark.parametrize(
    "use",
    [bool, hash, pickle.dumps, copy.copy, copy.deepcopy, vars, lambda count: count == 4711, lambda count: count < 9],
)
def test_it_decides_nothing_and_is_neither_compared_nor_copied(use: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        use(COUNT)


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
    """Return what is divided by, in a module; where it is a function that divides, its call."""

    def found() -> Iterator[ast.expr]:
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.BinOp(op=ast.Div() | ast.FloorDiv() | ast.Mod(), right=divisor):
                    yield divisor
                case ast.AugAssign(op=ast.Div() | ast.FloorDiv() | ast.Mod(), value=divisor):
                    yield divisor
                case ast.BinOp(op=ast.Pow(), right=ast.UnaryOp()):
                    yield node
                case ast.Call(func=called) if ast.unparse(called).split(".")[-1] in DIVIDING:
                    yield node

    return {f"({ast.unparse(node)})" if isinstance(node, ast.BinOp) else ast.unparse(node) for node in found()}


@pytest.mark.parametrize("module", COMPUTING)
def test_what_is_divided_by_between_records_and_release_is_public(module: str) -> None:
    found = divisors((ROOT / module).read_text())
    public = {text for text in found if text.replace(".", "").isdigit()}
    assert found - public <= REVIEWED[module]


@pytest.mark.parametrize(
    "planted", ["mean = total / len(rows)", "total /= drawn.size", "x = y // features.unit_count", *OTHERWISE]
)
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
