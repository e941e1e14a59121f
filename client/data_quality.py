"""What a hospital should look at in its data before it joins a study: duplicates, likely wrong labels, gaps.

It changes nothing (RULES 12): what is wrong is mended where the data are kept, or in the query. Rows are numbered from
1 in the order of the query's result. Labels are doubted by confident learning [Northcutt, Jiang and Chuang 2021,
"Confident Learning: Estimating Uncertainty in Dataset Labels"] in cleanlab, over probabilities that a linear model of
words gives records that it was not fitted on.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from client.config import Data
from client.data_report import Side, read_file
from client.records import each, lacking, row_count
from client.sources import Role, read_columns
from client.table import TextColumn
from common import errors
from common.errors import ConsiliumError
from common.parts import Part

FOLDS = 5
MOST_RECORDS = 50_000
"""How many records labels are doubted of: the first by a hash of their content, where there are more."""
LEAST_OF_A_CLASS = 2 * FOLDS
_NO_WORD = re.compile(r"[^\w]+|_+")


class Duplicates(Part):
    """Groups of records with one content.

    groups         with two records or more
    records        in them
    across_sides   groups on more than one side: what is tested was trained on
    across_units   groups of more than one unit: one patient under two names counts, and is hidden, twice
    across_labels  groups with more than one label: one of them is wrong, or the text does not say
    rows           of the first groups, those that cross most first
    """

    groups: int
    records: int
    across_sides: int
    across_units: int
    across_labels: int
    rows: tuple[tuple[int, ...], ...]


class Suspect(Part):
    """A record whose label is doubted.

    likely  the class that the model thinks of
    belief  the probability that it gives the label, in [0, 1]
    """

    row: int
    label: str
    likely: str
    belief: float


class Suspicion(Part):
    """Likely label errors.

    looked_at  records
    left_out   of classes of fewer than 10 records, or beyond the 50,000 that are looked at
    suspected  how many labels are doubted
    first      the most doubtful
    why_not    why none were looked at, where that is so
    """

    looked_at: int = 0
    left_out: int = 0
    suspected: int = 0
    first: tuple[Suspect, ...] = ()
    why_not: str = ""


class Straddling(Part):
    """Units with records on several sides, for which the study's start would be refused, and rows of the first."""

    units: int
    rows: tuple[int, ...]


class QualityReport(Part):
    """What was found; ``unknown_sides`` counts values of the split column that name none.

    exact  None where rows of fields are not looked at: which columns are fields, a study says
    near   None where there are no words to compare
    """

    rows: int
    records: int
    missing: dict[str, int]
    classes: dict[str, int]
    unknown_sides: int
    exact: Duplicates | None
    near: Duplicates | None
    straddling: Straddling
    labels: Suspicion


@dataclass(frozen=True, slots=True)
class Record:
    """One record that can be read."""

    row: int
    unit: str = field(repr=False)
    content: str = field(repr=False)
    label: str = field(repr=False)
    side: str


def examine(data: Data, side: Side | None, *, top: int = 20) -> tuple[QualityReport, dict[int, str]]:
    """Return what was found, and the texts (or paths) of the rows that it names. Fields are not looked at.

    side  for data without a split column; None leaves the sides out
    top   how many suspects and groups are named

    Raises what reading raises, and CSL-507 without cleanlab and scikit-learn.
    """
    columns = read_columns(data)
    roles = ("unit", "text" if "text" in columns else "path", "label", "split")
    missing: Counter[str] = Counter(dict.fromkeys(columns, 0))
    records, paths = [], dict[int, str]()
    for number, row in enumerate(each(columns), start=1):
        for role, value in zip(roles, row, strict=True):
            missing[role] += role in columns and (value is None or not value.strip())
        if lacking(row, columns) is not None:
            continue
        unit, what, label, place = (value or "" for value in row)
        by = what
        if "path" in columns:
            file = read_file(data, what)
            if file is None:
                continue
            paths[number], what, by = what, file.holds.hex(), file.place
        if data.columns.split is None and side is not None and (unit or not data.columns.fields):
            place = side(unit, by)
        records.append(Record(number, unit, what, label, place))
    known = ("", "train", "validation", "test")
    report = QualityReport(
        rows=row_count(columns),
        records=len(records),
        missing={role: missing[role] for role in columns},
        classes=dict(Counter(record.label for record in records).most_common()),
        unknown_sides=sum(record.side not in known for record in records),
        exact=None if data.columns.fields else duplicates(records, lambda text: text, top),
        near=duplicates(records, normalised, top) if "text" in columns else None,
        straddling=straddling(records, top),
        labels=_suspicion(records, columns, top),
    )
    named = {
        *(row for found in (report.exact, report.near) if found is not None for group in found.rows for row in group),
        *report.straddling.rows,
        *(suspect.row for suspect in report.labels.first),
    }
    return report, {record.row: paths.get(record.row, record.content) for record in records if record.row in named}


