"""Tables and last layers that several priors have alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.codes.layout import CodeLayout, Level


def project(head: nn.Linear, features: Tensor) -> Tensor:
    """A last linear layer in its own precision, outside any autocast: (..., width) -> (..., K) logits.

    bf16 has 8 bits: logits rounded to it would change probabilities by percents.
    """
    with torch.autocast(features.device.type, enabled=False):
        return head(features.to(head.weight.dtype))


class LevelHeads(nn.ModuleList):
    """A last linear layer for each depth of a level, started so that the first loss is near log K."""

    def __init__(self, level: Level, width: int) -> None:
        super().__init__(nn.Linear(width, size) for size in level.depth_sizes)
        for head in self:
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)


def widen(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits (..., K) to (..., V), -inf beyond K."""
    missing = vocabulary - logits.shape[-1]
    return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """`torch.cat`, without a copy of a single part: logits are the largest tensors there are."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def group_offsets(layout: CodeLayout) -> Tensor:
    """int64 (N + 1,): where each token's embeddings begin in one table for all; the last entry is the table's length.

    Each depth of each level has a part of its own, as code 3 of one codebook has nothing to do with code 3 of another.
    """
    starts, total = {}, 0
    for index, level in enumerate(layout.levels):
        for depth, size in enumerate(level.depth_sizes):
            starts[index, depth] = total
            total += size
    places = layout.places.tolist()
    return torch.tensor([starts[level, depth] for level, _, _, depth in places] + [total])
