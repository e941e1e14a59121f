"""Folders with a tiny study's notes and with its encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoders import write_encoder
from tests.simulations.tiny import write_notes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_notes(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder)
    return folder
