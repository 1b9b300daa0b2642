"""Random numbers for stochastic codes: each image's from a seed of its own."""

from __future__ import annotations

import torch


def derived(seeds: torch.Tensor | None, key: int) -> torch.Tensor | None:
    """Other seeds int64 (B,) for another use of the same images: a level, a depth, a group.

    Unequal keys give seeds that differ in their lower 32 bits, the only ones that a CPU generator uses.
    """
    return None if seeds is None else (seeds * 6364136223846793005 + (key + 1) * 2654435769) & (2**63 - 1)


def uniforms(shape: tuple[int, ...], seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """float32 numbers in (0, 1) of shape (B, ...).

    Row b depends on seeds[b] alone, so that an image draws the same in any batch and on any number of processes.

    Args:
        seeds: int64 (B,); None: torch's global generator.

    Raises:
        ValueError: not one seed a row.
    """
    if seeds is not None and len(seeds) != shape[0]:
        raise ValueError(f"expected {shape[0]} seeds, one an image, got {len(seeds)}")
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
