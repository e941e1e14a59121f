"""How a study transfers: which weights train and travel, how they are trained, and what a site keeps for itself.

Parts of the Study; loads without torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.parts import Line, Name, Part
from common.task_specs import CausalLanguageModelling, MaskedLanguageModelling

Method = Literal["ffa-lora", "lora", "rolora", "ia3", "bitfit", "layer-norm", "bottleneck", "full", "head-only"]

PEFT_METHODS: tuple[Method, ...] = ("ffa-lora", "lora", "rolora", "ia3", "layer-norm")
"""Those whose release PEFT itself reads; of the others it has none."""
RANKED: frozenset[Method] = frozenset({"ffa-lora", "lora", "rolora", "bottleneck"})
"""Methods for which ``rank`` means something."""


class AdapterSpec(Part):
    """Which weights train and travel.

    full        every weight of the adapted layers; with ``last_layers = 1`` the last layer alone
    site_ranks  with ffa-lora: the rank of each site that trains fewer than ``rank``; they share the frozen A, and train
                the first columns of B [as in HetLoRA, Cho et al. 2024, arXiv 2401.06432, under one secure sum]
    """

    method: Method = "ffa-lora"
    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[Name, ...] = Field(default=("query", "value"), min_length=1)
    last_layers: int = Field(default=0, ge=0, le=10_000, description="adapt only the last k layers; 0 adapts all")
    site_ranks: dict[Name, Annotated[int, Field(ge=1, le=256)]] = Field(default_factory=dict)

    def rank_at(self, site: str) -> int:
        """Return the rank that a site trains."""
        return self.site_ranks.get(site, self.rank)

    @model_validator(mode="after")
    def _smaller_ranks(self) -> Self:
        if self.site_ranks and self.method != "ffa-lora":
            raise ValueError("site_ranks belong to method = 'ffa-lora', whose A is the same at every site")
        if any(rank > self.rank for rank in self.site_ranks.values()):
            raise ValueError("site_ranks: none may be above rank")
        return self


class Training(Part):
    """How a site trains between two sums, and how many sums there are.

    proximal         pull of each local step towards the round's start: mu of FedProx [Li et al. 2020, arXiv 1812.06127]
    server_momentum  of fedmomentum, beta of FedAvgM [Hsu et al. 2019, arXiv 1909.06335]
    """

    rounds: int = Field(ge=1, le=100_000)
    steps_per_round: int = Field(ge=1, le=100_000)
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    proximal: float = Field(default=0.0, ge=0, le=1e6)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    micro_batch: int = Field(default=32, ge=1, le=65_536)
    server_optimizer: Literal["fedavg", "fedmomentum", "fedadam", "fedyogi"] = "fedavg"
    server_learning_rate: float = Field(default=1.0, gt=0)
    server_momentum: float = Field(default=0.9, ge=0, lt=1)

    @property
    def is_adaptive(self) -> bool:
        """Whether the server's step knows no scale, so that the schedule is the server's."""
        return self.server_optimizer in ("fedadam", "fedyogi")

    def schedule_factor(self, progress: float) -> float:
        """Return what the learning rate is multiplied by at ``progress`` in [0, 1) of the whole study."""
        if self.schedule == "linear":
            return 1.0 - progress
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0

    def site_rate(self, progress: float) -> float:
        """Return the sites' learning rate; with an adaptive server the schedule is the server's."""
        return self.learning_rate * (1.0 if self.is_adaptive else self.schedule_factor(progress))

    def server_rate(self, progress: float) -> float:
        """Return the server's learning rate; constant unless its optimiser is adaptive: the schedule is the sites'."""
        return self.server_learning_rate * (self.schedule_factor(progress) if self.is_adaptive else 1.0)


class Pretraining(Part):
    """Continued pretraining: the first rounds train the adapter on what the sites' texts say without their labels.

    The rounds are among the training's, under the same plan and ledger; the task's head rests in them. Records without
    a label take part in these rounds only.
    """

    rounds: int = Field(ge=1, le=100_000)
    objective: Annotated[MaskedLanguageModelling | CausalLanguageModelling, Field(discriminator="kind")] = (
        MaskedLanguageModelling()
    )


class Personal(Part):
    """What a site fits for itself on its own records after the last shared round; nothing of it leaves (RULES 11).

    none           the site uses the shared model as it is
    head           the head alone, on the shared adapter
    adapter        head and adapter, pulled towards the shared ones with ``strength`` [Ditto, Li et al. 2021, arXiv
                   2012.04221]
    interpolation  a mean of the shared weights and of weights fitted on the site's records alone, with the best of a
                   few shares on held-out records [as in Mansour et al. 2020, arXiv 2002.10619]
    """

    method: Literal["none", "head", "adapter", "interpolation"] = "none"
    steps: int = Field(default=100, ge=1, le=100_000)
    learning_rate: float = Field(default=0.5, gt=0)
    strength: float = Field(default=0.1, ge=0, le=1e6)


class FeatureReference(Part):
    """What the backbone's pooled features are like on public data, to tell a site how far its own are from it.

    data             which data, with their licence
    mean, deviation  of each feature, as many as the backbone is wide
    """

    data: Line
    mean: tuple[float, ...] = Field(min_length=1, max_length=16_384)
    deviation: tuple[float, ...] = Field(min_length=1, max_length=16_384)

    @model_validator(mode="after")
    def _one_deviation_a_mean(self) -> Self:
        if len(self.mean) != len(self.deviation):
            raise ValueError("mean and deviation must be of one length")
        if min(self.deviation) < 0:
            raise ValueError("deviation must not be below 0")
        return self
