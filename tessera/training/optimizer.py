"""What a step does to weights: the learning rate, the optimizer, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from tessera.parameters.training import TrainingParams
from tessera.training.task import ParameterGroup

DEFAULTS = ParameterGroup(criterion="")


def learning_rate(step: int, params: TrainingParams) -> float:
    """The learning rate of a step, counted from 0.

    It rises linearly over `warmup_steps`. Then it falls to `final_learning_rate_fraction` of the full rate, along half
    a cosine or exponentially. It reaches this value after `schedule_steps` and keeps it.
    """
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    steps = params.schedule_steps or params.steps
    progress = min(1.0, (step - params.warmup_steps) / max(1, steps - params.warmup_steps))
    floor = params.final_learning_rate_fraction
    if params.schedule == "exponential":
        return params.learning_rate * floor**progress
    return params.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    params: TrainingParams,
    undecayed: frozenset[str] = frozenset(),
    group: ParameterGroup = DEFAULTS,
) -> torch.optim.AdamW:
    """AdamW for the parameters that require a gradient.

    Parameters of two or more dimensions (matrices, kernels, embeddings) have weight decay, except those that
    `undecayed` names. Parameters of one dimension (biases, those of norms) have none.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.

    Args:
        parameters: the parameters by name.
        params: learning rate, betas and weight decay.
        undecayed: names of parameters without weight decay, whatever their number of dimensions.
        group: its betas and weight decay replace those of `params` unless they are None; its
            `learning_rate_factor` multiplies the learning rate.
    """
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    decayed = {name for name, parameter in trained.items() if parameter.ndim >= 2 and name not in undecayed}
    decay = params.weight_decay if group.weight_decay is None else group.weight_decay
    parts = [
        {"params": [parameter for name, parameter in trained.items() if name in decayed], "weight_decay": decay},
        {"params": [parameter for name, parameter in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    rate, betas = params.learning_rate * group.learning_rate_factor, group.betas or params.betas
    return torch.optim.AdamW(parts, lr=rate, betas=betas, fused=True)


class WeightAverage:
    """An exponential moving average of parameters.

    Attributes:
        weights: the averages, by the parameters' names.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.source = decay, dict(parameters)
        self.weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the parameters, after a step counted from 0.

        The decay is smaller in the first steps, so that the average forgets the random initial weights.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self.source.values()), 1 - decay)
