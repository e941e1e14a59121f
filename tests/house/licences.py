"""`python -m tests.house.licences`: every installed package must carry a licence we may build on.

A package says its licence in one of three places, best first: an SPDX expression, a short text, classifiers. What is
read becomes an SPDX expression and is evaluated against the allow-list; unknown is refused, like strong copyleft.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions

ALLOWED = frozenset(
    {
        "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT",
        "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib", "LicenseRef-Public-Domain",
    }
)  # fmt: skip
"""Permissive licences, and MPL-2.0, whose copyleft stays within the files it covers: we change none of them."""

JUSTIFIED = {
    r"nvidia-.*|cuda-.*": "CUDA runtime that the public build of torch brings; nobody ships it on",
    r"atheris": "Apache-2.0 by the LICENSE in its wheel, which its metadata does not name; for fuzzing only",
    r"cleanlab": "Apache-2.0 by the LICENSE in its wheel, the whole of which its metadata repeats without a name",
}
"""Packages accepted whatever they state, by a pattern of their name, with the reason."""

_SPELLINGS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd, public domain": "BSD-2-Clause AND LicenseRef-Public-Domain",
    "public domain": "LicenseRef-Public-Domain",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}
_SHORT = 80


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one package states, as an SPDX expression where it could be read, and whether it may stay."""

    package: str
    licence: str
    accepted: bool


def judge(package: str, expression: str, text: str = "", classifiers: tuple[str, ...] = ()) -> Verdict:
    """Decide on one package.

    expression   its SPDX expression, or empty
    text         its free-form licence field, or empty; long texts are not read
    classifiers  the last parts of its ``License ::`` classifiers; several mean that all of them apply
    """
    stated = expression or _stated(text, classifiers)
    justified = any(re.fullmatch(pattern, package.lower()) for pattern in JUSTIFIED)
    return Verdict(package, stated or "unknown", justified or _is_allowed(stated))


def installed() -> list[Verdict]:
    """Judge every package of this environment but our own."""
    return sorted(
        (_judge_installed(package) for package in distributions() if package.name != "consilium"),
        key=lambda verdict: verdict.package.lower(),
    )


def _judge_installed(package: Distribution) -> Verdict:
    lines = package.metadata.get_all("Classifier") or ()
    classifiers = [line.rsplit("::", 1)[-1].strip() for line in lines if line.startswith("License ::")]
    return judge(package.name, _field(package, "License-Expression"), _field(package, "License"), tuple(classifiers))


def _field(package: Distribution, name: str) -> str:
    values: list[str] = package.metadata.get_all(name) or [""]
    return values[0]


def _stated(text: str, classifiers: tuple[str, ...]) -> str:
    short = text.strip()
    if short and len(short) <= _SHORT and short.upper() != "UNKNOWN":
        return _SPELLINGS.get(short.lower(), short)
    return " AND ".join(_SPELLINGS.get(line.lower(), line) for line in classifiers)


def _is_allowed(expression: str) -> bool:
    """Evaluate an SPDX expression: OR needs one allowed side, AND both; an exception only ever grants more."""
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    if not tokens:
        return False

    def either() -> bool:
        value = both()
        while tokens and tokens[0].upper() == "OR":
            tokens.pop(0)
            value |= both()
        return value

    def both() -> bool:
        value = one()
        while tokens and tokens[0].upper() == "AND":
            tokens.pop(0)
            value &= one()
        return value

    def one() -> bool:
        token = tokens.pop(0) if tokens else ""
        if token == "(":
            value = either()
            return bool(tokens) and tokens.pop(0) == ")" and value
        if tokens and tokens[0].upper() == "WITH":
            del tokens[:2]
        return token in ALLOWED

    return either() and not tokens


def main() -> int:
    """Print what is refused; returns 1 if anything is."""
    verdicts = installed()
    refused = [verdict for verdict in verdicts if not verdict.accepted]
    for verdict in refused:
        print(f"{verdict.package}: {verdict.licence}: not on the list; remove it, or justify it in {__file__}")
    if not refused:
        print(f"licences: {len(verdicts)} packages, all on the list")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
