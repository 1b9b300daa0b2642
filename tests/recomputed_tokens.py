"""How every prior must draw, by full recomputation: link by link, each from all that came before."""

from __future__ import annotations

import math

import recomputed
import torch

from sampling.choose import choose, guide
from sampling.generate import Streams
from stage2_prior.priors.any_order import AnyOrder
from stage2_prior.priors.chain import Chain
from stage2_prior.priors.masked import Masked
from stage2_prior.priors.next_scale import NextScale
from stage2_prior.priors.subtokens import SubTokens


def streams(seed: int, indices: range) -> Streams:
    return Streams(seed, tuple(indices), torch.device("cpu"))


def links_of(prior):
    """The priors that decode a prior's levels, coarsest first."""
    return list(prior.links) if isinstance(prior, Chain) else [prior]


def guided(logits, prior, labels, scale):
    """`logits(labels)`, and where there is guidance also those of the null label."""
    if scale == 1 or not prior.num_classes:
        return logits(labels)
    return guide(logits(labels), logits(torch.full_like(labels, prior.num_classes)), scale)


@torch.no_grad()
def recompute(prior, labels, settings, given=None, seed=1):
    """The oracle: codes link by link, from all that came before, guidance in two passes."""
    tokens = torch.zeros(len(labels), 0, dtype=torch.int64)
    for link in links_of(prior):
        inner = link.inner if isinstance(link, SubTokens) else link
        joined, forced = tokens, torch.full((len(labels), link.layout.num_tokens), -1)
        if given is not None:
            forced = given[:, : link.layout.num_tokens]
        if isinstance(link, SubTokens):
            tokens = link.split(tokens)
            forced = torch.where(link.spread(forced) < 0, -1, link.split(forced.clamp_min(0)))
        count = prior.layout.num_tokens - 1  # where the link's own codes stand among all codes, from 0 to 1
        span = (link.given_tokens / count, (link.layout.num_tokens - 1) / count)
        ways = {Masked: masked_tokens, NextScale: tokens_by_scale, AnyOrder: recomputed.drawn}
        way = ways.get(type(inner), tokens_in_order)
        tokens = way(inner, tokens, labels, settings, forced, seed, span)
        if isinstance(link, SubTokens):
            tokens = torch.cat([joined, link.join(tokens)[:, joined.shape[1] :]], 1)
    return tokens


def moment_of(span, number, count):
    return span[0] + (span[1] - span[0]) * number / (count - 1) if count > 1 else span[1]


def tokens_in_order(prior, tokens, labels, settings, given, seed, span):
    """Every token by `logits` of the whole sequence, of which it sees what is before it."""
    own = prior.layout.num_tokens - prior.given_tokens
    uniforms = streams(seed, range(len(labels))).uniforms(own, *([prior.first] if prior.first else []))
    for number, place in enumerate(range(prior.given_tokens, prior.layout.num_tokens)):
        whole = torch.cat([tokens, torch.zeros(len(labels), prior.layout.num_tokens - place, dtype=torch.int64)], 1)
        level = prior.layout.places[place, 0].item()
        scale = settings.scale(level, moment_of(span, number, own))
        logits = guided(lambda y, whole=whole, at=number: prior.logits(whole, y)[:, at], prior, labels, scale)
        token = choose(logits, uniforms[:, number], **settings.filters(level))
        token = torch.where(given[:, place] >= 0, given[:, place], token)
        tokens = torch.cat([tokens, token[:, None]], 1)
    return tokens


def tokens_by_scale(prior, tokens, labels, settings, given, seed, span):
    """Every token by `logits` of the whole sequence, of which it sees the coarser scales; one scale after another."""
    own = prior.layout.num_tokens - prior.given_tokens
    uniforms = streams(seed, range(len(labels))).uniforms(own, *([prior.first] if prior.first else []))
    whole = torch.cat([tokens, torch.zeros(len(labels), own, dtype=torch.int64)], 1)
    places = prior.layout.places.tolist()
    scales = sorted({(level, depth) for level, _, _, depth in places if level >= prior.first})
    for number, (level, depth) in enumerate(scales):
        scale = settings.scale(level, moment_of(span, number, len(scales)))
        logits = guided(lambda y: prior.logits(whole, y), prior, labels, scale)
        for place in (p for p, found in enumerate(places) if (found[0], found[3]) == (level, depth)):
            here = place - prior.given_tokens
            token = choose(logits[:, here], uniforms[:, here], **settings.filters(level))
            whole[:, place] = torch.where(given[:, place] >= 0, given[:, place], token)
    return whole


def masked_tokens(prior, tokens, labels, settings, given, seed, span):
    """MaskGIT's rule, an image, a code and a rank at a time, by `predict`."""
    whole = torch.cat([tokens, given[:, prior.given_tokens :]], 1)
    steps, own = min(settings.decoding_steps, prior.own_tokens), prior.own_tokens
    for i, image in enumerate(whole):
        at_first = int((image[prior.given_tokens :] < 0).sum())
        for step in range(steps):
            unknown, known = image[prior.given_tokens :] < 0, image.clamp_min(0)[None]
            asked = {int(labels[i]), int(labels[i]) if settings.guidance_scale == 1 else prior.num_classes}
            predicted = {y: prior.predict(known, unknown[None], torch.tensor([y]))[0] for y in asked}
            numbers = streams(seed, range(i, i + 1)).uniforms(2 * own, "masked", prior.first, step)[0]
            confidences = {}
            for place in unknown.nonzero()[:, 0].tolist():
                level = prior.layout.places[prior.given_tokens + place, 0].item()
                scale = settings.scale(level, moment_of(span, step, steps))
                here = guided(lambda y, at=place, of=predicted: of[int(y)][at], prior, labels[i : i + 1], scale)
                code = choose(here[None], numbers[place : place + 1], **settings.filters(level)).item()
                noise = -math.log(-math.log(numbers[own + place].item()))
                annealed = settings.choice_temperature * (1 - (step + 1) / steps)
                if settings.filters(level)["temperature"] == 0:
                    annealed = 0.0
                confidences[place] = (here.log_softmax(-1)[code].item() + annealed * noise, code)
            left = min(math.floor(math.cos(math.pi / 2 * (step + 1) / steps) * at_first), len(confidences) - 1)
            surest = sorted(confidences, key=lambda place: -confidences[place][0])
            for place in surest[: len(surest) - max(0, left) if step + 1 < steps else None]:
                image[prior.given_tokens + place] = confidences[place][1]
    return whole
