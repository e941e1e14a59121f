"""Language modelling: predict tokens by the backbone's own embeddings, for its own sake or before another task.

Nothing is added to the backbone: a token's logit is the product of a hidden state and the token's frozen embedding.
Only the states that predict something are multiplied with the vocabulary. The loss of a text is the mean over its
predicted tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import Backbone
from common.stream import public_bytes
from common.task_specs import CausalLanguageModelling, MaskedLanguageModelling
from common.tasks import IGNORED, unsupported
from common.tasks.texts import TextTask, Tokens

_ANY_STREAM = "0" * 64


class _LanguageTask(TextTask):
    """What both ways share: targets by token, and the backbone's embeddings as its head."""

    pools = False

    def __init__(self, backbone: Backbone, max_tokens: int) -> None:
        super().__init__(backbone, max_tokens)
        self._vocabulary = self.anatomy.vocabulary(backbone.model)

    def head(self, width: int, *, alone: bool) -> nn.Module:
        """See :meth:`Task.head`: there is none; raises CSL-322 where nothing else trains."""
        del width
        if alone:
            raise unsupported("language modelling has no head of its own that could train alone")
        return nn.Identity()

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Task.features`: one row a token, as it is."""
        del mask
        return hidden

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.loss`."""
        owners, states, wanted = _predicting(outputs, targets)
        losses = functional.cross_entropy(states @ self._vocabulary.T, wanted, reduction="none")
        return _mean_by_owner(losses, owners, len(outputs))

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.scores`: the share of predicted tokens that are right."""
        owners, states, wanted = _predicting(outputs, targets)
        right = ((states @ self._vocabulary.T).argmax(dim=1) == wanted).to(outputs.dtype)
        return _mean_by_owner(right, owners, len(outputs))


class CausalLanguageTask(_LanguageTask):
    """Predict each token from those before it."""

    def __init__(self, spec: CausalLanguageModelling, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone, spec.max_tokens)
        self.spec = spec
        if not self.anatomy.causal:
            raise unsupported("each token of this backbone sees those behind it")

    def encoded(
        self, contents: Sequence[object], labels: Sequence[str]
    ) -> tuple[Tokens, NDArray[np.int64], NDArray[np.float32] | None]:
        """See :meth:`Task.encoded`."""
        del labels
        tokens = self.tokens([str(content) for content in contents])
        return tokens, self.following(tokens), None

    def following(self, tokens: Tokens) -> NDArray[np.int64]:
        """Return (n, max_tokens) the token that follows each."""
        targets = np.full((len(tokens), self.max_tokens), IGNORED, dtype=np.int64)
        for row, one in enumerate(tokens):
            targets[row, : max(0, len(one) - 1)] = one[1:]
        return targets

    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> NDArray[np.int64]:
        """See :meth:`TextTask.invented_targets`."""
        del dice
        return self.following(tokens)


class MaskedLanguageTask(_LanguageTask):
    """Predict masked tokens from those around them; one text is masked in one way throughout a study."""

    def __init__(self, spec: MaskedLanguageModelling, backbone: Backbone, stream: str = "") -> None:
        super().__init__(backbone, spec.max_tokens)
        self.spec, self._share, self._stream = spec, spec.mask_share, stream or _ANY_STREAM
        if self.anatomy.causal:
            raise unsupported("no token of this backbone sees those behind it")
        if self.tokenizer.mask_token_id is None:
            raise unsupported("the backbone's tokeniser has no token for what is masked")
        self._mask = int(self.tokenizer.mask_token_id)

    def encoded(
        self, contents: Sequence[object], labels: Sequence[str]
    ) -> tuple[Tokens, NDArray[np.int64], NDArray[np.float32] | None]:
        """See :meth:`Task.encoded`."""
        del labels
        tokens, targets = self._masked(self.tokens([str(content) for content in contents]))
        return tokens, targets, None

    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> NDArray[np.int64]:
        """See :meth:`TextTask.invented_targets`."""
        del dice
        return self._masked(tokens)[1]

    def _masked(self, tokens: Tokens) -> tuple[Tokens, NDArray[np.int64]]:
        """Return tokens with some of them masked, and (n, max_tokens) what these were."""
        special = np.array(self.tokenizer.all_special_ids)
        targets = np.full((len(tokens), self.max_tokens), IGNORED, dtype=np.int64)
        masked = []
        for row, one in enumerate(tokens):
            own = np.array(one)
            open_places = np.flatnonzero(~np.isin(own, special))
            count = min(len(open_places), max(1, round(self._share * len(open_places))))
            name = hashlib.sha256(np.asarray(own, dtype="<i4").tobytes()).hexdigest()
            words = np.frombuffer(public_bytes(self._stream, f"masked/{name}", 8 * len(open_places)), dtype="<u8")
            chosen = open_places[np.argsort(words, kind="stable")[:count]]
            targets[row, chosen] = own[chosen]
            own[chosen] = self._mask
            masked.append(own)
        return tuple(masked), targets


def _predicting(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of the tokens with a target, the example that each belongs to, its state and its target."""
    owners, places = torch.nonzero(targets != IGNORED, as_tuple=True)
    return owners, outputs[owners, places], targets[owners, places]


def _mean_by_owner(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """Return the mean of each example's values, (count,); 0 where it has none."""
    totals = values.new_zeros(count).index_add(0, owners, values)
    sizes = values.new_zeros(count).index_add(0, owners, torch.ones_like(values))
    return totals / sizes.clamp(min=1.0)
