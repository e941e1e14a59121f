"""A policy under which the studies of the tests may run, and a hospital's file that holds it."""

from __future__ import annotations

import json
from typing import get_args

from common.task_specs import TaskKind
from common.transfer import Method

TASKS, METHODS = json.dumps(get_args(TaskKind)), json.dumps(get_args(Method))
OPEN = f"""
[policy]
purposes = ["DUO:0000042"]
licences = ["Apache-2.0"]
max_epsilon = 20.0
max_delta = 1e-4
min_noise_multiplier = 0.5
unit = "record"
min_cohort = 3
min_band = 1
min_patients = 1
max_rounds = 1000
tasks = {TASKS}
methods = {METHODS}
pretraining = true
blocks = true
hours = ["00:00-24:00"]
manual_rounds = false
"""
