"""A PixelSNAIL over codes: one network a level, a finer level conditioned on all coarser ones."""

from __future__ import annotations

from common.codes import CodeLayout
from stage2_prior.priors.grid import GridPrior
from stage2_prior.priors.snail import SnailGrid


class PixelSNAIL(GridPrior):
    """p(codes | label), level by level in raster order, by causal gated residual blocks and causal attention.

    Source: Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model"; a network a level, the finer
    ones behind a stack of residual blocks over the coarser codes, as in Razavi et al. 2019, section 3.2.
    """

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        *,
        channels: int,
        hidden_channels: int,
        kernel_size: int,
        blocks: int,
        residuals: int,
        heads: int,
        conditioning_blocks: int,
        dropout: float,
        first: int = 0,
    ) -> None:
        """`heads`: of attention, 0 for none (as for the finest levels of large images)."""
        size = {"channels": channels, "hidden": hidden_channels, "kernel_size": kernel_size, "blocks": blocks}
        size |= {"residuals": residuals, "heads": heads, "dropout": dropout}
        grids = [SnailGrid(level, **size) for level in layout.levels[first:]]
        super().__init__(layout, num_classes, first, channels, grids, conditioning_blocks)
