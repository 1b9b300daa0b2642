"""The base class of all networks. docs/architecture.md lists what a network must define."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stage1_vqvae.quantizers.output import QuantizerOutput, planes


class Network(nn.Module):
    """An encoder and a decoder around the codes of one or more levels. Lists of levels start with the coarsest.

    A subclass is built with `image_shape` (C, H, W); `outputs`, the number of channels of the likelihood's parameters;
    `codebook_dim`, the width D of z; and the values of its section in params.yaml as keyword arguments. The class
    `Parameters` in the same file has `factor`, the number that must divide height and width, and `levels`, the number
    of levels of codes.

    Attributes:
        stochastic: whether `trained_by` draws random numbers.
    """

    stochastic = False

    @staticmethod
    def grids_of(image_shape: tuple[int, int, int], **parameters: object) -> list[tuple[int, int]]:
        """The (height, width) of each level's code grid, coarsest first.

        Args:
            image_shape: (C, H, W).
            parameters: the values of the network's section in params.yaml.
        """
        raise NotImplementedError

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Turns images (B, C, H, W) in [-1, 1] into one feature map per level."""
        raise NotImplementedError

    def latent(self, level: int, feature: torch.Tensor, context: Any) -> torch.Tensor:
        """Computes z of a level.

        Args:
            level: the number of the level, from 0 for the coarsest.
            feature: the level's feature map from `encode`.
            context: what `context` returned for the next coarser level; None for the coarsest level.

        Returns:
            z (B, D, h, w).
        """
        raise NotImplementedError

    def context(self, level: int, z_q: torch.Tensor, context: Any) -> Any:
        """Computes what the next finer level is conditioned on. It is called for all levels but the finest.

        Args:
            level: the number of the level, from 0 for the coarsest.
            z_q: (B, D, h, w), the quantized vectors of this level.
            context: what this level itself was conditioned on; None for the coarsest level. A network may add to it,
                so that a level codes what all coarser levels left over.
        """
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Module:
        """The decoder's last layer with weights. An adaptive weight of the objective compares gradients there.

        Blocks that are added to a refined decoder (`ConvNetwork.added_blocks`) may follow it.
        """
        raise NotImplementedError

    def decoder_inputs(self, quantized: list[torch.Tensor]) -> list[torch.Tensor]:
        """What `decode` takes, computed from z_q (B, D, h, w) of all levels. By default it is these."""
        return quantized

    def decode(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Turns what `decoder_inputs` returned into the parameters of the likelihood (B, outputs, H, W)."""
        raise NotImplementedError

    def left_out(self, z_q: torch.Tensor) -> torch.Tensor:
        """What stands for z_q (B, D, h, w) of a level that is left out. By default its mean embedding."""
        return z_q.mean((0, 2, 3), keepdim=True).expand_as(z_q)

    def shown_with(self, level: int) -> list[int]:
        """The levels that a picture of one level decodes. By default this level alone."""
        return [level]

    def trained_by(
        self,
        features: list[torch.Tensor],
        outputs: list[QuantizerOutput],
        contexts: list[Any],
        seeds: torch.Tensor | None,
    ) -> tuple[list[QuantizerOutput], list[torch.Tensor]]:
        """What training takes: the quantizers' outputs, and what `decode` turns into the parameters.

        By default, the outputs stay as they are, and their z_q is decoded.

        Args:
            features: what `encode` returned.
            outputs: the output of each level's quantizer.
            contexts: what `context` returned for each level but the finest.
            seeds: int64 (B,), random seeds, one per image. None uses torch's global generator.
        """
        return outputs, self.decoder_inputs([planes(output.z_q) for output in outputs])
