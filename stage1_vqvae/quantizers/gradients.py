"""Gradient estimators: functions that return the code and define which gradient z receives for it.

All of them return exactly the code, except `diveq` with noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stage1_vqvae.quantizers.noise import normals


class _StraightThrough(torch.autograd.Function):
    """Returns the code in the forward pass and hands the gradient to z in the backward pass."""

    @staticmethod
    def forward(ctx: object, z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        return code.view_as(code)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def straight_through(z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Returns the code and passes its gradient to z unchanged.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", section 3.2.

    Args:
        z: float32 (..., D).
        code: float32 (..., D), the code of each z. It receives no gradient.

    Returns:
        float32 (..., D), equal to `code`.
    """
    return _StraightThrough.apply(z, code.detach())


def rotation(z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Returns the code, computed as a rotation and rescaling of z that the gradient treats as constant.

    Let ê and q̂ be the directions of z and of its code, and r the direction of ê + q̂. The code equals λRz with
    R = I − 2rrᵀ + 2q̂êᵀ and λ = ‖q‖/‖z‖. Two special cases follow. At ê = −q̂ no single rotation is defined; there r is
    0, and R = I − 2êêᵀ is a reflection. At z = 0 there is no direction; there the
    gradient passes unchanged, as straight-through has it.

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.2.

    Args:
        z: float32 (..., D).
        code: float32 (..., D), the code of each z. It receives no gradient.

    Returns:
        float32 (..., D), equal to `code`.
    """
    with torch.no_grad():
        z_norm, code_norm = z.norm(dim=-1, keepdim=True), code.norm(dim=-1, keepdim=True)
        at_zero = z_norm == 0
        z_unit = z / z_norm.masked_fill(at_zero, 1)
        code_unit = (code / code_norm.clamp_min(torch.finfo(z.dtype).tiny)).masked_fill(at_zero, 0)
        r = F.normalize(z_unit + code_unit, dim=-1)
        scale = (code_norm / z_norm).masked_fill(at_zero, 1)

    def turn(x: torch.Tensor) -> torch.Tensor:
        along_r = (x * r).sum(-1, keepdim=True)
        along_z = (x * z_unit).sum(-1, keepdim=True)
        return scale * (x - 2 * along_r * r + 2 * along_z * code_unit)

    # turn(z) equals the code up to rounding. Straight-through removes the rounding and keeps the gradient of turn(z).
    return straight_through(turn(z), code)


def diveq(z: torch.Tensor, code: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Moves z towards the code by their distance, along a direction that the gradient treats as constant.

    The gradient reaches both z and the code. A codebook that is a parameter therefore needs no loss term of its own.

    Source: Vali et al. 2026, "DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick", figure 1.

    Args:
        z: float32 (..., D).
        code: float32 (..., D), the code of each z.
        noise: float32 (..., D) of small variance, added to code − z before it is normalised to a direction; or None.

    Returns:
        float32 (..., D). It equals `code` where `noise` is None; otherwise it lies near the code.
    """
    difference = code - z
    with torch.no_grad():
        direction = F.normalize(difference if noise is None else difference + noise, dim=-1)
    moved = z + direction * difference.norm(dim=-1, keepdim=True)
    # Without noise, adding the difference as a constant removes the rounding error of `moved`.
    return moved if noise is not None else moved + (code - moved).detach()


GRADIENT_ESTIMATORS: dict[str, Callable[..., torch.Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation,
    "diveq": diveq,
}


@dataclass(frozen=True)
class Estimator:
    """A gradient estimator, chosen by its name.

    Attributes:
        name: a key of GRADIENT_ESTIMATORS.
        variance: the variance of diveq's noise, 0 for none. The other estimators ignore it.
    """

    name: str
    variance: float = 0.0

    @property
    def stochastic(self) -> bool:
        """Whether a call draws random numbers. Only diveq with a variance above 0 does."""
        return self.name == "diveq" and self.variance > 0

    def __call__(self, z: torch.Tensor, code: torch.Tensor, seeds: torch.Tensor | None = None) -> torch.Tensor:
        """Applies the estimator.

        Args:
            z: float32 (..., D), or (B, ..., D) where `seeds` are given.
            code: float32, of z's shape.
            seeds: int64 (B,), random seeds of the noise, one per image. None uses torch's global generator.

        Returns:
            z_q, float32, of z's shape.
        """
        if self.stochastic:
            return diveq(z, code, normals(tuple(z.shape), seeds, z.device) * self.variance**0.5)
        return GRADIENT_ESTIMATORS[self.name](z, code)
