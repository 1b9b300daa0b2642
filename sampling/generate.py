"""The two decoding loops, one code after another and many at a time, every image with random numbers of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampling.choose import choose, guide
from sampling.settings import Settings
from stage2_prior.priors.base import Autoregressive, Prior
from stage2_prior.priors.chain import Chain
from stage2_prior.priors.masked import Masked
from stage2_prior.priors.subtokens import SubTokens
from tessera.errors import UserError
from tessera.randomness import seed_of

CHOSEN_AT_ONCE = 2**22  # logits of a masked prior, which become several float64 tensors


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
    prior: Prior,
    labels: Tensor | None,
    streams: Streams,
    settings: Settings,
    given: Tensor | None = None,
    tick: Callable[[float], object] = lambda part: None,
) -> Tensor:
    """Sample codes.

    Guidance runs the null label beside the label in one batch of 2B rows. A link of a chain, or a whole prior, whose
    every scale is exactly 1 skips it, and so does all without labels.

    Args:
        labels: int64 (B,), or None for the null label.
        given: int64 (B, N); codes that are forced, -1 where the prior is free. None: all are free.
        tick: told, as codes are chosen, how much more of the whole is done: the parts sum to 1.

    Returns:
        int64 tokens (B, N), on the streams' device.

    Raises:
        UserError: the prior gave logits that are not numbers.
    """
    batch = len(streams.indices)
    run = Run(streams, settings, labels is not None and prior.num_classes > 0, tick)
    if labels is None:
        labels = torch.full((batch,), prior.num_classes, device=streams.device)
    if given is None:
        given = labels.new_full((batch, prior.layout.num_tokens), -1)
    with torch.autocast(streams.device.type, enabled=False):  # the prior's own precision is what is asked for
        return _decode(prior, run, labels, labels.new_empty(batch, 0), given, Span(0.0, 1.0, 1.0))


@dataclass(frozen=True)
class Run:
    """What does not change while one batch is decoded."""

    streams: Streams
    settings: Settings
    labelled: bool  # whether there is a label to be guided to
    tick: Callable[[float], object]


@dataclass(frozen=True)
class Span:
    """A prior's part of the way from 0, the first of all codes, to 1, the last; and its part of the work."""

    begin: float
    end: float
    weight: float

    def at(self, number: int, count: int) -> float:
        """The n-th of `count` moments; a single one is at the end."""
        return self.begin + (self.end - self.begin) * number / (count - 1) if count > 1 else self.end


def _decode(prior: Prior, run: Run, labels: Tensor, context: Tensor, given: Tensor, span: Span) -> Tensor:
    """The whole sequence (B, N) of a prior's layout, from the given levels' tokens, (B, prior.given)."""
    if isinstance(prior, SubTokens):
        forced = torch.where(prior.spread(given) < 0, -1, prior.split(given.clamp_min(0)))
        return prior.join(_decode(prior.inner, run, labels, prior.split(context), forced, span))
    if isinstance(prior, Chain):
        count = prior.layout.num_tokens
        for link in prior.links:
            end = link.layout.num_tokens
            part = Span(span.at(link.given, count), span.at(end - 1, count), span.weight * (end - link.given) / count)
            context = _decode(link, run, labels, context, given[:, :end], part)
        return context
    guided = run.labelled and run.settings.guided(range(prior.first, len(prior.layout.levels)))
    labels = torch.cat([labels, torch.full_like(labels, prior.num_classes)]) if guided else labels
    loop = _many_at_a_time if isinstance(prior, Masked) else _one_after_another
    tokens, healthy = loop(prior, run, labels, context, given, guided, span)
    if not healthy:  # looked at once, at the end: a look at every token would wait for the device
        raise UserError(
            "the prior gave logits that are NaN or infinite; with precision bf16 try fp32, else train it again"
        )
    return tokens


def _guided(logits: Tensor, guided: bool, settings: Settings, level: int, moment: float) -> Tensor:
    """Logits (B, ...) from those of the labels, and where `guided` of the null label after them, (2B, ...)."""
    if not guided:
        return logits
    conditional, unconditional = logits.chunk(2)
    scale = settings.scale(level, moment)
    return conditional if scale == 1 else guide(conditional, unconditional, scale)


