"""The terms of the GA4GH Data Use Ontology (DUO), and when a study's purpose is within what a consent allows.

Terms and names are those of DUO's release 2021-02-23 (https://github.com/EBISPOT/DUO). A *permission* says for what
data may be used; wider ones hold narrower ones, and a purpose matches what it says itself and whatever is wider [Lawson
et al. 2021, Cell Genomics 1, 100028; DUO README, "Research Purpose to Query"]. A *condition* in a consent has to be
taken up by the study; one that only the study has is a promise more than was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """One term of DUO.

    name        as DUO words it
    short       DUO's abbreviation
    permission  whether it says what data may be used for; else it is a condition on use
    within      the terms that hold it, themselves and nearest first: a permission's wider ones, a condition's stricter
    """

    name: str
    short: str
    permission: bool = False
    within: tuple[str, ...] = ()


NO_RESTRICTION = "DUO:0000004"
CLINICAL_CARE = "DUO:0000043"
"""The one modifier that widens a consent: use in care besides research."""
_NON_PROFIT_ORGANISATION, _NON_COMMERCIAL, _BOTH = "DUO:0000045", "DUO:0000046", "DUO:0000018"

TERMS: Mapping[str, Term] = {
    NO_RESTRICTION: Term("no restriction", "NRES", permission=True),
    "DUO:0000042": Term("general research use", "GRU", permission=True, within=(NO_RESTRICTION,)),
    "DUO:0000006": Term(
        "health or medical or biomedical research", "HMB", permission=True, within=("DUO:0000042", NO_RESTRICTION)
    ),
    "DUO:0000007": Term(
        "disease specific research", "DS", permission=True, within=("DUO:0000006", "DUO:0000042", NO_RESTRICTION)
    ),
    "DUO:0000011": Term(
        "population origins or ancestry research only", "POA", permission=True, within=("DUO:0000042", NO_RESTRICTION)
    ),
    CLINICAL_CARE: Term("clinical care use", "CC", permission=True, within=(NO_RESTRICTION,)),
    "DUO:0000012": Term("research specific restrictions", "RS"),
    "DUO:0000015": Term("no general methods research", "NMDS"),
    "DUO:0000016": Term("genetic studies only", "GSO"),
    _BOTH: Term("not for profit, non commercial use only", "NPUNCU"),
    "DUO:0000019": Term("publication required", "PUB"),
    "DUO:0000020": Term("collaboration required", "COL"),
    "DUO:0000021": Term("ethics approval required", "IRB"),
    "DUO:0000022": Term("geographical restriction", "GS"),
    "DUO:0000024": Term("publication moratorium", "MOR"),
    "DUO:0000025": Term("time limit on use", "TS"),
    "DUO:0000026": Term("user specific restriction", "US"),
    "DUO:0000027": Term("project specific restriction", "PS"),
    "DUO:0000028": Term("institution specific restriction", "IS"),
    "DUO:0000029": Term("return to database or resource", "RTN"),
    "DUO:0000044": Term("population origins or ancestry research prohibited", "NPOA"),
    _NON_PROFIT_ORGANISATION: Term("not for profit organisation use only", "NPU", within=(_BOTH,)),
    _NON_COMMERCIAL: Term("non-commercial use only", "NCU", within=(_BOTH,)),
}
_RESEARCH = frozenset(code for code, term in TERMS.items() if term.permission and code != CLINICAL_CARE)


def named(code: str) -> str:
    """Return a code with its name, as people read it; a code that is not known here says so."""
    term = TERMS.get(code)
    return f"{code} (not a term known here)" if term is None else f"{code} {term.short}, {term.name}"


def check_consent(codes: Collection[str]) -> None:
    """Raise ValueError for a consent that cannot be judged: an unknown term, or no permission among the codes."""
    if not TERMS.keys() >= set(codes):
        raise ValueError("a code is not a term known here; see client/purposes.py")
    if not _RESEARCH.intersection(codes):
        raise ValueError("no code says for what the data may be used")


def beyond_consent(purpose: Collection[str], consent: Collection[str]) -> tuple[str, ...]:
    """Return, one sentence each, what in a study's purpose a consent does not allow; nothing where it allows it all.

    Which disease "disease specific" means no code here says: people compare the study's own sentence.
    """
    found = [f"{named(code)} cannot be judged" for code in purpose if code not in TERMS]
    if not _RESEARCH.intersection(purpose):
        found.append("the study names no research purpose")
    for code in purpose:
        term = TERMS.get(code)
        if term is not None and term.permission and not {code, *term.within}.intersection(consent):
            found.append(f"{named(code)} is wider than the consent")
    for code in consent:
        term = TERMS[code]
        if not term.permission and not _taken_up(code, term, purpose):
            found.append(f"the consent demands {named(code)}, and the study does not take it up")
    return tuple(found)


def _taken_up(code: str, term: Term, purpose: Collection[str]) -> bool:
    if code == _BOTH and {_NON_PROFIT_ORGANISATION, _NON_COMMERCIAL} <= set(purpose):
        return True
    return bool({code, *term.within}.intersection(purpose))
