"""p(x | z) by name: distributions over 8-bit pixels, given the decoder's parameters.

Each sums to 1 over the 256 values; log-probabilities are float64, in nats. To add one: a class or function of
logistic.py's contract, its parameters, and a line here.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from stage1_vqvae.likelihoods.fitted import gaussian, laplace
from stage1_vqvae.likelihoods.logistic import DiscretizedLogistic, MixtureOfLogistics

LIKELIHOODS = {
    "gaussian": gaussian,
    "laplace": laplace,
    "discretized_logistic": DiscretizedLogistic,
    "mixture_of_logistics": MixtureOfLogistics,
}


def build_likelihood(config: dict[str, Any]) -> nn.Module:
    """The likelihood named in `config`."""
    return LIKELIHOODS[config["name"]](**config[config["name"]])
