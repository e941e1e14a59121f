"""The rules of the ledger, without a disk: what the entries so far amount to, and whether another may follow.

Within a study the parameters are fixed when it is signed, so its charges and releases are composed by the accountant
(PLD) into the one epsilon that it commits. Across studies, which are chosen adaptively, epsilons and deltas add
[RULES 8; Rogers et al. 2016, "Privacy odometers and filters", section 3]. A study that made one charge has spent all
that it committed: when it stopped may depend on what was released, and no epsilon for fewer charges would hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import ValidationError

from client.ledger.entries import (
    AccountOpened,
    Begun,
    Charged,
    Covered,
    Entry,
    Exhausted,
    FoundBehind,
    Recovered,
    StudyClosed,
    StudyJoined,
)
from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import Stage
from common.parts import Digest, describe
from common.privacy.accounting import accountant_version
from common.privacy.plan import PrivacyPlan
from common.study import Unit


@dataclass(frozen=True, slots=True)
class Head:
    """Where a ledger's chain ends, as it travels with every signed reply (RULES 18).

    era     rises with every recovery
    number  of the last entry
    digest  of the chain up to it
    """

    era: int
    number: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class ChargeKey:
    """What is charged: one reply to one request of one study for one patient population (RULES 7)."""

    account: str
    study: Digest
    stage: Stage
    instance: int
    attempt: int
    input_digest: bytes
    cohort: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """One study's part of an account.

    epsilon, delta       committed when it was joined
    training, evaluation charges made so far
    closed               makes no further charge
    exhausted            charged in full by a recovery
    """

    study: Digest
    plan: PrivacyPlan
    epsilon: float
    training: int
    evaluation: int
    closed: bool
    exhausted: bool

    @property
    def counts(self) -> bool:
        """Whether it takes from the account: all of it does, but for a study that was closed before any charge."""
        return not self.closed or self.exhausted or self.training + self.evaluation > 0


@dataclass(frozen=True, slots=True)
class Balance:
    """An account: what it may spend, what is committed, and what remains.

    epsilon, delta  caps for each unit of the population
    """

    account: str
    population: str
    unit: Unit
    epsilon: float
    delta: float
    studies: tuple[Committed, ...]
    exhausted: bool

    @property
    def epsilon_committed(self) -> float:
        """Sum of epsilons; the whole cap once the account is exhausted."""
        spent = math.fsum(study.epsilon for study in self.studies if study.counts)
        return max(spent, self.epsilon) if self.exhausted else spent

    @property
    def delta_committed(self) -> float:
        """Sum of deltas; the whole cap once the account is exhausted."""
        spent = math.fsum(study.plan.delta for study in self.studies if study.counts)
        return max(spent, self.delta) if self.exhausted else spent

    @property
    def epsilon_remaining(self) -> float:
        """What another study may commit; 0 once an account is exhausted."""
        return max(0.0, self.epsilon - self.epsilon_committed)

    @property
    def delta_remaining(self) -> float:
        """What another study may commit; 0 once an account is exhausted."""
        return max(0.0, self.delta - self.delta_committed)


@dataclass(slots=True)
class _Study:
    joined: StudyJoined
    keys: dict[ChargeKey, None] = field(default_factory=dict)
    evaluations: int = 0
    closed: bool = False
    exhausted: bool = False


@dataclass(slots=True)
class _Account:
    opened: AccountOpened
    studies: dict[Digest, _Study] = field(default_factory=dict)
    exhausted: bool = False


class Book:
    """The state that a sequence of entries leads to. Deciding changes nothing; :meth:`add` does.

    ledger   the chain's own random name; None before its first entry
    era      rises with every recovery
    behind   what was found to be missing and is not recovered yet; None where nothing is
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._accounts: dict[str, _Account] = {}
        self._covered: list[Covered] = []
        self.ledger: str | None = None
        self.era = 0
        self.behind: FoundBehind | None = None
        for entry in entries:
            self.add(entry)

    def covers(self, lost: Head) -> bool:
        """Return whether a recovery charged the worst case for all that a chain which is not here held by then."""
        return any(
            lost.era == known.era
            and known.above < lost.number <= known.number
            and (known.head in (None, lost.digest) or lost.number < known.number)
            for known in self._covered
        )

    def accounts(self) -> tuple[AccountOpened, ...]:
        """Return the entries that opened the accounts."""
        return tuple(account.opened for account in self._accounts.values())

    def studies(self) -> tuple[StudyJoined, ...]:
        """Return the entries with which studies were joined, account by account."""
        return tuple(study.joined for account in self._accounts.values() for study in account.studies.values())

    def spent_accounts(self) -> tuple[str, ...]:
        """Return the accounts of which a recovery has charged all."""
        return tuple(name for name, account in self._accounts.items() if account.exhausted)

    def balances(self) -> tuple[Balance, ...]:
        """Return every account in order of its name."""
        return tuple(self.balance(name) for name in sorted(self._accounts))

    def balance(self, account: str) -> Balance:
        """Return one account; raises CSL-215 if there is none."""
        found = self._account(account)
        opened = found.opened
        studies = tuple(
            Committed(
                digest,
                study.joined.plan,
                study.joined.epsilon,
                len(study.keys) - study.evaluations,
                study.evaluations,
                study.closed,
                study.exhausted,
            )
            for digest, study in found.studies.items()
        )
        return Balance(account, opened.population, opened.unit, opened.epsilon, opened.delta, studies, found.exhausted)

    def charges(self, study: Digest) -> tuple[ChargeKey, ...]:
        """Return a study's charges, account by account in the order in which they were made."""
        return tuple(
            key
            for account in self._accounts.values()
            if study in account.studies
            for key in account.studies[study].keys
        )

    def open_account(self, account: str, population: str, unit: Unit, epsilon: float, delta: float) -> AccountOpened:
        """Decide on a new account; raises CSL-215 if there is one of this name: a population has one budget."""
        self.check_whole()
        if account in self._accounts:
            raise ConsiliumError(errors.LEDGER_ACCOUNT, f"{account} exists already")
        try:
            return AccountOpened(account=account, population=population, unit=unit, epsilon=epsilon, delta=delta)
        except ValidationError as error:
            raise ConsiliumError(errors.LEDGER_ACCOUNT, describe(error)) from error

    def join(self, account: str, study: Digest, plan: PrivacyPlan) -> StudyJoined | None:
        """Decide whether an account pays for a study; None if it does already.

        Raises CSL-204 if the account has less left than the study may spend, CSL-215 if there is no such account, its
        unit is another, the study was closed, or another account pays for it: it would be charged twice over.
        """
        self.check_whole()
        found = self._account(account)
        if (known := found.studies.get(study)) is not None:
            if known.joined.plan != plan:
                raise ConsiliumError(errors.LEDGER_ACCOUNT, f"study {study[:12]} was joined under another plan")
            if known.closed:
                raise ConsiliumError(errors.LEDGER_ACCOUNT, f"study {study[:12]} was closed")
            return None
        for balance in self.balances():
            if any(other.study == study and other.counts for other in balance.studies):
                raise ConsiliumError(errors.LEDGER_ACCOUNT, f"{balance.account} pays for study {study[:12]} already")
        if plan.unit is not found.opened.unit:
            raise ConsiliumError(
                errors.LEDGER_ACCOUNT,
                f"{account} counts by {found.opened.unit.value}, the study promises by {plan.unit.value}",
            )
        balance, epsilon = self.balance(account), plan.epsilon()
        after = math.fsum((balance.epsilon_committed, epsilon)), math.fsum((balance.delta_committed, plan.delta))
        if balance.exhausted or after[0] > balance.epsilon or after[1] > balance.delta:
            raise ConsiliumError(
                errors.LEDGER_SPENT,
                f"{account} has epsilon {balance.epsilon_remaining:.4f} and delta {balance.delta_remaining:g} left, "
                f"the study commits {epsilon:.4f} and {plan.delta:g}",
            )
        return StudyJoined(account=account, study=study, plan=plan, epsilon=epsilon, accountant=accountant_version())

    def charge(self, key: ChargeKey) -> Charged | None:
        """Decide on a charge; None if this very one was made: a key is charged once (RULES 7).

        Raises CSL-204 when the study's charges are used up, CSL-215 if it was not joined or was closed, CSL-212 if the
        ledger is behind.
        """
        self.check_whole()
        study = self._account(key.account).studies.get(key.study)
        if study is None or study.closed:
            raise ConsiliumError(
                errors.LEDGER_ACCOUNT, f"{key.account} does not pay for study {key.study[:12]}, or no longer"
            )
        if key in study.keys:
            return None
        plan = study.joined.plan
        made = study.evaluations if key.stage.is_evaluation else len(study.keys) - study.evaluations
        limit = plan.evaluation_releases if key.stage.is_evaluation else plan.max_charges
        if study.exhausted or made >= limit:
            worst = " (the worst case was charged by a recovery)" if study.exhausted else ""
            raise ConsiliumError(
                errors.LEDGER_SPENT, f"{made} of {limit} charges of {key.stage.value} were made{worst}"
            )
        return Charged(
            account=key.account,
            study=key.study,
            stage=key.stage,
            instance=key.instance,
            attempt=key.attempt,
            input_digest=key.input_digest.hex(),
            cohort=key.cohort,
        )

    def close(self, account: str, study: Digest) -> StudyClosed | None:
        """Decide that a study makes no further charge; None if it was closed before. Raises CSL-215, CSL-212."""
        self.check_whole()
        found = self._account(account).studies.get(study)
        if found is None:
            raise ConsiliumError(errors.LEDGER_ACCOUNT, f"{account} does not pay for study {study[:12]}")
        return None if found.closed else StudyClosed(account=account, study=study)

    def behind_by(self, shown: Head) -> FoundBehind | None:
        """Decide what to write down of a head that was signed and is not here; None if as much was found before."""
        known = self.behind
        if known is not None and (shown.era, shown.number) <= (known.era, known.number):
            return None
        return FoundBehind(era=shown.era, number=shown.number, head=shown.digest)

    def check_whole(self) -> None:
        """Raise CSL-212 while something that was signed is missing."""
        if self.behind is not None:
            raise ConsiliumError(errors.LEDGER_BEHIND, f"entry {self.behind.number} was signed and is not here")

    def add(self, entry: Entry) -> None:
        """Take in an entry that was written down; raises CSL-211 for one that could not follow."""
        if isinstance(entry, Begun) is not (self.ledger is None):
            raise ConsiliumError(errors.LEDGER_DAMAGED, "a ledger begins once, with its first entry")
        match entry:
            case Begun():
                self.ledger = entry.ledger
            case AccountOpened():
                if entry.account in self._accounts:
                    raise ConsiliumError(errors.LEDGER_DAMAGED, "an account was opened twice")
                self._accounts[entry.account] = _Account(entry)
            case StudyJoined():
                self._written(entry.account).studies[Digest(entry.study)] = _Study(entry)
            case Charged():
                study = self._written_study(entry.account, entry.study)
                study.keys[_key(entry)] = None
                study.evaluations += entry.stage.is_evaluation
            case StudyClosed():
                self._written_study(entry.account, entry.study).closed = True
            case Exhausted(study=None):
                self._written(entry.account).exhausted = True
            case Exhausted(study=digest) if digest is not None:
                self._written_study(entry.account, digest).exhausted = True
            case FoundBehind():
                self.behind = entry
            case Recovered():
                self._covered += entry.covered
                self.era = entry.era
                self.behind = None

    def _account(self, name: str) -> _Account:
        try:
            return self._accounts[name]
        except KeyError as error:
            raise ConsiliumError(errors.LEDGER_ACCOUNT, f"there is no account {name}") from error

    def _written(self, account: str) -> _Account:
        if account not in self._accounts:
            raise ConsiliumError(errors.LEDGER_DAMAGED, "an entry names an account that was not opened")
        return self._accounts[account]

    def _written_study(self, account: str, study: str) -> _Study:
        studies = self._written(account).studies
        if study not in studies:
            raise ConsiliumError(errors.LEDGER_DAMAGED, "an entry names a study that was not joined")
        return studies[Digest(study)]


def _key(entry: Charged) -> ChargeKey:
    return ChargeKey(
        account=entry.account,
        study=Digest(entry.study),
        stage=entry.stage,
        instance=entry.instance,
        attempt=entry.attempt,
        input_digest=bytes.fromhex(entry.input_digest),
        cohort=tuple(SiteId(site) for site in entry.cohort),
    )
