"""An operator sends what it likes instead of a backbone: no file that is not the manifest's ever gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.fetching import Cache
from common.chunks import Place
from common.errors import ConsiliumError
from common.study import BackboneManifest, Study
from tests.studies import fields

FILES = {"config.json": b"{}", "model.safetensors": b"0123456789", "tokenizer.json": b"", "onnx/vocab.txt": b"words"}
LONGEST = 16
MANIFEST = BackboneManifest(
    name="tiny",
    source="tests",
    revision="1",
    licence="Apache-2.0",
    training_data="none",
    files={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
)
SENT = st.tuples(
    st.none() | st.builds(Place, st.integers(0, 5), st.integers(0, LONGEST)),
    st.integers(0, LONGEST),
    st.binary(max_size=LONGEST),
    st.booleans(),
)
"""A place, or None for the one that is asked for; a size; bytes; and whether the truth is sent instead of both."""


@given(sent=st.lists(SENT, max_size=40))
def test_only_right_files_have_names_and_nothing_lies_beside_the_folder(
    sent: list[tuple[Place | None, int, bytes, bool]],
) -> None:
    names = sorted(FILES)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "cache"
        cache = Cache(folder, MANIFEST)
        for place, size, chunk, honest in sent:
            at = place or cache.need or Place(0, 0)
            if honest and at.file < len(names):
                whole = FILES[names[at.file]]
                size, chunk = len(whole), whole[at.offset :]
            with contextlib.suppress(ConsiliumError):
                cache.add(at, size, chunk)
            found = [path for path in Path(home).rglob("*") if path.is_file()]
            parts = [path for path in found if path.name.startswith(".")]
            assert all(path.read_bytes() == FILES[str(path.relative_to(folder))] for path in found if path not in parts)
            assert len(parts) <= 1
            assert sum(path.stat().st_size for path in parts) <= LONGEST
            # Whoever starts anew asks for the very same.
            assert Cache(folder, MANIFEST).need == cache.need


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/config.json", "a/../../vocab.txt", ".0.part", "a//vocab.txt", "a\\vocab.txt", ""]
)
def test_no_study_names_a_file_elsewhere(name: str) -> None:
    raw, _, _ = fields(backbone={"files": {name: "0" * 64}})
    with pytest.raises(ConsiliumError) as caught:
        Study.from_fields(raw)
    assert caught.value.code == "CSL-102"
