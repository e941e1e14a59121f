"""Nothing runs unless the operator signed it and every site approved it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.agreement import Approval, SignedStudy, approve, read, sign, verify_agreement, verify_study, write
from common.errors import ConsiliumError
from common.identity import Identity, Signature, SiteId
from common.parts import Digest
from common.study import Kind, Study
from tests.studies import NOW, Signed, fields, signed_study


@pytest.fixture(scope="module")
def signed() -> Signed:
    return signed_study()


def refused(signed: Signed, approvals: tuple[Approval, ...], **changes: object) -> str:
    with pytest.raises(ConsiliumError) as caught:
        verify_agreement(
            signed.signed,
            approvals,
            signed.operator.public_key,
            **{"now": NOW, "kind": Kind.SIMULATION, **changes},  # type: ignore[arg-type]
        )
    return caught.value.code


def test_a_study_signed_and_approved_by_all_holds(signed: Signed) -> None:
    assert signed.agreement.digest == signed.study.digest
    assert [approval.site for approval in signed.agreement.approvals] == sorted(signed.sites)


def test_a_changed_byte_breaks_the_signature(signed: Signed) -> None:
    tampered = signed.signed.canonical.replace(b'"epsilon":8', b'"epsilon":9')
    assert tampered != signed.signed.canonical
    with pytest.raises(ConsiliumError) as caught:
        verify_study(SignedStudy(tampered, signed.signed.signature), signed.operator.public_key)
    assert caught.value.code == "CSL-104"


def test_an_unsigned_study_is_refused(signed: Signed) -> None:
    with pytest.raises(ConsiliumError) as caught:
        verify_study(SignedStudy(signed.signed.canonical, Signature(b"")), signed.operator.public_key)
    assert caught.value.code == "CSL-105"


def test_another_operators_study_is_refused(signed: Signed) -> None:
    other = Identity.generate()
    with pytest.raises(ConsiliumError) as caught:
        verify_study(signed.signed, other.public_key)
    assert caught.value.code == "CSL-104"
    with pytest.raises(ConsiliumError) as caught:
        sign(signed.study, other)
    assert caught.value.code == "CSL-104"


def test_a_site_that_did_not_approve_is_named(signed: Signed) -> None:
    assert refused(signed, signed.approvals[1:]) == "CSL-107"


def test_an_approval_of_another_digest_does_not_count(signed: Signed) -> None:
    stale = replace(signed.approvals[0], digest=Digest("0" * 64))
    assert refused(signed, (stale, *signed.approvals[1:])) == "CSL-107"


def test_one_sites_approval_cannot_stand_for_another(signed: Signed) -> None:
    first, second = signed.approvals[:2]
    forged = replace(second, signature=first.signature)
    assert refused(signed, (first, forged, *signed.approvals[2:])) == "CSL-107"


def test_a_strangers_approval_is_refused(signed: Signed) -> None:
    stranger = replace(signed.approvals[0], site=SiteId("stranger"))
    assert refused(signed, (*signed.approvals, stranger)) == "CSL-122"


def test_a_site_refuses_to_approve_with_a_key_that_is_not_in_the_roster(signed: Signed) -> None:
    with pytest.raises(ConsiliumError) as caught:
        approve(signed.signed, SiteId("site-000"), Identity.generate(), signed.operator.public_key)
    assert caught.value.code == "CSL-121"


def test_an_expired_study_is_refused(signed: Signed) -> None:
    assert refused(signed, signed.approvals, now=datetime(2027, 11, 24, tzinfo=UTC)) == "CSL-106"


def test_a_study_for_other_software_is_refused_before_anything_runs() -> None:
    other = signed_study(software=">=7")
    assert refused(other, other.approvals) == "CSL-109"


def test_a_simulation_study_is_refused_where_a_deployment_is_asked_for(signed: Signed) -> None:
    assert refused(signed, signed.approvals, kind=Kind.DEPLOYMENT) == "CSL-108"


def test_relabelling_a_simulation_as_a_deployment_breaks_its_signature(signed: Signed) -> None:
    relabelled = Study.from_fields({**fields()[0], "kind": "deployment"})
    with pytest.raises(ConsiliumError) as caught:
        verify_study(SignedStudy(relabelled.canonical(), signed.signed.signature), signed.operator.public_key)
    assert caught.value.code == "CSL-104"


def test_it_is_written_and_read_back_unchanged(signed: Signed, tmp_path: Path) -> None:
    write(tmp_path, signed.signed, signed.approvals)
    assert read(tmp_path) == (signed.signed, signed.approvals)


def test_a_broken_signature_file_is_a_coded_error(signed: Signed, tmp_path: Path) -> None:
    write(tmp_path, signed.signed, signed.approvals)
    (tmp_path / "signatures.json").write_text("[1]")
    with pytest.raises(ConsiliumError) as caught:
        read(tmp_path)
    assert caught.value.code == "CSL-101"
