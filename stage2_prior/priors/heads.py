"""What every prior does alike: the null label, logits beyond a codebook, nats a token, the order of decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.codes import CodeLayout


def fill_labels(labels: Tensor | None, tokens: Tensor, num_classes: int) -> Tensor:
    """int64 labels (B,): those given, or the null label (= num_classes) for every row of `tokens`."""
    return tokens.new_full((len(tokens),), num_classes) if labels is None else labels


def project(head: nn.Linear, features: Tensor) -> Tensor:
    """A last linear layer in its own precision, outside any autocast: (..., width) -> (..., K) logits.

    bf16 has 8 bits: logits rounded to it would change probabilities by percents.
    """
    with torch.autocast(features.device.type, enabled=False):
        return head(features.to(head.weight.dtype))


def start_heads(heads: nn.ModuleList) -> None:
    """Start linear layers so that the first logits are near 0, and the first loss near log K."""
    for head in heads:
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)


def widen(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits (..., K) to (..., V), -inf beyond K."""
    return F.pad(logits, (0, vocabulary - logits.shape[-1]), value=float("-inf"))


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token, nats: logits (B, N, V), int64 tokens (B, N) -> (B, N)."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def group_offsets(layout: CodeLayout) -> Tensor:
    """int64 (N + 1,): where each token's embeddings begin in one table for all; the last entry is the table's length.

    Each depth of each level has a part of its own, as code 3 of one codebook has nothing to do with code 3 of another.
    """
    starts, total = {}, 0
    for index, level in enumerate(layout.levels):
        for depth in range(level.depth):
            starts[index, depth] = total
            total += level.codebook_size
    places = layout.places.tolist()
    return torch.tensor([starts[level, depth] for level, _, _, depth in places] + [total])


def check_step(position: int, tokens: Tensor | None, layout: CodeLayout) -> None:
    """Refuse a decoding step out of order.

    Raises:
        ValueError: the sequence is complete, the first step is given tokens, or a later one is not.
    """
    if position >= layout.num_tokens:
        raise ValueError(f"the sequence is complete: it has {layout.num_tokens} tokens")
    if (tokens is None) != (position == 0):
        raise ValueError(f"token {position}: the first step takes no tokens, every later one the tokens just chosen")


def refuse_context(context: object) -> None:
    """Refuse given coarser levels: these priors make every level of their layout.

    Raises:
        ValueError: `context` is not None.
    """
    if context is not None:
        raise ValueError("this prior covers all levels of its layout and takes no context")
