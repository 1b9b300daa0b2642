"""Draws codes from a prior. Every image has random numbers of its own, so that it is the same in any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sampling.choose import choose, guide
from sampling.settings import Each, Settings
from stage2_prior.priors.base import Prior
from stage2_prior.priors.drawing import Part
from tessera.codes.layout import CodeLayout
from tessera.randomness import seed_of


@dataclass(frozen=True)
class Streams:
    """The random streams of some images of a run.

    Args:
        seed: the run's random seed.
        indices: the images' numbers in the run, counted from 0, (B,).
        device: where the random numbers are put after they are drawn on the CPU.
    """

    seed: int
    indices: tuple[int, ...]
    device: torch.device

    def uniforms(self, count: int, *purpose: int | str) -> Tensor:
        """Random numbers, float64 (B, count) in [0, 1).

        They depend on the seed, the image's number in the run and the purpose, not on the batch. A longer stream begins
        with the numbers of a shorter one.
        """
        seeds = (seed_of("sample", self.seed, i, *purpose) for i in self.indices)
        drawn = [np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).to(self.device)


class BatchSampler:
    """Chooses the tokens of one batch for a prior: the protocol `stage2_prior.priors.drawing.Sampler`.

    Args:
        streams: the images' random streams.
        settings: the sampling settings.
        levels: number of levels of codes.
        labelled: False if the images have no labels; guidance is then skipped.
        tick: called as codes are drawn, with the share of the work that was done. The shares sum to 1.
    """

    def __init__(
        self, streams: Streams, settings: Settings, levels: int, labelled: bool, tick: Callable[[float], object]
    ) -> None:
        self.streams, self.settings, self.labelled, self.tick = streams, settings, labelled, tick
        self.decoding_steps, self.choice_temperature = settings.decoding_steps, settings.choice_temperature
        self.order = settings.order
        self.filters: list[dict[str, Each]] = [settings.filters(level) for level in range(levels)]

    def guided(self, levels: Iterable[int]) -> bool:
        """Whether the images have labels, and one of these levels (0: coarsest) has a guidance scale other than 1."""
        return self.labelled and self.settings.guided(levels)

    def guide(self, logits: Tensor, level: int, moment: float) -> Tensor:
        """Guided logits (B, ...), from logits (2B, ...): first those of the labels, then those of the null label."""
        conditional, unconditional = logits.chunk(2)
        scale = self.settings.scale(level, moment)
        return conditional if scale == 1 else guide(conditional, unconditional, scale)

    def uniforms(self, count: int, *purpose: int | str) -> Tensor:
        """Random numbers, float64 (B, count) in [0, 1), the same at every call with one `purpose`: see `Streams`."""
        return self.streams.uniforms(count, *purpose)

    def choose(self, logits: Tensor, uniforms: Tensor, level: int) -> Tensor:
        """One token for each row, int64 (B,), from logits (B, V) and random numbers (B,), by the level's settings."""
        return choose(logits, uniforms, **self.filters[level])

    def greedy(self, level: int) -> bool:
        """Whether the level's temperature is 0."""
        return self.filters[level]["temperature"] == 0

    def advance(self, share: float) -> None:
        """Passes the share of the work that was done on to `tick`."""
        self.tick(share)


@torch.inference_mode()
def generate(
    prior: Prior,
    labels: Tensor | None,
    streams: Streams,
    settings: Settings,
    forced: Tensor | None = None,
    tick: Callable[[float], object] = lambda share: None,
) -> Tensor:
    """Draws the codes of a batch of images.

    Guidance runs the null label beside the label, in one batch of 2B rows. It is skipped when every scale is exactly 1,
    and when there are no labels. In a chain, each link decides for itself.

    Args:
        prior: a prior over all levels of its layout.
        labels: int64 (B,), or None for the null label.
        streams: the images' random streams.
        settings: the sampling settings.
        forced: int64 (B, N), the codes that are kept as they are; -1 where the prior draws one. None: it draws all.
        tick: called as codes are drawn, with the share of the work that was done. The shares sum to 1.

    Returns:
        int64 tokens (B, N), on the streams' device.

    Raises:
        UserError: the prior gave logits that are not numbers.
    """
    batch, layout = len(streams.indices), prior.layout
    labelled = labels is not None and prior.num_classes > 0
    if labels is None:
        labels = torch.full((batch,), prior.num_classes, device=streams.device)
    if forced is None:
        forced = labels.new_full((batch, layout.num_tokens), -1)
    sampler = BatchSampler(streams, settings, len(layout.levels), labelled, tick)
    with torch.autocast(streams.device.type, enabled=False):  # the prior's own precision is what was asked for
        return prior.decode(sampler, labels, labels.new_empty(batch, 0), forced, Part())


def known_tokens(layout: CodeLayout, known: Tensor) -> Tensor:
    """Which tokens stand for known pixels only, bool (B, N), from which pixels are known, bool (B, 1, H, W).

    A position of a coarser grid stands for all pixels of the positions of the finest grid that it averages.
    """
    finest = layout.levels[-1]
    unknown = F.adaptive_max_pool2d((~known).float(), (finest.height, finest.width))
    grids = []
    for level in layout.levels:
        cells = F.adaptive_max_pool2d(unknown, (level.height, level.width))[:, 0] == 0
        grids.append(cells[..., None].expand(-1, -1, -1, level.depth))
    return layout.flatten(grids)
