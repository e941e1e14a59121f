"""What every test run needs before the first heavy import: offline, single-threaded and without telemetry.

The environment is set here, at import, because flwr and transformers read it when they are loaded. Torch itself is not
imported: tests of the light modules must not pay for it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
# Torch takes its thread count from these when it starts; one thread a test process keeps two cores usable.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what reads the public data sets where they are not beside the checkout."""
    if REAL_DATA.is_dir():
        return
    absent = pytest.mark.skip(reason=f"the public data sets are not beside the checkout (no {REAL_DATA})")
    for item in items:
        if "realdata" in item.keywords:
            item.add_marker(absent)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the public data sets (only for tests marked ``realdata``)."""
    return REAL_DATA
