"""Random numbers for stochastic codes: each image's from a seed of its own."""

from __future__ import annotations

import torch


def uniforms(shape: tuple[int, ...], seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """float32 numbers in (0, 1) of shape (B, ...).

    Row b depends on seeds[b] alone, so that an image draws the same in any batch and on any number of processes.

    Args:
        seeds: int64 (B,); None: torch's global generator.
    """
    if seeds is None:
        drawn = torch.rand(shape, device=device)
    else:
        rows = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
        drawn = torch.stack([torch.rand(shape[1:], generator=row, device=device) for row in rows])
    return drawn.clamp_(torch.finfo(drawn.dtype).tiny, 1 - torch.finfo(drawn.dtype).eps / 2)


def gumbels(shape: tuple[int, ...], seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Standard Gumbel numbers, float32, of shape (B, ...); `seeds` as in `uniforms`."""
    return uniforms(shape, seeds, device).log_().neg_().log_().neg_()


def normals(shape: tuple[int, ...], seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Standard normal numbers, float32, of shape (B, ...); `seeds` as in `uniforms`."""
    return torch.special.ndtri(uniforms(shape, seeds, device))
