"""The engines run one and the same study: the same charges, the same sums, the same refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from common.errors import ConsiliumError
from common.messages import Stage
from common.stopwatch import Stopwatch
from simulations import options
from simulations.authoring import Consortium, privacy_of
from simulations.engines import EntropySource
from simulations.federation import Federation, agree, federate
from simulations.options import Engine
from simulations.preparation import prepare
from simulations.progress import SilentProgress
from simulations.run import run_scenario
from simulations.scenario import Scenario
from simulations.together import Meeting
from tests.encoders import write_encoder
from tests.simulations.kinds import KINDS, scenario_of, write
from tests.simulations.tiny import scenario, write_notes

SEED = 5
# Asked without importing it: Ray reads how it may listen as it is imported.
NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engines")
    write_encoder(made / "encoder")
    write_notes(made)
    return made


def run(
    folder: Path,
    engine: Engine,
    lost: Callable[[Message], bool] = lambda _: False,
    tap: Callable[[Message], None] = lambda _: None,
    **changes: object,
) -> Federation:
    """Run a seeded study of four sites; nothing but the engine differs between two calls."""
    return federated(scenario(folder / "encoder", **changes), folder, engine, lost, tap)


def federated(
    chosen: Scenario,
    folder: Path,
    engine: Engine,
    lost: Callable[[Message], bool] = lambda _: False,
    tap: Callable[[Message], None] = lambda _: None,
) -> Federation:
    """Run a seeded study of a scenario."""
    entropy, progress = EntropySource(SEED), SilentProgress()
    prepared = prepare(chosen, folder, "cpu", progress, Stopwatch())
    consortium = Consortium.draw(tuple(prepared.units), entropy)
    authored = agree(chosen, prepared, privacy_of(chosen), consortium)
    return federate(prepared, authored, consortium, entropy, progress, engine=engine, lost=lost, tap=tap)


def once(stage: Stage, node: int) -> Callable[[Message], bool]:
    """Return a rule by which one node never gets the first message of a stage."""
    seen: list[str] = []

    def lost(message: Message) -> bool:
        if message.metadata.message_type != stage.value or message.metadata.dst_node_id != node or seen:
            return False
        seen.append(stage.value)
        return True

    return lost


@pytest.mark.parametrize("method", ["ffa-lora", "lora", "head-only"])
def test_a_stacked_study_is_the_inline_one_up_to_arithmetic(folder: Path, method: str) -> None:
    adapter = {"method": method, "rank": 2, "alpha": 2.0, "last_layers": 1}
    inline, stacked = (run(folder, engine, adapter=adapter) for engine in (Engine.INLINE, Engine.STACKED))
    assert stacked.authored.study.training == inline.authored.study.training
    assert not [line for log in stacked.logs.values() for line in log.incidents]
    # Rounding to 16 bits may fall the other way where an update differs in its last bits.
    np.testing.assert_allclose(stacked.vector, inline.vector, atol=2e-3)
    assert np.abs(inline.vector - stacked.vector).mean() < 1e-4
    for site, log in inline.logs.items():
        entries = [(entry.stage, entry.instance, entry.total_bytes) for entry in log.egress]
        assert [(entry.stage, entry.instance, entry.total_bytes) for entry in stacked.logs[site].egress] == entries


def test_a_site_that_was_never_asked_is_not_computed_and_the_next_attempt_charges_anew(folder: Path) -> None:
    training = {"rounds": 2, "steps_per_round": 1, "learning_rate": 1.0}
    privacy = {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5, "max_charges": 3}
    inline, stacked = (
        run(folder, engine, once(Stage.FIT, 3), training=training, privacy=privacy)
        for engine in (Engine.INLINE, Engine.STACKED)
    )
    assert [record.attempt for record in stacked.coordinator.outcome.rounds] == [1, 0]
    # In the aborted attempt three sites drew noise and the lost one drew none: only so do both runs stay in step.
    np.testing.assert_allclose(stacked.vector, inline.vector, atol=2e-3)
    for site, log in inline.logs.items():
        assert len(log.egress) == len(stacked.logs[site].egress)


@NEEDS_RAY
def test_a_study_on_ray_is_the_inline_one_bit_for_bit(folder: Path) -> None:
    inline, over_ray = (run(folder, engine) for engine in (Engine.INLINE, Engine.RAY))
    assert np.array_equal(over_ray.vector, inline.vector)
    assert over_ray.coordinator.outcome.rounds == inline.coordinator.outcome.rounds
    for site, log in inline.logs.items():
        sizes = [(entry.stage, entry.instance, entry.attempt, entry.part_bytes) for entry in log.egress]
        assert [(e.stage, e.instance, e.attempt, e.part_bytes) for e in over_ray.logs[site].egress] == sizes
        assert np.array_equal(over_ray.judged[site].scores, inline.judged[site].scores)
    assert over_ray.seconds["training"] > 0


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "pretraining"])
def test_whatever_records_are_ray_gives_the_inline_result_bit_for_bit(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path)
    chosen = scenario_of(kind, tmp_path)
    inline, over_ray = (federated(chosen, tmp_path, engine) for engine in (Engine.INLINE, Engine.RAY))
    assert np.array_equal(over_ray.vector, inline.vector)
    for site, judged in inline.judged.items():
        assert np.array_equal(over_ray.judged[site].scores, judged.scores)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pretraining"])
def test_whatever_records_are_a_stacked_study_is_the_inline_one_up_to_arithmetic(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path)
    chosen = scenario_of(kind, tmp_path, training={"rounds": 2, "steps_per_round": 2, "learning_rate": 1.0})
    inline, stacked = (federated(chosen, tmp_path, engine) for engine in (Engine.INLINE, Engine.STACKED))
    assert not [line for log in stacked.logs.values() for line in log.incidents]
    # Rounding to 16 bits may fall the other way where an update differs in its last bits.
    np.testing.assert_allclose(stacked.vector, inline.vector, atol=2e-3)
    assert np.abs(inline.vector - stacked.vector).mean() < 1e-4


@NEEDS_RAY
def test_ray_listens_on_the_loopback_interface_only_and_ends_with_the_study() -> None:
    from simulations.ray_engine import started

    ray = started()
    try:
        listening = listeners(os.getpid())
        assert len(listening) > 2
        loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
        assert [address for address in listening if not address.startswith(loopback)] == []
    finally:
        ray.shutdown()
    assert not ray.is_initialized()


def test_without_ray_the_engine_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda _: None)
    with pytest.raises(ConsiliumError, match=r"CSL-521.*ray"):
        options.check_engine(Engine.RAY, scenario(folder / "encoder"))


def test_discrete_noise_is_not_stacked(folder: Path) -> None:
    privacy = {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5, "noise": "discrete-gaussian"}
    with pytest.raises(ConsiliumError, match=r"CSL-520.*one by one"):
        options.check_engine(Engine.STACKED, scenario(folder / "encoder", privacy=privacy))


class Phases(SilentProgress):
    """Keeps what a run set about."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def phase(self, name: str, total: int | None = None) -> None:
        self.names.append(name)


