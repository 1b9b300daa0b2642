"""What a prior is given to draw codes with. The package `sampling` implements it and passes it to `Prior.decode`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tessera.errors import UserError

CHOSEN_AT_ONCE = 2**22  # logits per call of the sampler, which makes several float64 tensors of them


class Sampler(Protocol):
    """The settings, the random numbers and the progress report of one batch of images.

    Attributes:
        decoding_steps: number of forward passes in which a masked prior fills in all codes, and an any-order prior the
            positions of a level if its order is "parallel".
        choice_temperature: scale of the Gumbel noise that a masked prior adds to each code's confidence.
        order: in which an any-order prior draws codes: "layout" or "random", one after another; or "parallel", at
            random and many at a time.
    """

    decoding_steps: int
    choice_temperature: float
    order: str

    def guided(self, levels: Iterable[int]) -> bool:
        """Whether there are labels, and any of these levels (0: the coarsest) has a guidance scale other than 1.

        If so, the prior computes logits for the null label too, and `guide` combines them.
        """
        ...

    def guide(self, logits: Tensor, level: int, moment: float) -> Tensor:
        """Combines logits (2B, ...), the labels' rows first and the null label's after them, to (B, ...).

        Args:
            moment: how far the codes of the image have come, from 0 for the first to 1 for the last.
        """
        ...

    def uniforms(self, count: int, *purpose: int | str) -> Tensor:
        """Random numbers, float64 (B, count) in [0, 1). Each image and each purpose has a random stream of its own."""
        ...

    def choose(self, logits: Tensor, uniforms: Tensor, level: int) -> Tensor:
        """Draws one token for each row: the level's temperature and filters act on the logits, then a number decides.

        Args:
            logits: (B, V), after `guide` where guidance acts. An impossible value has -inf.
            uniforms: float64 (B,) in [0, 1), one random number for each row. They are ignored where `greedy` is True.
            level: the level of the tokens, which decides temperature and filters.

        Returns:
            int64 (B,). B counts rows: the masked prior passes one row for each image and position.
        """
        ...

    def greedy(self, level: int) -> bool:
        """Whether `choose` takes the likeliest token of this level, whatever the random numbers."""
        ...

    def advance(self, share: float) -> None:
        """Reports that this share of the work on the batch has been done. All shares sum to 1."""
        ...


@dataclass(frozen=True)
class Part:
    """The part that one prior draws of all the codes of an image.

    Attributes:
        first: the moment of the prior's first code: 0 is the first code of the image, 1 the last.
        last: the moment of its last code.
        share: the prior's share of the work, from 0 to 1.
    """

    first: float = 0.0
    last: float = 1.0
    share: float = 1.0

    def moment(self, number: int, count: int) -> float:
        """The moment of the n-th of `count` evenly spaced events, from 0. A single event stands at the end."""
        return self.first + (self.last - self.first) * number / (count - 1) if count > 1 else self.last

    def of_link(self, begin: int, end: int, count: int) -> Part:
        """The part of the prior of one level in a chain: it draws the tokens `begin` to `end` - 1 of `count`."""
        return Part(self.moment(begin, count), self.moment(end - 1, count), self.share * (end - begin) / count)


def choose_several(sampler: Sampler, logits: Tensor, uniforms: Tensor, level: int) -> Tensor:
    """Draws several tokens of a level for each image, a few images at a time, so that memory is bounded.

    Args:
        logits: (B, n, V).
        uniforms: float64 (B, n) in [0, 1).

    Returns:
        int64 (B, n).
    """
    few = max(1, CHOSEN_AT_ONCE // logits[0].numel())
    parts = zip(logits.split(few), uniforms.split(few), strict=True)
    return torch.cat(
        [sampler.choose(part.flatten(0, 1), numbers.flatten(), level).view(part.shape[:2]) for part, numbers in parts]
    )


def left_unknown(number: int, passes: int, free: Tensor, unknown: Tensor) -> Tensor:
    """How many of the codes that a prior draws in several passes are still unknown after one of them.

    The number falls along a cosine. Every pass makes at least one code known, and the last makes all known.

    Args:
        number: of the pass, from 0.
        free: the number of unknown codes before all passes; unknown: before this one. Both int64, of one shape.

    Returns:
        int64, of their shape.

    Source: Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer", section 3.2.
    """
    if number + 1 == passes:
        return 0 * free
    left = (math.cos(math.pi / 2 * (number + 1) / passes) * free).floor().long()
    return torch.minimum(left, (unknown - 1).clamp_min(0))


def require_finite(finite: Tensor) -> None:
    """Refuses a batch in which logits were not numbers.

    Priors call it once, after all codes of a batch are drawn: on a GPU, a check of every token would wait for the
    device each time.

    Args:
        finite: bool, a scalar: whether the largest logit of every token was a finite number.

    Raises:
        UserError: it was not.
    """
    if not finite:
        raise UserError(
            "the prior gave logits that are NaN or infinite; with precision bf16 try fp32, else train it again"
        )
