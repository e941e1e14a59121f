"""Whether what will be clipped is really each example's own gradient, asked before the first private step.

The actual model and the actual losses of a study are examined, every time, on invented records of the right shape.
Nothing here reads a site's data, so that refusing tells nothing of them (RULES 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from client.examination import PreflightReport, compare, examine, shake
from common.adapters import AdaptedModel
from common.tasks import Task

_LENGTHS = (6, 16, 9, 12, 5)
"""Tokens of the invented records, where they have any; at least three, of which the last only replaces others."""


def check(model: AdaptedModel) -> PreflightReport:
    """Examine a study's model and losses as they will be used, on invented records of different lengths.

    Beyond :func:`client.examination.examine`, each example is also run alone without padding, since the length to which
    it is padded depends on its neighbours, and through the frozen prefix; all of it for each set of parameters that a
    round of the study trains. Raises CSL-330 naming the layer. Returns the worst of what was measured.
    """
    reports = []
    for round_index in model.phases():
        with model.in_round(round_index):
            reports.append(_of_phase(model, model.objective if model.is_pretraining(round_index) else None))
    worst = max(reports, key=lambda report: report.worst_error)
    return replace(
        worst,
        parameters=model.names,
        dimension=model.dimension,
        worst_leak=max(report.worst_leak for report in reports),
    )


def _of_phase(model: AdaptedModel, objective: Task | None) -> PreflightReport:
    """Examine the parameters that train now under the study's loss, or under that of an objective before it."""
    task, device = model.task if objective is None else objective, model.device
    made = task.invented(_LENGTHS)

    def batch(rows: slice) -> tuple[Tensor, ...]:
        inputs, mask = task.pad(made.inputs[rows])
        targets = torch.from_numpy(made.targets[rows])
        own = targets if task.pools else targets[:, : mask.shape[1]]
        numbers = () if made.numbers is None else (torch.from_numpy(made.numbers[rows]),)
        return tuple(part.to(device) for part in (inputs, mask, own, *numbers))

    def behind(hidden: Tensor, mask: Tensor, targets: Tensor, numbers: Sequence[Tensor]) -> Tensor:
        return task.loss(model.suffix(hidden, mask, *numbers, objective=objective), targets)

    def direct(found: nn.Module, inputs: Tensor, mask: Tensor, targets: Tensor, *numbers: Tensor) -> Tensor:
        assert found is model
        return behind(model.run_through(inputs, mask), mask, targets, numbers)

    whole, start = batch(slice(None)), model.read_vector()
    try:
        # All of the vector: a factor that rests at zero in this round would hide the other one's gradient.
        shake([(name, model.get_parameter(name)) for name in model.names])
        report = examine(model, direct, whole, parameters=model.trainable())
        with torch.no_grad():
            losses = direct(model, *whole)
            inputs, mask, targets, *numbers = whole
            parts = behind(model.prefix(inputs, mask), mask, targets, numbers)
            compare("the frozen prefix and the layers behind it", parts, losses)
            for row in range(len(made)):
                alone = direct(model, *batch(slice(row, row + 1)))
                compare(
                    "padding: an example's loss depends on how long its neighbours are", alone, losses[row : row + 1]
                )
    finally:
        model.write_vector(start)
    return report
