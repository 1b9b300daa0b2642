"""What every network is: an encoder and a decoder around the codes of one or more levels."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """Encoder and decoder. Levels are in order, the coarsest first; a level's z is (B, D, h, w).

    Built from `image_shape` (C, H, W), `outputs` (channels of the likelihood's parameters), `codebook_dim` D, and the
    parameters of its section in params.yaml.
    """

    @staticmethod
    def grids_of(image_shape: tuple[int, int, int], **parameters: object) -> list[tuple[int, int]]:
        """Each level's (height, width), known before the network is built."""
        raise NotImplementedError

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, C, H, W) to a feature map for each level."""
        raise NotImplementedError

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """z (B, D, h, w) of a level, from its feature map and the context that the coarser levels left (None: none)."""
        raise NotImplementedError

    def context(self, level: int, z_q: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor | None:
        """What the next finer level is conditioned on; None after the finest.

        Args:
            z_q: (B, D, h, w), the level's codes.
            context: what this level itself was conditioned on, so that a context may add up over levels.
        """
        raise NotImplementedError

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        """z_q of all levels to the likelihood's parameters (B, outputs, H, W)."""
        raise NotImplementedError
