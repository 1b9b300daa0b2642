"""p(x | z) by name: distributions over 8-bit pixels, given the decoder's parameters.

To add one: a `Likelihood`, its section of params.yaml in common/params/stage1.py, and a line here.
"""

from __future__ import annotations

from typing import Any

from stage1_vqvae.likelihoods.base import Likelihood
from stage1_vqvae.likelihoods.fitted import gaussian, laplace
from stage1_vqvae.likelihoods.logistic import DiscretizedLogistic, MixtureOfLogistics

LIKELIHOODS = {
    "gaussian": gaussian,
    "laplace": laplace,
    "discretized_logistic": DiscretizedLogistic,
    "mixture_of_logistics": MixtureOfLogistics,
}


def build_likelihood(config: dict[str, Any]) -> Likelihood:
    """The likelihood named in `config`."""
    return LIKELIHOODS[config["name"]](**config[config["name"]])
