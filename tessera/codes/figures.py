"""How evenly codes are used."""

from __future__ import annotations

import torch

from tessera.codes.layout import CodeLayout


def codebook_figures(counts: torch.Tensor) -> dict[str, float]:
    """`codebook_usage`, the share of codes that occur, and `perplexity`, exp(entropy), the means over depths.

    Args:
        counts: int64 (depth, K), of a whole split: over a batch they would say little.
    """
    shares = counts.cpu().double() / counts.sum(-1, keepdim=True).cpu()
    perplexity = torch.special.entr(shares).sum(-1).exp()
    return {"codebook_usage": (counts > 0).double().mean().item(), "perplexity": perplexity.mean().item()}


class CodeCounts:
    """How often each code occurs, summed over batches.

    Attributes:
        levels: int64 (depth, K) per level.
    """

    def __init__(self, layout: CodeLayout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        sizes = [(level.depth, level.codebook_size) for level in layout.levels]
        self.levels = [torch.zeros(size, dtype=torch.int64, device=device) for size in sizes]

    def add(self, codes: list[torch.Tensor]) -> None:
        """Count grids [(B, h, w, depth), ...] too."""
        for total, more in zip(self.levels, self.layout.counts(codes), strict=True):
            total += more

    def figures(self) -> list[dict[str, float]]:
        """`codebook_figures` of each level."""
        return [codebook_figures(level) for level in self.levels]
