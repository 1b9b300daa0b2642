"""Lookup-free quantizers: a code is the sign of every channel, so that a codebook of 2^18 needs no table.

Sources: LFQ, Yu et al. 2023, "Language Model Beats Diffusion" (MAGVIT-v2), section 3.2; BSQ, Zhao et al. 2024, "Image
and Video Tokenization with Binary Spherical Quantization", section 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.entropy import assignment_entropy
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput


class BinaryQuantizer(Quantizer):
    """Signs of `bits` channels: ±1 each (LFQ), or, of a z on the unit sphere, ±1/√bits (BSQ, `spherical`).

    The loss adds to the commitment `entropy_cost` times (mean entropy of each vector's assignment − `diversity` times
    the entropy of the mean assignment); an assignment is softmax(−|z − c|²/`entropy_temperature`) over the codes. Bits
    are independent in it, so each vector's entropy is exact; the mean's is summed over groups of `entropy_group_bits`
    bits, exact within a group and, as BSQ has it, as if groups were independent.
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
    ) -> None:
        super().__init__(2**bits)
        self.dim, self.code_dim = bits, bits
        self.estimator = Estimator("straight_through")
        self.commitment_cost, self.entropy_cost, self.diversity = commitment_cost, entropy_cost, diversity
        self.entropy_temperature, self.entropy_group_bits = entropy_temperature, entropy_group_bits
        self.scale = bits**-0.5 if self.spherical else 1.0
        self.residual_scale = None if self.spherical else 0.5
        self.register_buffer("basis", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)  # the first bit is highest

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., D) as it is, or on the unit sphere."""
        return F.normalize(z, dim=-1) if self.spherical else z

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """The signs of each target (..., D); 0 counts as negative."""
        indices = ((target.detach() > 0) * self.basis).sum(-1, keepdim=True)
        code = self.embed(indices)
        loss = self.commitment_cost * F.mse_loss(target, code)
        if not self.training:
            return QuantizerOutput(code, indices, loss, target.detach(), code)
        self.note(indices)
        if self.entropy_cost:
            sure, even = self.entropies(target.reshape(-1, self.dim))
            loss = loss + self.entropy_cost * (sure - self.diversity * even)
        z_q = self.estimator(target, code)
        return QuantizerOutput(z_q, indices, loss, target.detach(), code)

    def entropies(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean entropy of the targets' (M, D) assignments, and the entropy of their mean; nats, summed over groups."""
        sure = even = target.new_zeros(())
        for part in target.split(self.entropy_group_bits, dim=1):
            codes = torch.arange(2 ** part.shape[1], device=part.device)
            codes = signs(codes[:, None], self.basis[-part.shape[1] :]).to(part) * self.scale
            # All codes have the same norm, so that −|z − c|² is 2 z·c and a constant.
            found = assignment_entropy(part, codes, 2 / self.entropy_temperature)
            sure, even = sure + found[0], even + found[1]
        return sure, even

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return signs(indices, self.basis) * self.scale


def signs(indices: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Indices (..., 1) to their bits as -1 and 1, float32 (..., bits)."""
    return ((indices & basis) != 0).float() * 2 - 1
