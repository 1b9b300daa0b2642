"""How the decoder's gradient passes the quantizer: the estimators, each exact in the forward value."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        return code.view_as(code)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def straight_through(z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """The code, whose gradient goes to z unchanged (van den Oord et al. 2017, section 3.2).

    Args:
        z, code: (..., D) float32; `code` is the nearest code of each z.
    """
    return _StraightThrough.apply(z, code.detach())


def rotation(z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """The code, written as a rotation and rescaling of z that the gradient takes for constant.

    With ê and q̂ the directions of z and its code and r that of ê + q̂, the code is λRz with
    R = I − 2rrᵀ + 2q̂êᵀ and λ = ‖q‖/‖z‖ (Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation
    Trick", section 4.2). At ê = −q̂, where no single rotation is defined, r is 0 and R = I − 2êêᵀ reflects. At
    z = 0, which has no direction, λR is I: straight through.

    Args:
        z, code: (..., D) float32; `code` is the nearest code of each z.
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

    return straight_through(turn(z), code)  # turn(z) is the code but for rounding


GRADIENT_ESTIMATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation,
}
