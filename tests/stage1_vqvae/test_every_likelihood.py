"""Properties that every likelihood must have, checked for every file of stage1_vqvae/likelihoods that is an option."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stage1_vqvae.likelihoods.base import Likelihood
from stage1_vqvae.likelihoods.build import PACKAGE, build_likelihood
from tessera.parameters.parts import options

NAMES = list(options(PACKAGE))


@pytest.fixture
def build(params: Callable) -> Callable[[str], Likelihood]:
    """A likelihood with the values of params.yaml, fitted to random images if it is one that is fitted."""

    def make(name: str) -> Likelihood:
        torch.manual_seed(0)
        likelihood = build_likelihood(params({"stage1_vqvae.likelihood.name": name}).stage1_vqvae.likelihood.values())
        if likelihood.fit_images:
            parameters = torch.randn(8, likelihood.parameter_channels(3), 4, 4)
            likelihood.fit([(parameters, torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8))], 8)
        return likelihood

    return make


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_probabilities_of_the_256_values_sum_to_one(build, name: str, channels: int) -> None:
    likelihood = build(name)
    parameters = torch.randn(1, likelihood.parameter_channels(channels), 1, 1).expand(256, -1, -1, -1)
    before = torch.randint(256, (1, channels, 1, 1), dtype=torch.uint8)
    for channel in range(channels):
        pixels = before.repeat(256, 1, 1, 1)
        pixels[:, channel, 0, 0] = torch.arange(256)
        log_p = likelihood.log_prob(parameters, pixels)[:, channel]
        assert log_p.dtype == torch.float64 and log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_nll_is_that_of_its_values_at_the_outermost_pixels_too(build, name: str) -> None:
    likelihood = build(name)
    parameters = (torch.randn(2, likelihood.parameter_channels(3), 1, 3).double()).requires_grad_()
    pixels = torch.randint(256, (2, 3, 1, 3), dtype=torch.uint8)
    pixels[..., 0], pixels[..., 1] = 0, 255
    (gradient,) = torch.autograd.grad(likelihood.nll(parameters, pixels).sum(), parameters)
    assert torch.autograd.gradcheck(lambda p: likelihood.nll(p, pixels), parameters, atol=1e-4, rtol=1e-3)
    assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_loss_mean_and_nll_have_their_shapes_and_ranges(build, name: str) -> None:
    likelihood = build(name)
    parameters = (torch.randn(5, likelihood.parameter_channels(3), 4, 6) * 3).requires_grad_()
    pixels = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    loss = likelihood.loss(parameters, pixels.float() / 127.5 - 1, 0.25)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32 and parameters.grad.isfinite().all()
    mean, nll = likelihood.mean(parameters), likelihood.nll(parameters, pixels)
    assert mean.shape == pixels.shape and mean.dtype == torch.float32 and mean.abs().max() <= 1
    assert nll.shape == (5,) and nll.dtype == torch.float64 and nll.isfinite().all() and (nll > 0).all()