def test_a_method_that_cannot_be_stacked_is_refused_before_anything_is_computed(folder: Path, tmp_path: Path) -> None:
    progress = Phases()
    chosen = scenario(folder / "encoder", adapter={"method": "ia3", "last_layers": 1})
    with pytest.raises(ConsiliumError, match=r"CSL-520.*is not in a linear layer"):
        run_scenario(
            chosen,
            folder,
            tmp_path / "out",
            baselines=frozenset(),
            device="cpu",
            threads=1,
            progress=progress,
            engine=Engine.STACKED,
        )
    assert progress.names == []
    assert not (tmp_path / "out").exists()


def test_metrics_name_the_engine_and_count_training_together_once(folder: Path, tmp_path: Path) -> None:
    metrics = run_scenario(
        scenario(folder / "encoder"),
        folder,
        tmp_path / "out",
        baselines=frozenset(),
        device="cpu",
        threads=1,
        progress=SilentProgress(),
        engine=Engine.STACKED,
    )
    assert metrics.config.engine == "stacked"
    assert 0 < metrics.seconds.training < metrics.seconds.total
    assert "engine stacked" in (tmp_path / "out" / "report.html").read_text()


def listeners(root: int) -> set[str]:
    """Return the local addresses, as /proc writes them, on which a process or what it started listens."""
    parents = {
        int(entry.name): int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (entry / "stat").exists()
    }
    mine = {root}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    inodes = set()
    for pid in mine:
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(os.readlink(link))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1])
    return found


