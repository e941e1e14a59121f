"""What no message can change: who may take part, how many must, and how much one site may weigh.

Everything here is computed from the signed Study by each site for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common import errors
from common.errors import ConsiliumError
from common.identity import PublicKey, SiteId
from common.secagg.neighbours import Neighbourhood, required
from common.study import Neighbourhoods, Study


@dataclass(frozen=True, slots=True)
class Terms:
    """The study's terms of aggregation.

    study           32 bytes, the study's digest
    roster          the sites in the order of their names; a site's place, counted from 0, is its index
    keys            each site's identity key
    bands           each site's public weight band
    minimum_cohort  fewest survivors of a sum, whatever the thresholds allow
    max_share       largest share of the weights that one survivor may have
    neighbourhoods  in a simulation of many sites, what its neighbourhoods must withstand; else None
    """

    study: bytes
    roster: tuple[SiteId, ...]
    keys: Mapping[SiteId, PublicKey]
    bands: Mapping[SiteId, int]
    minimum_cohort: int
    max_share: float
    neighbourhoods: Neighbourhoods | None = None

    @classmethod
    def from_study(cls, study: Study) -> Terms:
        """Read the terms from a study."""
        return cls(
            study=bytes.fromhex(study.digest),
            roster=tuple(member.site_id for member in study.roster),
            keys={member.site_id: member.public_key for member in study.roster},
            bands={member.site_id: member.band for member in study.roster},
            minimum_cohort=study.aggregation.minimum_cohort,
            max_share=study.aggregation.max_share,
            neighbourhoods=study.neighbourhoods,
        )

    @property
    def tolerated(self) -> int:
        """Colluding sites that the study tolerates: a third of the roster, whatever the cohort (RULES 2).

        In a simulation with neighbourhoods: the share of corrupt sites for which these are computed.
        """
        if self.neighbourhoods is not None:
            return int(self.neighbourhoods.corrupt * len(self.roster))
        return len(self.roster) // 3

    def degree(self, cohort: int) -> int | None:
        """Return how many neighbours a site of such a cohort has; None where every site shares with every other."""
        return self._neighbourhood(cohort).degree if self.neighbourhoods is not None else None

    def index(self, site: SiteId) -> int:
        """Return a site's index; raises CSL-122 for a stranger."""
        try:
            return self.roster.index(site)
        except ValueError as error:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, site) from error

    def threshold(self, cohort: int) -> int:
        """Return the shares that open a secret, and the signatures that make a view, for a cohort of that size.

        t = max(floor(2n/3), floor((n + f)/2)) + 1. Two sets of t sites share more than f sites, so some honest site is
        in both; it reveals one kind of share only, and nobody ever holds t shares of both secrets of one site. In a
        simulation with neighbourhoods both are counted among a site's neighbours, and t is theirs; raises CSL-404.
        """
        if self.neighbourhoods is not None:
            return self._neighbourhood(cohort).threshold
        return max(2 * cohort // 3, (cohort + self.tolerated) // 2) + 1

    def survivors_needed(self, cohort: int) -> int:
        """Return the fewest survivors whose sum is opened.

        The threshold; the study's minimum; and the site itself with two honest others beyond those who may collude,
        which is what every site asks for in :meth:`check_own`, so that the server never waits for what sites refuse.
        """
        fewest = self.contributors_needed
        return fewest if self.neighbourhoods is not None else max(self.threshold(cohort), fewest)

    @property
    def contributors_needed(self) -> int:
        """Fewest sites whose numbers are summed in a block of coordinates: each with two honest others (RULES 4)."""
        return max(self.tolerated + 3, self.minimum_cohort)

    @property
    def smallest_cohort(self) -> int:
        """Fewest sites with which an epoch is worth opening: a sum of all of them could be opened."""
        sizes = range(self.contributors_needed, len(self.roster) + 1)
        return next((size for size in sizes if size >= self.survivors_needed(size)), len(self.roster))

    def check_cohort(self, cohort: Collection[SiteId]) -> None:
        """Raise CSL-404 for a cohort from which no sum could be opened even if nobody is lost."""
        if len(cohort) < self.survivors_needed(len(cohort)):
            raise ConsiliumError(
                errors.SECAGG_THRESHOLD, f"a cohort of {len(cohort)} needs {self.survivors_needed(len(cohort))}"
            )

    def check_survivors(self, survivors: Collection[SiteId], cohort: Collection[SiteId]) -> None:
        """Raise CSL-404 where a sum over these survivors would say too much of one of them (RULES 2, 4)."""
        if survivors is not cohort and not set(survivors) <= set(cohort):
            raise ConsiliumError(errors.SECAGG_INCONSISTENT, "a survivor is not in the cohort")
        if len(survivors) < self.survivors_needed(len(cohort)):
            raise ConsiliumError(
                errors.SECAGG_THRESHOLD,
                f"{len(survivors)} survivors of {len(cohort)}, {self.survivors_needed(len(cohort))} are needed",
            )
        weights = list(map(self.bands.__getitem__, survivors))
        if max(weights) > self.max_share * sum(weights):
            raise ConsiliumError(errors.SECAGG_THRESHOLD, "one survivor would be too large a part of the sum")

    def check_feasible(self) -> None:
        """Raise CSL-404 if not even all sites together could open a sum: three are too few (RULES 3)."""
        self.check_survivors(self.roster, self.roster)
        for site in self.roster:
            self.check_own(site, self.roster, self.roster, self.roster)

    def check_own(
        self, site: SiteId, verified: Collection[SiteId], survivors: Collection[SiteId], cohort: Collection[SiteId]
    ) -> None:
        """Raise CSL-404 where this site could not hide among these survivors, its unverified peers being colluders.

        The site assumes as many colluders as the study tolerates, or as many as it did not verify if these are more
        (RULES 3): t > (n' + f_site)/2, and two verified survivors besides itself beyond those who may collude.
        """
        unverified = len(set(cohort).difference(verified, (site,)))
        colluders = max(self.tolerated, unverified)
        if self.neighbourhoods is not None:
            if unverified:
                raise ConsiliumError(errors.SECAGG_THRESHOLD, "with neighbourhoods every peer has to be verified")
        elif 2 * self.threshold(len(cohort)) <= len(cohort) + colluders:
            raise ConsiliumError(errors.SECAGG_THRESHOLD, f"{unverified} peers here are not verified")
        trusted = len(set(survivors).intersection(verified).difference((site,)))
        if trusted - (colluders - unverified) < 2:
            raise ConsiliumError(errors.SECAGG_THRESHOLD, "too few verified peers among the survivors")

    def check_reachable(self, site: SiteId, verified: Collection[SiteId]) -> None:
        """Raise CSL-404 where there is no cohort at all in which this site would take part.

        Only the sizes matter: all verified peers are in the best cohort, and some number of the others.
        """
        known = [peer for peer in self.roster if peer == site or peer in verified]
        others = [peer for peer in self.roster if peer != site and peer not in verified]
        for strangers in range(len(others) + 1):
            cohort = [*known, *others[:strangers]]
            try:
                self.check_cohort(cohort)
                self.check_own(site, verified, cohort, cohort)
            except ConsiliumError:
                if strangers == len(others):
                    raise
            else:
                return

    def _neighbourhood(self, cohort: int) -> Neighbourhood:
        wanted = self.neighbourhoods
        assert wanted is not None
        return required(
            cohort,
            corrupt=wanted.corrupt,
            lost=wanted.lost,
            privacy_bits=wanted.privacy_bits,
            liveness_bits=wanted.liveness_bits,
            cheating=wanted.cheating,
        )
