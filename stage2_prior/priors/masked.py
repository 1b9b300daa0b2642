"""The prior `masked`: a transformer that sees all known codes and fills in the unknown ones, many at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar, Unpack

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stage2_prior.priors.base import Prior, token_nll
from stage2_prior.priors.blocks import Block, Blocks, Sizes
from stage2_prior.priors.drawing import Part, Sampler, choose_several, left_unknown, require_finite
from stage2_prior.priors.sections import AttentionParams
from stage2_prior.priors.sequence import SequenceEnds
from tessera.codes.layout import CodeLayout
from tessera.footprint import LIVE_OUTPUTS, LargestOutput
from tessera.parameters.sections import LARGEST
from tessera.randomness import seed_of


class Parameters(AttentionParams):
    """The section `masked` of params.yaml.

    `bound_draws`: number of random masks per image from which the bound of its likelihood is estimated. There are at
    least two, since one mask would not show how far estimates spread.
    """

    sampled_by: ClassVar[frozenset[str]] = frozenset({"decoding_steps", "choice_temperature"})
    bound_draws: Annotated[int, Field(ge=2, le=LARGEST)]


class Masked(Prior):
    """p(code | known codes, label), for all unknown codes at once, by a transformer without a causal mask.

    The prior gives a probability of an image for each order in which codes become known. `nll` estimates the mean of
    -log p over random orders. This mean is an upper bound of -log of the mean probability.

    Source: Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer", section 3 (training and decoding);
    Hoogeboom et al. 2021, "Autoregressive Diffusion Models", equation 3 (the bound).
    """

    exact = False

    def __init__(
        self, layout: CodeLayout, num_classes: int, *, bound_draws: int, first: int = 0, **sizes: Unpack[Sizes]
    ) -> None:
        """Arguments: see the attributes of `Prior` for the layout, and `Parameters` for the sizes."""
        super().__init__(layout, num_classes, first)
        self.bound_draws, self.noise = bound_draws, 1 + layout.num_tokens
        self.ends = SequenceEnds(layout, num_classes, first, sizes["width"], sizes["dropout"])
        self.transformer = Blocks(**sizes, causal=False)

    def frozen(self, batch: int) -> Callable[[Tensor], Tensor]:
        """The transformer prepared for many calls of `predict` with `batch` rows. The weights must stay the same.

        It has no dropout and no gradients, and is faster on a CPU.
        """
        return self.transformer.frozen(batch, self.layout.num_tokens)

    def predict(
        self,
        tokens: Tensor,
        masked: Tensor,
        labels: Tensor | None,
        transformer: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits of all own tokens, float32 (B, n, V); -inf beyond a token's codebook.

        Args:
            tokens: int64 (B, N). What stands at an unknown token changes nothing.
            masked: bool (B, n), True where an own token is unknown.
            labels: int64 (B,); None: the null label.
            transformer: from `frozen`; None: the trainable one.
        """
        rows = self.ends.rows(tokens.clamp_min(0))
        own = rows[:, self.given_tokens :].masked_fill(masked, self.ends.special)
        rows = torch.cat([rows[:, : self.given_tokens], own], dim=1)
        x = self.ends.embed(rows, slice(None), self.fill_labels(labels, tokens))
        return self.ends.read((transformer or self.transformer)(x)[:, self.given_tokens :])

    def forward(
        self, tokens: Tensor, labels: Tensor | None, noise: Tensor | None = None, progress: Tensor | None = None
    ) -> Tensor:
        """The training loss: the mean over images of each image's mean nats per masked token.

        Each image has as many masked tokens as a uniformly random moment of decoding would have. The mean is taken over
        images first: a mean over all masked tokens of a batch would depend on how processes share the batch.

        Args:
            noise: random numbers (B, 1 + N) in [0, 1): the moment, then what ranks the tokens. None: drawn here.
        """
        if noise is None:
            noise = torch.rand(len(tokens), self.noise, device=tokens.device)
        moment, ranking = noise[:, :1], noise[:, 1 + self.given_tokens : 1 + self.layout.num_tokens]
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
        """Nats per token (B, n) when the `unknown` (B, 1) tokens of lowest rank are masked, and the mask, bool (B, n).

        `ranking`: (B, n), a random number for each token.
        """
        masked = ranking.argsort(-1).argsort(-1) < unknown
        logits = self.predict(tokens, masked, labels, transformer)
        return token_nll(logits, tokens[:, self.given_tokens :]), masked

    def estimates(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> Tensor:
        """Unbiased estimates of the bound in nats per token, (bound_draws, B, n).

        Each draw masks m of n tokens, and a masked token counts n / m times. m is uniform in 1..n, stratified over the
        draws. The masks depend on the image's tokens and on `again` only, so that an image has the same estimate in
        any batch.
        """
        n, draws, found = self.own_tokens, self.bound_draws, []
        purpose = ("bound", again) if again else ("bound",)
        seeds = (seed_of(*purpose, row.tobytes().hex()) for row in tokens.cpu().numpy())
        drawn = np.stack([np.random.Generator(np.random.Philox(seed)).random((draws, n + 1)) for seed in seeds])
        transformer = None if torch.is_grad_enabled() else self.frozen(len(tokens))
        for draw in range(draws):
            moment, ranking = torch.from_numpy(drawn[:, draw]).to(tokens.device).split([1, n], 1)
            unknown = ((draw + moment) / draws * n).long() + 1
            nats, masked = self._masked_nats(tokens, ranking, unknown, labels, transformer)
            found.append(nats * masked * (n / unknown))
        return torch.stack(found)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """An estimate of an upper bound of -log p in nats per token, (B, n)."""
        return self.estimates(tokens, labels).mean(0)

    def estimate(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> tuple[Tensor, Tensor]:
        """The estimate and its variance, see `Prior.estimate`."""
        found = self.estimates(tokens, labels, again)
        # The variance of independent draws. Stratified draws spread less, so the true variance is lower.
        return found.mean(0), found.sum(-1).var(0) / len(found)

    def decode(self, sampler: Sampler, labels: Tensor, coarser: Tensor, forced: Tensor, part: Part) -> Tensor:
        """Draws many codes in each forward pass, see `Prior.decode`.

        Each pass chooses a code for every unknown token and keeps the codes of highest confidence. The number of
        unknown tokens falls along a cosine. Forced tokens are known from the beginning, so that every code depends on
        all of them.

        Source: Chang et al. 2022, "MaskGIT", section 3.2; its appendix for the noise.
        """
        own, given = self.own_tokens, self.given_tokens
        guided = sampler.guided(range(self.first, len(self.layout.levels)))
        tokens, unknown = torch.cat([coarser, forced[:, given:].clamp_min(0)], dim=1), forced[:, given:] < 0
        if guided:  # the null label's rows follow the labels' rows in one batch
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        free, passes = unknown.sum(1, keepdim=True), min(sampler.decoding_steps, own)
        transformer = self.frozen(len(labels))
        finite = torch.ones((), dtype=torch.bool, device=tokens.device)
        for number in range(passes):
            inputs = [torch.cat([x, x]) if guided else x for x in (tokens, unknown)]
            logits = self.predict(*inputs, labels, transformer)
            finite &= logits.amax(-1).isfinite().all()
            uniforms = sampler.uniforms(2 * own, "masked", self.first, number)
            moment, done = part.moment(number, passes), (number + 1) / passes
            # The noise falls linearly to 0, which it reaches in the last pass.
            chosen, confidence = self._choose_several(
                sampler, logits, guided, moment, uniforms, sampler.choice_temperature * (1 - done)
            )
            left = left_unknown(number, passes, free, unknown.sum(1, keepdim=True))
            rank = confidence.masked_fill(~unknown, torch.inf).argsort(-1, descending=True).argsort(-1)
            kept = unknown & (rank < own - left)
            tokens[:, given:] = torch.where(kept, chosen, tokens[:, given:])
            unknown = unknown & ~kept
            sampler.advance(part.share / passes)
        require_finite(finite)
        return tokens

    def _choose_several(
        self, sampler: Sampler, logits: Tensor, guided: bool, moment: float, uniforms: Tensor, noise_scale: float
    ) -> tuple[Tensor, Tensor]:
        """A code for every own token, int64 (B, n), and each code's confidence, float64 (B, n).

        The confidence is the code's log-probability plus Gumbel noise.

        Args:
            logits: (B, n, V); with guidance (2B, n, V), the labels' rows first and the null label's after them.
            uniforms: (B, 2n) random numbers: first those for the codes, then those for the noise.
            noise_scale: of the Gumbel noise.
        """
        choice, noise = uniforms.chunk(2, dim=1)
        chosen, confidence = torch.empty_like(choice, dtype=torch.int64), torch.empty_like(noise)
        for level, place in enumerate(self.layout.slices()[self.first :], start=self.first):
            where = slice(place.start - self.given_tokens, place.stop - self.given_tokens)
            here = sampler.guide(logits[:, where], level, moment) if guided else logits[:, where]
            chosen[:, where] = choose_several(sampler, here, choice[:, where], level)
            found = here.log_softmax(-1).gather(-1, chosen[:, where, None])[..., 0].double()
            gumbel = -torch.log(-torch.log(noise[:, where].clamp_min(1e-300)))
            confidence[:, where] = found + noise_scale * (not sampler.greedy(level)) * gumbel
        return chosen, confidence

    def decoding_bytes(self, device: torch.device, bytes_per_logit: int) -> int:
        """Bytes of memory for each further sequence, see `Prior.decoding_bytes`: the difference of two batches."""
        few, more = (self._pass_bytes(rows, device) for rows in (6, 8))
        return (more - few) // 2 + bytes_per_logit * self.layout.vocabulary

    def _pass_bytes(self, rows: int, device: torch.device) -> int:
        """Bytes of memory that one forward pass of a batch takes."""
        tokens = torch.zeros(rows, self.layout.num_tokens, dtype=torch.int64, device=device)
        masked = torch.ones_like(tokens[:, self.given_tokens :], dtype=torch.bool)
        with LargestOutput(self) as largest:
            logits = self.predict(tokens, masked, tokens[:, 0])
        return LIVE_OUTPUTS * max(largest.bytes, logits.nbytes)

    def blocks(self) -> Iterable[Block]:
        return self.transformer.layers
