"""Random numbers for quantizers that draw. Each image has a random seed of its own."""

from __future__ import annotations

import torch


def derived(seeds: torch.Tensor | None, key: int) -> torch.Tensor | None:
    """Derives new seeds from the seeds of the same images, for example for another level, depth or group.

    Two different keys give seeds that differ in their lower 32 bits, which are the only bits that a CPU generator uses.

    Args:
        seeds: int64 (B,), one per image, or None.
        key: the number of the level, depth or group.

    Returns:
        int64 (B,), not negative, or None where `seeds` is None.
    """
    return None if seeds is None else (seeds * 6364136223846793005 + (key + 1) * 2654435769) & (2**63 - 1)


def uniforms(shape: tuple[int, ...], seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Uniform random numbers in (0, 1), float32, of shape (B, ...).

    The numbers of row b depend only on seeds[b]. An image therefore draws the same numbers in any batch and on any
    number of processes.

    Args:
        seeds: int64 (B,), one per image. None uses torch's global generator.

    Raises:
        ValueError: the number of seeds is not B.
    """
    if seeds is not None and len(seeds) != shape[0]:
        raise ValueError(f"expected {shape[0]} seeds, one for each image, got {len(seeds)}")
    if seeds is None:
        drawn = torch.rand(shape, device=device)
    else:
        rows = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
        drawn = torch.stack([torch.rand(shape[1:], generator=row, device=device) for row in rows])
    return drawn.clamp_(torch.finfo(drawn.dtype).tiny, 1 - torch.finfo(drawn.dtype).eps / 2)


def gumbels(shape: tuple[int, ...], seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Standard Gumbel random numbers, float32, of shape (B, ...). See `uniforms` for `seeds` and what is raised."""
    return uniforms(shape, seeds, device).log_().neg_().log_().neg_()


def normals(shape: tuple[int, ...], seeds: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Standard normal random numbers, float32, of shape (B, ...). See `uniforms` for `seeds` and what is raised."""
    return torch.special.ndtri(uniforms(shape, seeds, device))
