"""How evenly codes are used."""

from __future__ import annotations

import torch

from tessera.codes.layout import CodeLayout


def codebook_figures(counts: torch.Tensor) -> dict[str, float]:
    """How evenly the codes of one level are used. Each figure is computed for each depth, then averaged over depths.

    Args:
        counts: int64 (depth, K), how often each code occurs in a whole split.

    Returns:
        `codebook_usage`, the share of the K codes that occur, from 0 to 1; and `perplexity`, from 1 to K: exp of the
        entropy, in nats, of the frequencies of the codes.
    """
    shares = counts.cpu().double() / counts.sum(-1, keepdim=True).cpu()
    perplexity = torch.special.entr(shares).sum(-1).exp()
    return {"codebook_usage": (counts > 0).double().mean().item(), "perplexity": perplexity.mean().item()}


class CodeCounts:
    """How often each code occurs, summed over batches.

    Attributes:
        levels: int64 (depth, K) for each level.
    """

    def __init__(self, layout: CodeLayout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        sizes = [(level.depth, level.codebook_size) for level in layout.levels]
        self.levels = [torch.zeros(size, dtype=torch.int64, device=device) for size in sizes]

    def add(self, codes: list[torch.Tensor]) -> None:
        """Add the codes of grids [(B, h, w, depth), ...]."""
        for total, more in zip(self.levels, self.layout.counts(codes), strict=True):
            total += more

    def figures(self) -> list[dict[str, float]]:
        """The `codebook_figures` of each level, coarsest first."""
        return [codebook_figures(level) for level in self.levels]
