"""The prior `pixelcnn`: a gated PixelCNN for each level, conditioned on all coarser levels."""

from __future__ import annotations

from stage2_prior.priors.gated import GatedGrid
from stage2_prior.priors.grid import GridPrior
from stage2_prior.priors.sections import NetworkParams, Odd
from tessera.codes.layout import CodeLayout
from tessera.parameters.sections import Misfit, PositiveFloat


class Parameters(NetworkParams):
    """The section `pixelcnn` of params.yaml. Each of the `layers` is two convolutions, one in each stack.

    `channels`: channels of each stack, as a fraction of `width`. `kernel_size`: positions a side of a kernel.
    """

    channels: PositiveFloat
    kernel_size: Odd

    def fits_together(self) -> None:
        if self.width * self.channels < 1:
            raise Misfit(f"channels {self.channels} of a width of {self.width} leaves none")


class PixelCNN(GridPrior):
    """p(codes | label), level by level in raster order, by gated convolutions that see all earlier positions.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2. One network for
    each level: Razavi, van den Oord and Vinyals 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", 3.2.
    """

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        *,
        layers: int,
        width: int,
        channels: float,
        kernel_size: int,
        dropout: float,
        first: int = 0,
    ) -> None:
        size = {"layers": layers, "channels": int(channels * width), "kernel_size": kernel_size, "dropout": dropout}
        grids = [GatedGrid(level, **size) for level in layout.levels[first:]]
        super().__init__(layout, num_classes, first, size["channels"], grids, conditioning_blocks=1)
