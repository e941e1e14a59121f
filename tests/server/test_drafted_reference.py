"""A draft that names public texts becomes a study that says what the backbone makes of them, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConsiliumError
from common.study import Study
from server.config import Backbone
from server.drafting import TEMPLATE, finish, read
from server.enrolment import Admitted
from tests.encoders import write_encoder
from tests.studies import fields

REFERENCE = '[reference]\ndata = "invented, CC0-1.0"\ntexts = "public.txt"\n'
OWN = '[backbone]\nlicence = "Apache-2.0"\ntraining_data = "none: random weights"\n'


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """A draft as the command writes it, on a tiny encoder, with four public texts beside it."""
    write_encoder(tmp_path / "encoder")
    text = TEMPLATE.format(title="notes", sites='"a", "b", "c", "d"').replace("last_layers = 2", "last_layers = 1")
    (tmp_path / "notes.toml").write_text(f"{text}{REFERENCE}{OWN}")
    (tmp_path / "public.txt").write_text("chest pain\nmild cough\n\nno fever\nfall and severe pain\n")
    return tmp_path / "notes.toml"


def finished(draft: Path) -> Study:
    _, operator, keys = fields(4)
    admitted = [
        Admitted(site, identity.public_key.hex(), "", 2000, None)
        for site, identity in zip(("a", "b", "c", "d"), keys.values(), strict=True)
    ]
    source = Backbone.model_validate_json(json.dumps({"folder": str(draft.parent / "encoder")}))
    return finish(read(draft), operator=operator.public_key, admitted=admitted, source=source)


def test_the_study_carries_mean_and_deviation_of_every_feature(draft: Path) -> None:
    reference = finished(draft).reference
    assert reference is not None
    assert reference.data == "invented, CC0-1.0"
    assert len(reference.mean) == len(reference.deviation) == 32
    assert min(reference.deviation) > 0


def test_a_draft_without_a_reference_makes_a_study_without_one(draft: Path) -> None:
    draft.write_text(draft.read_text().replace(REFERENCE, ""))
    assert finished(draft).reference is None


@pytest.mark.parametrize(("content", "code"), [(None, "CSL-102"), (b"\xff\xfe", "CSL-102"), (b"one text\n", "CSL-504")])
def test_texts_that_cannot_be_read_or_are_too_few_are_refused(draft: Path, content: bytes | None, code: str) -> None:
    file = draft.parent / "public.txt"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ConsiliumError, match=code):
        finished(draft)


def test_a_draft_that_is_no_toml_is_refused_with_the_studys_code(draft: Path) -> None:
    draft.write_text("title = ")
    with pytest.raises(ConsiliumError, match="CSL-101"):
        read(draft)
