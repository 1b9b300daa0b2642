"""The prior `pixelsnail`: a PixelSNAIL for each level, conditioned on all coarser levels."""

from __future__ import annotations

from stage2_prior.priors.grid import GridPrior
from stage2_prior.priors.sections import NetworkParams, Odd
from stage2_prior.priors.snail import SnailGrid
from tessera.codes.layout import CodeLayout
from tessera.parameters.sections import Count, Misfit, Positive, PositiveFloat


class Parameters(NetworkParams):
    """The section `pixelsnail` of params.yaml. A layer is `residuals` residual blocks, then an attention.

    `channels`: as a fraction of the width. `hidden`: channels inside a residual block, as a fraction of the channels.
    `heads`: of the attention; 0: there is none. `kernel_size`: positions a side. `conditioning_blocks`: residual blocks
    over the codes of the coarser levels.
    """

    heads: Count
    channels: PositiveFloat
    kernel_size: Odd
    residuals: Positive
    hidden: PositiveFloat
    conditioning_blocks: Count

    def fits_together(self) -> None:
        channels = int(self.width * self.channels)
        if self.heads and channels % (2 * self.heads):
            raise Misfit(
                f"{channels} channels (channels {self.channels} of width {self.width}) must be a multiple of twice the "
                f"heads {self.heads}"
            )
        if channels * self.hidden < 1:
            raise Misfit(f"hidden {self.hidden} of {channels} channels leaves none")


class PixelSNAIL(GridPrior):
    """p(codes | label), level by level in raster order, by causal gated residual blocks and causal attention.

    Source: Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model"; one
    network for each level, with residual blocks over the coarser codes: Razavi et al. 2019, section 3.2.
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
        channels: float,
        kernel_size: int,
        residuals: int,
        hidden: float,
        conditioning_blocks: int,
        first: int = 0,
    ) -> None:
        """Arguments: see the attributes of `Prior` for the layout, and `Parameters` for the sizes.

        The finest levels of large images are usually modelled without attention.
        """
        size = {"channels": int(channels * width), "kernel_size": kernel_size, "blocks": layers}
        size["hidden"] = int(hidden * size["channels"])
        size |= {"residuals": residuals, "heads": heads, "dropout": dropout}
        grids = [SnailGrid(level, **size) for level in layout.levels[first:]]
        super().__init__(layout, num_classes, first, size["channels"], grids, conditioning_blocks)
