"""A bidirectional transformer that fills in masked codes, many at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stage2_prior.priors.base import Prior, token_nll
from stage2_prior.priors.blocks import Blocks
from stage2_prior.priors.sections import AttentionParams
from stage2_prior.priors.sequence import SequenceEnds
from tessera.codes.layout import CodeLayout
from tessera.randomness import seed_of


class Parameters(AttentionParams):
    """Parameters of `masked`. `bound_draws`: masks an image by which the bound of its likelihood is estimated."""

    bound_draws: Annotated[int, Field(ge=2)]  # one draw would tell no error


class Masked(Prior):
    """p(code | the codes that are known, label) for every unknown code at once.

    It gives no probability of an image, but one for every order of unmasking; `nll` is the mean over random orders, by
    sampling, and so an upper bound of -log p under a uniformly random order.

    Source: Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer", section 3 (training, decoding); Hoogeboom
    et al. 2021, "Autoregressive Diffusion Models", equation 3 (the bound).
    """

    exact = False

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        *,
        layers: int,
        width: int,
        heads: int,
        dropout: float,
        bound_draws: int,
        first: int = 0,
    ) -> None:
        """`bound_draws`: masks an image by which the bound is estimated."""
        super().__init__(layout, num_classes, first)
        self.draws, self.noise = bound_draws, 1 + layout.num_tokens
        self.ends = SequenceEnds(layout, num_classes, first, width, dropout)
        self.transformer = Blocks(layers, width, heads, dropout, causal=False)

    def frozen(self, batch: int) -> Callable[[Tensor], Tensor]:
        """The transformer for several calls of `predict` with so many rows and the same weights, without gradients."""
        return self.transformer.frozen(batch, self.layout.num_tokens)

    def predict(
        self,
        tokens: Tensor,
        masked: Tensor,
        labels: Tensor | None,
        transformer: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """float32 logits (B, n, V) of its own tokens, from tokens (B, N) and which of its own are unknown, (B, n).

        `transformer`: from `frozen`, which is faster on a CPU.
        """
        rows = self.ends.rows(tokens.clamp_min(0))
        own = rows[:, self.given :].masked_fill(masked, self.ends.special)
        rows = torch.cat([rows[:, : self.given], own], dim=1)
        x = self.ends.embed(rows, slice(None), self.fill_labels(labels, tokens))
        return self.ends.read((transformer or self.transformer)(x)[:, self.given :])

    def forward(self, tokens: Tensor, labels: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """Each image's mean nats a masked token, of as many masked as a uniformly random moment of decoding has.

        A mean over images: over all their masked tokens, it would depend on how a batch is divided over processes.
        """
        if noise is None:
            noise = torch.rand(len(tokens), self.noise, device=tokens.device)
        moment, ranking = noise[:, :1], noise[:, 1 + self.given : 1 + self.layout.num_tokens]
        unknown = (torch.cos(moment * math.pi / 2) * self.own_tokens).ceil().clamp_min(1)
        nats, masked = self._masked_nats(tokens, ranking, unknown, labels)
        return ((nats * masked).sum(1, keepdim=True) / unknown).mean()

    def _masked_nats(
        self,
        tokens: Tensor,
        ranking: Tensor,
        unknown: Tensor,
        labels: Tensor | None,
        transformer: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Nats a token (B, n) with the `unknown` (B, 1) lowest of `ranking` (B, n) masked, and these, bool (B, n)."""
        masked = ranking.argsort(-1).argsort(-1) < unknown
        return token_nll(self.predict(tokens, masked, labels, transformer), tokens[:, self.given :]), masked

    def estimates(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> Tensor:
        """Unbiased estimates of the bound, nats a token: (draws, B, n).

        A draw masks m tokens of n, m uniform in 1..n (stratified over the draws); each masked one counts n / m times.
        The draws depend on the image's tokens alone, so that it has the same estimate in any batch, and on `again`.
        """
        n, found = self.own_tokens, []
        purpose = ("bound", again) if again else ("bound",)
        seeds = (seed_of(*purpose, row.tobytes().hex()) for row in tokens.cpu().numpy())
        drawn = np.stack([np.random.Generator(np.random.Philox(seed)).random((self.draws, n + 1)) for seed in seeds])
        transformer = None if torch.is_grad_enabled() else self.frozen(len(tokens))
        for draw in range(self.draws):
            moment, ranking = torch.from_numpy(drawn[:, draw]).to(tokens.device).split([1, n], 1)
            unknown = ((draw + moment) / self.draws * n).long() + 1
            nats, masked = self._masked_nats(tokens, ranking, unknown, labels, transformer)
            found.append(nats * masked * (n / unknown))
        return torch.stack(found)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        return self.estimates(tokens, labels).mean(0)

    def estimate(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> tuple[Tensor, Tensor]:
        found = self.estimates(tokens, labels, again)
        # As if the draws were independent: they are stratified, so that this is rather too much.
        return found.mean(0), found.sum(-1).var(0) / len(found)

    def blocks(self) -> Iterable[nn.Module]:
        return self.transformer.layers
