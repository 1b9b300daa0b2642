"""A PixelSNAIL over codes: one network a level, a finer level conditioned on all coarser ones."""

from __future__ import annotations

from stage2_prior.priors.grid import GridPrior
from stage2_prior.priors.sections import NetworkParams, Odd
from stage2_prior.priors.snail import SnailGrid
from tessera.codes.layout import CodeLayout
from tessera.parameters.sections import Count, Misfit, Positive, PositiveFloat


class Parameters(NetworkParams):
    """Parameters of `pixelsnail`; a layer is `residuals` residual blocks and an attention.

    `hidden`: width inside a residual block, as a fraction of the width. `heads`: of attention, 0 for none.
    `conditioning_blocks`: residual blocks over the coarser levels' codes.
    """

    heads: Count
    kernel_size: Odd
    residuals: Positive
    hidden: PositiveFloat
    conditioning_blocks: Count

    def fits_together(self) -> None:
        if self.heads and self.width % (2 * self.heads):
            raise Misfit(f"width {self.width} must be a multiple of twice the heads {self.heads}")
        if self.width * self.hidden < 1:
            raise Misfit(f"hidden {self.hidden} leaves no channel of a width of {self.width}")


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
        layers: int,
        width: int,
        heads: int,
        dropout: float,
        kernel_size: int,
        residuals: int,
        hidden: float,
        conditioning_blocks: int,
        first: int = 0,
    ) -> None:
        """`heads`: of attention, 0 for none (as for the finest levels of large images)."""
        size = {"channels": width, "hidden": int(hidden * width), "kernel_size": kernel_size, "blocks": layers}
        size |= {"residuals": residuals, "heads": heads, "dropout": dropout}
        grids = [SnailGrid(level, **size) for level in layout.levels[first:]]
        super().__init__(layout, num_classes, first, width, grids, conditioning_blocks)