class TestMeeting:
    """Calls that ask in their middle, one at a time, answered together."""

    def held(self, calls: int, size: int, leave_out: Sequence[int] = ()) -> tuple[list[str], list[list[int]]]:
        events: list[str] = []
        asked: list[list[int]] = []

        def compute(numbers: Sequence[int]) -> list[int | ConsiliumError]:
            events.append("computed")
            asked.append(list(numbers))
            return [10 * number for number in numbers]

        meeting = Meeting[int, int](compute, size)

        def call(number: int) -> None:
            events.append(f"charged {number}")
            if number in leave_out:
                return
            assert meeting.ask(number) == 10 * number
            events.append(f"masked {number}")

        meeting.hold([lambda number=number: call(number) for number in range(calls)])  # type: ignore[misc]
        return events, asked

    def test_every_call_of_a_chunk_is_charged_before_anything_of_it_is_computed(self) -> None:
        events, _ = self.held(4, 2)
        chunk = ["charged {}", "charged {}", "computed", "masked {}", "masked {}"]
        assert events == [
            line.format(number)
            for first in (0, 2)
            for line, number in zip(chunk, (first, first + 1, 0, first, first + 1), strict=True)
        ]

    def test_what_was_not_asked_for_is_not_computed(self) -> None:
        assert self.held(5, 3, leave_out=(1, 3, 4))[1] == [[0, 2]]

    def test_an_answer_that_is_an_error_is_raised_where_it_was_asked(self) -> None:
        meeting = Meeting[int, int](lambda numbers: [ValueError("no") if n == 1 else n for n in numbers], 3)
        found: list[int | str] = []

        def call(number: int) -> None:
            try:
                found.append(meeting.ask(number))
            except ValueError as error:
                found.append(str(error))

        meeting.hold([lambda: call(0), lambda: call(1), lambda: call(2)])
        assert found == [0, "no", 2]

    def test_a_computation_that_breaks_is_every_askers_failure_and_the_next_chunk_goes_on(self) -> None:
        seen: list[str] = []

        def compute(numbers: Sequence[int]) -> list[int]:
            if 0 in numbers:
                raise RuntimeError("broken")
            return list(numbers)

        meeting = Meeting[int, int](compute, 2)

        def call(number: int) -> None:
            try:
                seen.append(str(meeting.ask(number)))
            except RuntimeError as error:
                seen.append(str(error))

        meeting.hold([lambda number=number: call(number) for number in range(4)])  # type: ignore[misc]
        assert seen == ["broken", "broken", "2", "3"]

    def test_who_asks_outside_of_a_meeting_is_answered_at_once(self) -> None:
        assert Meeting[int, int](lambda numbers: [2 * n for n in numbers], 3).ask(4) == 8

    def test_a_calls_own_exception_ends_the_meeting_after_the_others_have_ended(self) -> None:
        ended: list[int] = []
        meeting = Meeting[int, int](lambda numbers: list(numbers), 3)

        def call(number: int) -> None:
            if number == 0:
                raise KeyError("mine")
            ended.append(meeting.ask(number))

        with pytest.raises(KeyError):
            meeting.hold([lambda: call(0), lambda: call(1), lambda: call(2)])
        assert ended == [1, 2]
