"""Tiny checkpoints of every family, made once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.backbone import Backbone, load
from tests.encoders import write_encoder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    """Return a function from a family to its tiny backbone."""
    made: dict[str, Backbone] = {}

    def backbone(family: str) -> Backbone:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = load(folder, write_encoder(folder, family, layers=2))
        return made[family]

    return backbone