def normalised(text: str) -> str:
    """Return a text's words alone, in one form and small letters, so that punctuation and layout are no difference."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def duplicates(records: Iterable[Record], form: Callable[[str], str], top: int) -> Duplicates:
    """Group records by a form of their content; what has no form at all is no duplicate."""
    groups: dict[bytes, list[Record]] = {}
    for record in records:
        if shape := form(record.content):
            groups.setdefault(hashlib.sha256(shape.encode()).digest(), []).append(record)
    found = [group for group in groups.values() if len(group) > 1]
    crossing = {
        name: [len({getattr(record, name) for record in group}) > 1 for group in found]
        for name in ("side", "unit", "label")
    }
    ranks = [sum(marks) for marks in zip(*crossing.values(), strict=True)]
    first = sorted(range(len(found)), key=lambda index: (-ranks[index], found[index][0].row))[:top]
    return Duplicates(
        groups=len(found),
        records=sum(map(len, found)),
        across_sides=sum(crossing["side"]),
        across_units=sum(crossing["unit"]),
        across_labels=sum(crossing["label"]),
        rows=tuple(tuple(record.row for record in found[index][:top]) for index in first),
    )


def straddling(records: Iterable[Record], top: int) -> Straddling:
    """Find the units on several sides; each is named by its first row on another side than its first."""
    first: dict[str, str] = {}
    torn: dict[str, int] = {}
    for record in records:
        if record.unit and first.setdefault(record.unit, record.side) != record.side:
            torn.setdefault(record.unit, record.row)
    return Straddling(units=len(torn), rows=tuple(sorted(torn.values())[:top]))


def suspects(records: Sequence[Record], top: int) -> Suspicion:
    """Doubt labels; raises CSL-507 without cleanlab and scikit-learn.

    The records of one unit, or else those of the same words, are in one fold: a copy would vouch for its own label.
    """
    sizes = Counter(record.label for record in records)
    chosen = [record for record in records if sizes[record.label] >= LEAST_OF_A_CLASS]
    # A hash mixes classes and units over the folds, and is the same each time.
    chosen.sort(key=lambda record: (hashlib.sha256(record.content.encode()).digest(), record.row))
    chosen = chosen[:MOST_RECORDS]
    names = sorted({record.label for record in chosen})
    groups = [record.unit or f"text {normalised(record.content)}" for record in chosen]
    left_out = len(records) - len(chosen)
    if len(names) < 2 or len(set(groups)) < FOLDS:
        return Suspicion(
            left_out=left_out, why_not=f"it takes two classes of {LEAST_OF_A_CLASS} records in {FOLDS} units"
        )
    labels = np.array([names.index(record.label) for record in chosen])
    try:
        order, beliefs = _doubted([record.content for record in chosen], labels, groups)
    except ModuleNotFoundError as error:
        raise ConsiliumError(errors.DATA_MISSING_PACKAGE, "pip install 'consilium[data]'") from error
    first = tuple(
        Suspect(
            row=chosen[index].row,
            label=chosen[index].label,
            likely=names[int(beliefs[index].argmax())],
            belief=round(float(beliefs[index, labels[index]]), 4),
        )
        for index in order[:top]
    )
    return Suspicion(looked_at=len(chosen), left_out=left_out, suspected=len(order), first=first)


def _suspicion(records: Sequence[Record], columns: Mapping[Role, TextColumn], top: int) -> Suspicion:
    if "label" not in columns:
        return Suspicion(why_not="no column names them")
    return suspects(records, top) if "text" in columns else Suspicion(why_not="only texts are looked at")


def _doubted(
    texts: Sequence[str], labels: np.ndarray[tuple[int], np.dtype[np.int64]], groups: Sequence[str]
) -> tuple[list[int], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Return the places of doubtful labels, the worst first, and each record's probabilities from the other folds."""
    from cleanlab.filter import find_label_issues
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, max_features=20_000),
        LogisticRegression(tol=1e-3, max_iter=100),
    )
    with warnings.catch_warnings(action="ignore"):
        # Of a class that one fold lacks, of a fit that stops early: neither stops the looking.
        beliefs = cross_val_predict(
            model, texts, labels, groups=groups, cv=StratifiedGroupKFold(FOLDS), method="predict_proba"
        )
        order = find_label_issues(labels, beliefs, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(index) for index in order], beliefs
