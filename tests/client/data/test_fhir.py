"""The recipe for a FHIR bulk export, word for word as docs/recipes.md has it, on generated NDJSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from client.query import run_query

RECIPES = Path(__file__).resolve().parents[3] / "docs" / "recipes.md"
HYPERTENSION, ASTHMA = "38341003", "195967001"


def recipe() -> str:
    section = RECIPES.read_text(encoding="utf-8").partition("## Notes from a FHIR bulk export")[2]
    return section.partition("```sql\n")[2].partition("```")[0]


def write(path: Path, resources: Iterable[object]) -> None:
    lines = (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in resources)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def patient(name: str) -> dict[str, object]:
    return {
        "resourceType": "Patient",
        "id": name,
        "name": [{"family": "Doe", "given": ["J"]}],
        "birthDate": "1950-01-01",
    }


def condition(name: str, *codes: str, system: str = "http://snomed.info/sct") -> dict[str, object]:
    coding = [{"system": system, "code": code, "display": "x"} for code in codes]
    return {"resourceType": "Condition", "subject": {"reference": f"Patient/{name}"}, "code": {"coding": coding}}


def document(name: str, data: str, **fields: object) -> dict[str, object]:
    attachment = {"contentType": fields.pop("kind", "text/plain; charset=utf-8"), "data": data}
    subject = {"reference": f"https://fhir.example/r4/Patient/{name}", "display": "Doe"}
    return {
        "resourceType": "DocumentReference",
        "status": "current",
        "subject": subject,
        "content": [{"attachment": attachment}],
        **fields,
    }


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write(tmp_path / "Patient.000.ndjson", [patient("p1"), patient("p2")])
    write(tmp_path / "Patient.001.ndjson", [patient("p3"), patient("p4")])
    write(
        tmp_path / "Condition.000.ndjson",
        [
            condition("p1", ASTHMA, HYPERTENSION),
            condition("p1", HYPERTENSION),
            condition("p2", ASTHMA),
            condition("p3", HYPERTENSION, system="urn:local"),
            {"resourceType": "Condition", "subject": {"reference": "Patient/p4"}},
        ],
    )
    write(
        tmp_path / "DocumentReference.000.ndjson",
        [
            document("p1", encoded("Blutdruck erhöht,\n„kein“ Fieber")),
            document("p2", encoded("cough")),
            document("p3", "not base64 ?"),
            document("p3", base64.b64encode(b"\xff\xfe").decode()),
            '{"torn": ',
            document("p4", encoded("superseded"), status="superseded"),
            document("p4", encoded("<html>"), kind="text/html"),
            document("p9", encoded("of nobody")),
        ],
    )
    return tmp_path


def test_the_recipe_reads_nested_resources_and_decodes_attachments_through_the_fence(export: Path) -> None:
    columns = run_query(recipe(), export, {name: name for name in ("patient", "note", "label")})
    rows = sorted(zip(*columns.values(), strict=True), key=str)
    assert rows == [
        ("p1", "Blutdruck erhöht,\n„kein“ Fieber", "yes"),
        ("p2", "cough", "no"),
        ("p3", None, "no"),
        ("p3", None, "no"),
    ]


def test_the_recipe_fits_a_sites_file() -> None:
    assert "'''" not in recipe()
    assert "\\" not in recipe()
