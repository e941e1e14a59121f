"""A draft of every kind of task becomes a study, with the manifest of whatever backbone and the blocks of its ranks."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from client.preparing import adapted
from common.adapters import ranks, shapes_of
from common.errors import ConsiliumError
from common.study import Kind, Study
from common.transfer import Method
from common.ways import TASKS
from server.drafting import TEMPLATE, finish, read
from server.enrolment import Admitted
from tests.modalities import Checkpoint, checkpoint
from tests.studies import fields
from tests.ways.records import spec_of

SITES = ("a", "b", "c", "d", "e", "f")
FAMILIES = {"causal-language-modelling": "gpt2", "image-classification": "vit", "audio-classification": "wav2vec2"}
OWN = {"licence": "Apache-2.0", "training_data": "none: random weights"}
PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
Tiny = Callable[[str], Checkpoint]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    made: dict[str, Checkpoint] = {}

    def of(family: str) -> Checkpoint:
        if family not in made:
            made[family] = checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return of


def plain() -> dict[str, object]:
    """Return the draft that the command writes, for a backbone of one's own."""
    return {**tomllib.loads(TEMPLATE.format(title="notes", sites=json.dumps(SITES)[1:-1])), "backbone": OWN}


def toml(value: object) -> str:
    """Write a parsed value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def finished(folder: Path, draft: dict[str, object], backbone: Checkpoint) -> Study:
    text = "\n".join(f"{key} = {toml(value)}" for key, value in draft.items())
    (folder / "draft.toml").write_text(text, encoding="utf-8")
    _, operator, keys = fields(len(SITES))
    admitted = [
        Admitted(site, identity.public_key.hex(), "", 2000, None)
        for site, identity in zip(SITES, keys.values(), strict=True)
    ]
    return finish(read(folder / "draft.toml"), operator=operator.public_key, admitted=admitted, source=backbone.source)


@pytest.mark.parametrize("task", TASKS)
def test_a_draft_of_every_task_finishes(tmp_path: Path, tiny: Tiny, task: str) -> None:
    backbone = tiny(FAMILIES.get(task, "bert"))
    spec = spec_of(task, backbone.family)
    draft = {**plain(), "task": spec.model_dump(mode="json", exclude_none=True), "adapter": {"last_layers": 1}}
    study = finished(tmp_path, draft, backbone)
    assert (study.kind, study.task) == (Kind.DEPLOYMENT, spec)
    assert ("tokenizer.json" in study.backbone.files) == (spec.content in ("text", "fields"))
    assert ("preprocessor_config.json" in study.backbone.files) == (spec.content in ("image", "audio"))
    assert adapted(study, backbone.folder).dimension > 0
    assert Study.from_canonical(study.canonical()) == study


def test_ranks_of_a_draft_become_the_blocks_that_sites_look_for(tmp_path: Path, tiny: Tiny) -> None:
    backbone = tiny("bert")
    draft = {**plain(), "adapter": {"rank": 4, "last_layers": 1, "site_ranks": {"b": 2}}}
    study = finished(tmp_path, draft, backbone)
    assert study.aggregation.blocks == ranks.blocks(study.adapter, shapes_of(adapted(study, backbone.folder)), SITES)
    assert [(block.name, block.sites) for block in study.aggregation.blocks] == [
        ("rank-3-to-4", ("a", "c", "d", "e", "f"))
    ]


def test_a_draft_that_ranks_a_site_it_does_not_name_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    draft = {**plain(), "adapter": {"rank": 4, "last_layers": 1, "site_ranks": {"nobody": 2}}}
    with pytest.raises(ConsiliumError, match=r"CSL-102.*site_ranks"):
        finished(tmp_path, draft, tiny("bert"))


def test_what_the_template_offers_in_comments_is_a_draft_too(tmp_path: Path, tiny: Tiny) -> None:
    """Every commented line but those that the example cannot have: another task, and sites and files of one's own."""
    text = TEMPLATE.format(title="notes", sites=json.dumps(SITES)[1:-1])
    text = text.replace("small = 2", "b = 2").replace("last_layers = 2", "last_layers = 1")
    lines = [line for line in text.splitlines() if not line.startswith("# kind")]
    whole = "\n".join(line.removeprefix("# ") if re.match(r"# (\[|\w+ = )", line) else line for line in lines)
    (tmp_path / "public.txt").write_text("chest pain\nmild cough\n")
    study = finished(tmp_path, tomllib.loads(whole), tiny("bert"))
    assert study.pretraining is not None
    assert study.reference is not None
    assert (study.personal.method, study.adapter.site_ranks) == ("head", {"b": 2})


EXAMPLES = re.findall(r"<!-- draft: (\w+) -->\n```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("family", "example"), EXAMPLES)
def test_the_operators_page_shows_drafts_that_finish(tmp_path: Path, tiny: Tiny, family: str, example: str) -> None:
    """As they stand, but for the size of what a tiny backbone reads."""
    study = finished(tmp_path, {**plain(), **tomllib.loads(example.replace("224", "16"))}, tiny(family))
    assert study.task.kind in example
    assert study.task.known_labels


def test_the_operators_page_has_an_example_of_images_and_one_of_rows() -> None:
    assert [tomllib.loads(example)["task"]["kind"].split("-")[0] for _, example in EXAMPLES] == ["image", "tabular"]


@pytest.mark.parametrize("page", [PAGE, PAGE.with_name("hospitals.md")])
def test_the_pages_name_every_task(page: Path) -> None:
    assert all(f"`{task}`" in page.read_text(encoding="utf-8") for task in TASKS)


def test_the_hospitals_page_names_every_method() -> None:
    text = PAGE.with_name("hospitals.md").read_text(encoding="utf-8")
    assert all(f"`{method}`" in text for method in get_args(Method))


@pytest.mark.parametrize(
    ("task", "family", "code"),
    [
        ("text-classification", "vit", "CSL-322"),
        ("image-classification", "bert", "CSL-322"),
        ("causal-language-modelling", "bert", "CSL-322"),
        ("masked-language-modelling", "gpt2", "CSL-322"),
    ],
)
def test_a_task_that_the_backbone_cannot_do_is_refused_before_signing(
    tmp_path: Path, tiny: Tiny, task: str, family: str, code: str
) -> None:
    spec = spec_of(task, family).model_dump(mode="json", exclude_none=True)
    with pytest.raises(ConsiliumError, match=code):
        finished(tmp_path, {**plain(), "task": spec, "adapter": {"last_layers": 1}}, tiny(family))
