"""The two decoding loops, one code after another and many at a time, every image with random numbers of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.randomness import seed_of
from sampling.choose import choose, guide
from sampling.settings import Settings
from stage2_prior.priors.base import Autoregressive, Prior
from stage2_prior.priors.chain import Chain
from stage2_prior.priors.masked import Masked
from stage2_prior.priors.subtokens import SubTokens


@dataclass(frozen=True)
class Streams:
    """The random numbers of some images of a run.

    Args:
        seed: of the run; indices: the images' places in it, (B,).
    """

    seed: int
    indices: tuple[int, ...]
    device: torch.device

    def uniforms(self, count: int, *purpose: int | str) -> Tensor:
        """float64 (B, count) in [0, 1): image i's own stream for a purpose, so that it comes out the same in any batch.

        A stream begins alike whatever its length.
        """
        seeds = (seed_of("sample", self.seed, i, *purpose) for i in self.indices)
        drawn = [np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).to(self.device)


@torch.inference_mode()
def generate(
    prior: Prior, labels: Tensor | None, streams: Streams, settings: Settings, given: Tensor | None = None
) -> Tensor:
    """Sample codes.

    Guidance runs the null label beside the label in one batch of 2B rows; where every scale is exactly 1, and for a
    prior without classes, it is skipped.

    Args:
        labels: int64 (B,), or None for the null label.
        given: int64 (B, N); codes that are forced, -1 where the prior is free. None: all are free.

    Returns:
        int64 tokens (B, N), on the streams' device.

    Raises:
        ValueError: the prior gave logits that are not numbers.
    """
    batch = len(streams.indices)
    if labels is None:
        labels = torch.full((batch,), prior.num_classes, device=streams.device)
    if given is None:
        given = labels.new_full((batch, prior.layout.num_tokens), -1)
    return _decode(prior, labels, labels.new_empty(batch, 0), streams, settings, given)


def _decode(
    prior: Prior, labels: Tensor, context: Tensor, streams: Streams, settings: Settings, given: Tensor
) -> Tensor:
    """The whole sequence (B, N) of a prior's layout, from the given levels' tokens, (B, prior.given)."""
    if isinstance(prior, SubTokens):
        forced = torch.where(prior.spread(given) < 0, -1, prior.split(given.clamp_min(0)))
        return prior.join(_decode(prior.inner, labels, prior.split(context), streams, settings, forced))
    if isinstance(prior, Chain):
        for link in prior.links:
            context = _decode(link, labels, context, streams, settings, given[:, : link.layout.num_tokens])
        return context
    null = torch.full_like(labels, prior.num_classes)
    guided = prior.num_classes > 0 and settings.guided
    labels = torch.cat([labels, null]) if guided else labels
    loop = _many_at_a_time if isinstance(prior, Masked) else _one_after_another
    tokens, healthy = loop(prior, labels, context, streams, settings, given, guided)
    if not healthy:  # looked at once, at the end: a look at every token would wait for the device
        raise ValueError("the prior gave logits that are NaN or infinite; it is not fit to sample from")
    return tokens


def _one_after_another(
    prior: Autoregressive,
    labels: Tensor,
    context: Tensor,
    streams: Streams,
    settings: Settings,
    given: Tensor,
    guided: bool,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N) of an autoregressive prior, and whether its logits were numbers; labels (2B,) where guided."""
    layout, forced = prior.layout, bool((given[:, prior.given :] >= 0).any())
    uniforms = streams.uniforms(layout.num_tokens - prior.given, *([prior.first] if prior.first else []))
    state = prior.start(labels, torch.cat([context, context]) if guided else context)
    tokens, previous = torch.cat([context, torch.zeros_like(given[:, prior.given :])], dim=1), None
    healthy = torch.ones((), dtype=torch.bool, device=streams.device)
    levels = layout.places[:, 0].tolist()
    for place in range(prior.given, layout.num_tokens):
        logits = prior.step(state, previous)
        if guided:
            scale = settings.scale(levels[place], place / max(1, layout.num_tokens - 1))
            logits = guide(*logits.chunk(2), scale)
        healthy &= logits.amax(-1).isfinite().all()
        token = choose(logits, uniforms[:, place - prior.given], **settings.filters(levels[place]))
        if forced:
            token = torch.where(given[:, place] >= 0, given[:, place], token)
        tokens[:, place] = token
        previous = torch.cat([token, token]) if guided else token
    return tokens, healthy


def _many_at_a_time(
    prior: Masked,
    labels: Tensor,
    context: Tensor,
    streams: Streams,
    settings: Settings,
    given: Tensor,
    guided: bool,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N) of a masked prior, and whether its logits were numbers; labels (2B,) where guided.

    Each step chooses all unknown codes and keeps those of the highest confidence: the log-probability of the code, with
    Gumbel noise whose scale falls from `choice_temperature` to 0. How many are left follows a cosine.

    Source: Chang et al. 2022, "MaskGIT", section 3.2, and its appendix for the noise.
    """
    own = given[:, prior.given :]
    tokens, unknown = torch.cat([context, own.clamp_min(0)], dim=1), own < 0
    free, steps = unknown.sum(1, keepdim=True), min(settings.decoding_steps, prior.own_tokens)
    levels = prior.layout.slices()[prior.first :]
    healthy = torch.ones((), dtype=torch.bool, device=streams.device)
    for step in range(steps):
        both = [torch.cat([part, part]) if guided else part for part in (tokens, unknown)]
        logits = prior.predict(*both, labels)
        healthy &= logits.amax(-1).isfinite().all()
        uniforms = streams.uniforms(2 * prior.own_tokens, "masked", prior.first, step)
        choice, noise = uniforms.chunk(2, dim=1)
        chosen, confidence = torch.empty_like(own), torch.empty_like(noise)
        for index, part in enumerate(levels, start=prior.first):
            where = slice(part.start - prior.given, part.stop - prior.given)
            here, filters = logits[:, where], settings.filters(index)
            if guided:
                here = guide(*here.chunk(2), settings.scale(index, step / max(1, steps - 1)))
            for row in range(len(own)):  # one image's codes after another: in float64 all would be large
                chosen[row, where] = choose(here[row], choice[row, where], **filters)
            found = here.log_softmax(-1).gather(-1, chosen[:, where, None])[..., 0].double()
            gumbel = -torch.log(-torch.log(noise[:, where].clamp_min(1e-300)))
            temperature = settings.choice_temperature * (1 - (step + 1) / steps) * (filters["temperature"] > 0)
            confidence[:, where] = found + temperature * gumbel
        left = (math.cos(math.pi / 2 * (step + 1) / steps) * free).floor().long()
        left = torch.minimum(left, (unknown.sum(1, keepdim=True) - 1).clamp_min(0)) if step + 1 < steps else 0 * left
        rank = confidence.masked_fill(~unknown, torch.inf).argsort(-1, descending=True).argsort(-1)
        kept = unknown & (rank < prior.own_tokens - left)
        tokens[:, prior.given :] = torch.where(kept, chosen, tokens[:, prior.given :])
        unknown = unknown & ~kept
    return tokens, healthy
