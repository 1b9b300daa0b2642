"""The common part of LFQ and BSQ: a code is the sign of every channel, so that 2^18 codes need no table.

Sources: Yu et al. 2023, "Language Model Beats Diffusion" (MAGVIT-v2), section 3.2, for LFQ; Zhao et al. 2024, "Image
and Video Tokenization with Binary Spherical Quantization", section 4, for BSQ.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.entropy import assignment_entropy
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput


class BinaryQuantizer(Quantizer):
    """Quantizes each channel to its sign. A subclass sets `spherical`.

    The loss is the commitment, plus `entropy_cost` times (the mean entropy of the vectors' soft assignments −
    `diversity` times the entropy of the mean assignment). The soft assignment of z is softmax(−|z − c|²/
    `entropy_temperature`) over all codes. The bits are independent in it, so the entropy of each vector's assignment is
    exact. In the mean assignment the bits are not independent. Its entropy is computed exactly within groups of
    `entropy_group_bits` bits and added up over the groups, as in BSQ's section 4.

    Attributes:
        spherical: True: z is projected to the unit sphere, and codes are ±1/√bits in each channel. False: codes are ±1.
    """

    spherical: bool

    def __init__(
        self,
        *,
        bits: int,
        commitment_cost: float,
        entropy_cost: float,
        entropy_temperature: float,
        diversity: float,
        entropy_group_bits: int,
        inside_residual: bool = False,
    ) -> None:
        super().__init__(2**bits, inside_residual=inside_residual)
        self.dim, self.code_dim = bits, bits
        self.estimator = Estimator("straight_through")
        self.commitment_cost, self.entropy_cost, self.diversity = commitment_cost, entropy_cost, diversity
        self.entropy_temperature, self.entropy_group_bits = entropy_temperature, entropy_group_bits
        self.whole_batch = entropy_cost > 0
        self.scale = bits**-0.5 if self.spherical else 1.0
        # The index is a binary number whose highest bit is the first channel's.
        self.register_buffer("basis", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    def to_target(self, z: torch.Tensor) -> torch.Tensor:
        """Projects z (..., D) to the unit sphere if the quantizer is spherical."""
        return F.normalize(z, dim=-1) if self.spherical else z

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Takes the signs of each target (..., D). The sign of 0 is negative."""
        indices = ((target.detach() > 0) * self.basis).sum(-1, keepdim=True)
        code = self.embed(indices)
        loss = self.commitment_cost * F.mse_loss(target, code)
        if self.training:
            self.note(indices)
            if self.entropy_cost:
                of_each, of_mean = self.entropies(target.reshape(-1, self.dim))
                loss = loss + self.entropy_cost * (of_each - self.diversity * of_mean)
        return QuantizerOutput(self.apply_estimator(target, code), indices, loss, target.detach(), code)

    def entropies(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two entropies of the soft assignments of targets (M, D), added up over groups of bits, in nats.

        Returns:
            the mean entropy of the assignments, and the entropy of the mean assignment, both scalars.
        """
        of_each = of_mean = target.new_zeros(())
        for part in target.split(self.entropy_group_bits, dim=1):
            codes = torch.arange(2 ** part.shape[1], device=part.device)
            codes = signs(codes[:, None], self.basis[-part.shape[1] :]).to(part) * self.scale
            # All codes have the same norm. −|z − c|² is therefore 2 z·c plus a constant, and no bias is needed.
            found = assignment_entropy(part, codes, 2 / self.entropy_temperature)
            of_each, of_mean = of_each + found[0], of_mean + found[1]
        return of_each, of_mean

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return signs(indices, self.basis) * self.scale


def signs(indices: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The bits of int64 indices (..., 1) as −1 and 1, float32 (..., bits). `basis` (bits,) is the value of each bit."""
    return ((indices & basis) != 0).float() * 2 - 1