def _one_after_another(
    prior: Autoregressive,
    run: Run,
    labels: Tensor,
    context: Tensor,
    given: Tensor,
    guided: bool,
    span: Span,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N) of an autoregressive prior, and whether its logits were numbers; labels (2B,) where guided."""
    layout, settings, forced = prior.layout, run.settings, bool((given[:, prior.given :] >= 0).any())
    own = prior.own_tokens
    uniforms = run.streams.uniforms(own, *([prior.first] if prior.first else [])).unbind(1)
    filters = [settings.filters(level) for level in range(len(layout.levels))]
    state = prior.start(labels, torch.cat([context, context]) if guided else context)
    tokens, previous = list(context.unbind(1)), None
    total = uniforms[0].new_zeros(len(context))  # of what must all be finite
    levels = layout.places[:, 0].tolist()
    for place in range(prior.given, layout.num_tokens):
        level = levels[place]
        logits = _guided(prior.step(state, previous), guided, settings, level, span.at(place - prior.given, own))
        total += logits.amax(-1)
        token = choose(logits, uniforms[place - prior.given], **filters[level])
        if forced:
            token = torch.where(given[:, place] >= 0, given[:, place], token)
        tokens.append(token)
        previous = torch.cat([token, token]) if guided else token
        run.tick(span.weight / own)
    return torch.stack(tokens, 1), total.isfinite().all()


def _many_at_a_time(
    prior: Masked,
    run: Run,
    labels: Tensor,
    context: Tensor,
    given: Tensor,
    guided: bool,
    span: Span,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N) of a masked prior, and whether its logits were numbers; labels (2B,) where guided.

    Each step chooses all unknown codes and keeps those of the highest confidence: the log-probability of the code, with
    Gumbel noise whose scale is `choice_temperature` times 1 - n/steps after pass n, 0 at last. How many are left
    follows a cosine.

    Source: Chang et al. 2022, "MaskGIT", section 3.2, and its appendix for the noise.
    """
    own, settings = given[:, prior.given :], run.settings
    tokens, unknown = torch.cat([context, own.clamp_min(0)], dim=1), own < 0
    free, steps = unknown.sum(1, keepdim=True), min(settings.decoding_steps, prior.own_tokens)
    transformer = prior.frozen(len(labels))
    healthy = torch.ones((), dtype=torch.bool, device=tokens.device)
    for step in range(steps):
        both = [torch.cat([part, part]) if guided else part for part in (tokens, unknown)]
        logits = prior.predict(*both, labels, transformer)
        healthy &= logits.amax(-1).isfinite().all()
        uniforms = run.streams.uniforms(2 * prior.own_tokens, "masked", prior.first, step)
        annealed = settings.choice_temperature * (1 - (step + 1) / steps)
        chosen, confidence = _choose_all(prior, settings, logits, guided, span.at(step, steps), uniforms, annealed)
        left = (math.cos(math.pi / 2 * (step + 1) / steps) * free).floor().long()
        left = torch.minimum(left, (unknown.sum(1, keepdim=True) - 1).clamp_min(0)) if step + 1 < steps else 0 * left
        rank = confidence.masked_fill(~unknown, torch.inf).argsort(-1, descending=True).argsort(-1)
        kept = unknown & (rank < prior.own_tokens - left)
        tokens[:, prior.given :] = torch.where(kept, chosen, tokens[:, prior.given :])
        unknown = unknown & ~kept
        run.tick(span.weight / steps)
    return tokens, healthy


def _choose_all(
    prior: Masked,
    settings: Settings,
    logits: Tensor,
    guided: bool,
    moment: float,
    uniforms: Tensor,
    choice_temperature: float,
) -> tuple[Tensor, Tensor]:
    """A code for every own token, int64 (B, n), and how sure each is, float64 (B, n), from logits (B or 2B, n, V) and
    uniforms (B, 2n): for the codes, then for the noise on their confidence."""
    choice, noise = uniforms.chunk(2, dim=1)
    chosen, confidence = torch.empty_like(choice, dtype=torch.int64), torch.empty_like(noise)
    for level, part in enumerate(prior.layout.slices()[prior.first :], start=prior.first):
        where, filters = slice(part.start - prior.given, part.stop - prior.given), settings.filters(level)
        here = _guided(logits[:, where], guided, settings, level, moment)
        few = max(1, CHOSEN_AT_ONCE // here[0].numel())
        for rows in (slice(i, i + few) for i in range(0, len(choice), few)):
            codes = choose(here[rows].flatten(0, 1), choice[rows, where].flatten(), **filters)
            chosen[rows, where] = codes.view_as(chosen[rows, where])
        found = here.log_softmax(-1).gather(-1, chosen[:, where, None])[..., 0].double()
        gumbel = -torch.log(-torch.log(noise[:, where].clamp_min(1e-300)))
        confidence[:, where] = found + choice_temperature * (filters["temperature"] > 0) * gumbel
    return chosen, confidence
