"""Last layers and embedding offsets that several priors share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.codes.layout import CodeLayout, Level


def project(head: nn.Linear, features: Tensor) -> Tensor:
    """Logits (..., K) by a last linear layer from features (..., width), in the layer's own precision.

    Autocast is switched off here: bf16 keeps 8 significant bits, and logits rounded to it would change probabilities by
    percents.
    """
    with torch.autocast(features.device.type, enabled=False):
        return head(features.to(head.weight.dtype))


class LevelHeads(nn.ModuleList):
    """A last linear layer for each depth of a level. Its weights start small, so that the first loss is near log K."""

    def __init__(self, level: Level, width: int) -> None:
        super().__init__(nn.Linear(width, size) for size in level.depth_sizes)
        for head in self:
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)


def widen(logits: Tensor, vocabulary: int) -> Tensor:
    """Pads logits (..., K) to (..., V) with -inf."""
    missing = vocabulary - logits.shape[-1]
    return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """Like `torch.cat`, but does not copy a single part. Logits are the largest tensors, so a copy would be costly."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def group_offsets(layout: CodeLayout) -> Tensor:
    """Where each token's embeddings begin in one table for all tokens, int64 (N + 1,).

    The last entry is the length of the table. Each depth of each level has a part of the table of its own, because
    codebooks have nothing to do with one another.
    """
    starts, total = {}, 0
    for index, level in enumerate(layout.levels):
        for depth, size in enumerate(level.depth_sizes):
            starts[index, depth] = total
            total += size
    places = layout.places.tolist()
    return torch.tensor([starts[level, depth] for level, _, _, depth in places] + [total])
