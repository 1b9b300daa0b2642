"""How an any-order prior must draw, by full recomputation: an image at a time, from `logits` in an order alone."""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from sampling.choose import choose, guide
from sampling.generate import Streams
from sampling.settings import Settings


def sequence_of(prior, image: Tensor, shuffled: Tensor | None) -> list[int]:
    """The places of the own tokens of one image (N,), in the order in which they come: given ones (>= 0) first.

    `shuffled`: (n,) the random numbers of a random order; None: the layout's order.
    """
    begin, places = prior.given_tokens, prior.layout.places.tolist()

    def key(place: int) -> tuple:
        level, _, _, depth = places[place]
        return (level, shuffled[place - depth - begin].item(), depth) if shuffled is not None else (place,)

    own = range(begin, len(places))
    return [p for p in own if image[p] >= 0] + sorted((p for p in own if image[p] < 0), key=key)


def drawn(prior, tokens: Tensor, labels: Tensor, settings: Settings, given: Tensor, seed: int, span=(0.0, 1.0)):
    """Tokens (B, N) of a prior, given those of the coarser levels (B, given_tokens) and forced ones (B, N)."""
    whole = torch.cat([tokens, given[:, prior.given_tokens :]], 1)
    for number, image in enumerate(whole):
        stream, own = Streams(seed, (number,), torch.device("cpu")), prior.own_tokens
        uniforms = stream.uniforms(own, *([prior.first] if prior.first else []))[0]
        shuffled = None if settings.order == "layout" else stream.uniforms(own, "order", prior.first)[0]
        sequence = sequence_of(prior, image, shuffled)
        known = sum(bool(image[place] >= 0) for place in sequence)
        rest = sequence[known:]
        passes = cosine_passes(prior, rest, settings.decoding_steps) if settings.order == "parallel" else None
        done = list(sequence[:known])
        for step, branches in enumerate(passes or [[[place]] for place in rest]):
            at, count = (step, len(passes)) if passes else (known + step, own)
            moment = at / (count - 1) if count > 1 else 1.0
            if passes and known:  # passes are spread over what is left
                begin = known / (own - 1)
                moment = begin + (1 - begin) * moment
            moment = span[0] + (span[1] - span[0]) * moment
            found = {}
            for branch in branches:
                values = image.clamp_min(0).clone()
                for i, place in enumerate(branch):
                    order = done + branch[: i + 1]
                    order = order + [other for other in sequence if other not in order]
                    found[place] = values[place] = one(
                        prior, values, order, place, labels[number], settings, moment, uniforms
                    )
            for place, value in found.items():
                image[place] = value
            done += [place for branch in branches for place in branch]
    return whole


def one(prior, values, order, place, label, settings, moment, uniforms) -> int:
    """The token at a place, given what comes before it in an order."""
    level, own = int(prior.layout.places[place, 0]), place - prior.given_tokens

    def predicted(y: int) -> Tensor:
        return prior.logits(values[None], torch.tensor([y]), torch.tensor([order]))[:, own]

    scale = settings.scale(level, moment) if prior.num_classes else 1.0
    logits = predicted(int(label))
    logits = logits if scale == 1 else guide(logits, predicted(prior.num_classes), scale)
    return choose(logits, uniforms[own : own + 1], **settings.filters(level)).item()


def cosine_passes(prior, rest: list[int], steps: int) -> list[list[list[int]]]:
    """The branches of each pass: the places of each of the positions that are drawn together."""
    places, found = prior.layout.places.tolist(), []
    for _, level in groupby(rest, key=lambda place: places[place][0]):
        branches = [list(group) for _, group in groupby(level, key=lambda place: places[place][1:3])]
        free, count = len(branches), min(steps, len(branches))
        for step in range(count):
            left = math.floor(math.cos(math.pi / 2 * (step + 1) / count) * free) if step + 1 < count else 0
            left = min(left, len(branches) - 1)
            found.append(branches[: len(branches) - left])
            branches = branches[len(branches) - left :]
    return found
