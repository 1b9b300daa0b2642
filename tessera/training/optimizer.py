"""What a step does to weights: the learning rate, the optimizer, and their moving average."""

from __future__ import annotations

import math

import torch
from torch import nn

from tessera.parameters.training import TrainingParams


def learning_rate(step: int, params: TrainingParams) -> float:
    """Linear warm-up, then from the full rate to `final_learning_rate_fraction` of it, by a cosine or exponentially."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    progress = (step - params.warmup_steps) / max(1, params.steps - params.warmup_steps)
    floor = params.final_learning_rate_fraction
    if params.schedule == "exponential":
        return params.learning_rate * floor**progress
    return params.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(
    model: nn.Module, params: TrainingParams, codebooks: frozenset[str] = frozenset()
) -> torch.optim.AdamW:
    """AdamW; matrices, kernels and embeddings are decayed, not biases, norms, nor the parameters named codebooks."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim >= 2 and name not in codebooks]
    groups = [
        {"params": decayed, "weight_decay": params.weight_decay},
        {"params": [p for name, p in named if p.ndim < 2 or name in codebooks], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=(params.beta1, params.beta2), fused=True)


class WeightAverage:
    """An exponential moving average of a model's weights, but for the parameters left out."""

    def __init__(self, model: nn.Module, decay: float, left_out: frozenset[str]) -> None:
        self.decay = decay
        self.source = {n: p for n, p in model.named_parameters() if n not in left_out}
        self.weights = {n: p.detach().clone() for n, p in self.source.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # young averages forget their random start
        torch._foreach_lerp_(list(self.weights.values()), list(self.source.values()), 1 - decay)
