"""The mixture of logistics against its definition: sums to 1, coupling, gradients and the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from stage1_vqvae.likelihoods.discretized_logistic import DiscretizedLogistic
from stage1_vqvae.likelihoods.mixture_of_logistics import START, MixtureOfLogistics


def mixture(components: int = 3) -> torch.nn.Module:
    return MixtureOfLogistics(components=components, min_log_scale=-7.0)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_mixture_each_channel_given_those_before_it_sums_to_one(channels: int, spread: float) -> None:
    torch.manual_seed(0)
    likelihood = mixture()
    parameters = torch.randn(1, likelihood.parameter_channels(channels), 1, 1, dtype=torch.float64) * spread
    before = torch.randint(256, (1, channels, 1, 1), dtype=torch.uint8)
    for channel in range(channels):
        pixels = before.repeat(256, 1, 1, 1)
        pixels[:, channel, 0, 0] = torch.arange(256)
        log_p = likelihood.log_prob(parameters.expand(256, -1, -1, -1), pixels)[:, channel]
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_mixture_is_its_definition_in_numpy() -> None:
    """PixelCNN++'s form: the location of green is a linear function of the true red."""
    random = np.random.default_rng(0)
    weight, mu, log_s, raw = (random.normal(size=s) for s in ((2,), (2, 3), (2, 3), (2, 3)))
    x = np.array([40, 200, 255])
    images, alpha = x / 127.5 - 1, np.tanh(raw)
    joint = []
    for k in range(2):
        place = mu[k].copy()
        place[1] = mu[k, 1] - alpha[k, 0] * mu[k, 0] + alpha[k, 0] * images[0]
        place[2] = mu[k, 2] + alpha[k, 1] * (images[0] - mu[k, 0]) + alpha[k, 2] * (images[1] - mu[k, 1])
        low = np.where(x == 0, -np.inf, images - 1 / 255)
        high = np.where(x == 255, np.inf, images + 1 / 255)
        p = stats.logistic.cdf(high, place, np.exp(log_s[k])) - stats.logistic.cdf(low, place, np.exp(log_s[k]))
        joint.append(np.exp(weight[k]) / np.exp(weight).sum() * p.prod())
    parts = np.concatenate([weight[:, None], mu, log_s - START, raw], 1)  # a component's parameters lie together
    tensor = torch.from_numpy(parts.reshape(1, -1, 1, 1))
    pixels = torch.tensor(x, dtype=torch.uint8).view(1, 3, 1, 1)
    found = mixture(2).nll(tensor, pixels)
    assert found.item() == pytest.approx(-math.log(sum(joint)), rel=1e-9)


def test_one_component_without_coupling_is_the_discretised_logistic() -> None:
    torch.manual_seed(0)
    location_scale = torch.randn(2, 6, 4, 4)
    start = torch.tensor([0.0] * 3 + [START] * 3).view(6, 1, 1)
    parameters = torch.cat([torch.randn(2, 1, 4, 4), location_scale - start, torch.zeros(2, 3, 4, 4)], 1)
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    single = DiscretizedLogistic(min_log_scale=-7.0)
    torch.testing.assert_close(mixture(1).log_prob(parameters, pixels), single.log_prob(location_scale, pixels))
    images = pixels / 127.5 - 1
    torch.testing.assert_close(mixture(1).loss(parameters, images, 1.0), single.loss(location_scale, images, 1.0))


def test_red_changes_greens_distribution_and_green_not_reds() -> None:
    torch.manual_seed(0)
    likelihood = mixture()
    parameters = torch.randn(1, likelihood.parameter_channels(3), 1, 1)
    pixels = torch.tensor([100, 150, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    first = likelihood.log_prob(parameters, pixels).flatten()
    red, green = pixels.clone(), pixels.clone()
    red[:, 0], green[:, 1] = 101, 151
    assert likelihood.log_prob(parameters, red).flatten()[1] != first[1]
    assert likelihood.log_prob(parameters, green).flatten()[0] == first[0]


@pytest.mark.parametrize("spread", [0.0, 3.0, 100.0, 1e4])
def test_mixture_loss_and_gradient_are_finite_everywhere(spread: float) -> None:
    torch.manual_seed(0)
    likelihood = mixture()
    parameters = (torch.randn(4, likelihood.parameter_channels(3), 2, 2) * spread).bfloat16().float().requires_grad_()
    images = torch.tensor([0, 1, 128, 255]).view(4, 1, 1, 1).expand(-1, 3, 2, 2) / 127.5 - 1
    loss = likelihood.loss(parameters, images, 1.0)
    loss.backward()
    assert loss.isfinite() and parameters.grad.isfinite().all()
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    assert loss.item() == pytest.approx(likelihood.nll(parameters, pixels).mean().item() / 12, rel=1e-4)


def component(weight: float, location: list[float], log_scale: list[float], coupling: list[float]) -> np.ndarray:
    """One component's parameters, as the decoder gives them."""
    return np.concatenate([[weight], location, np.array(log_scale) - START, np.arctanh(coupling)])


def expectation_of_two_channels(likelihood: torch.nn.Module, parameters: torch.Tensor) -> np.ndarray:
    """The mean over all 65,536 pairs of values, whose probabilities must sum to 1."""
    red, green = torch.meshgrid(*[torch.arange(256, dtype=torch.uint8)] * 2, indexing="ij")
    pixels = torch.stack([red, green])[None]
    joint = likelihood.log_prob(parameters.expand(-1, -1, 256, 256), pixels).sum(1).exp()
    assert joint.sum().item() == pytest.approx(1, abs=1e-9)
    return (joint[:, None] * (pixels / 127.5 - 1)).sum((0, 2, 3)).numpy()


@pytest.mark.parametrize(
    ("parts", "tolerance"),
    [
        ([component(0, [-0.3, -0.2], [-4, -4], [0.8]), component(0.7, [0.4, 0.5], [-4, -4], [-0.8])], 1e-3),
        ([component(0, [-5, -5], [-3, -3], [0]), component(0, [0.5, 0.5], [-3, -3], [0])], 1e-3),
        ([component(0, [-3, 0], [-3, -3], [0.9]), component(0, [0.5, 0.5], [-3, -3], [0.9])], 1e-3),
        ([component(0, [-0.9, -0.9], [-1, -1], [0.5]), component(0, [0.5, 0.5], [-1, -1], [0.5])], 5e-3),
    ],
    ids=["inside", "a component beyond the range", "coupled to a channel beyond the range", "wide"],
)
def test_mixture_mean_is_the_expectation_over_all_values(parts: list[np.ndarray], tolerance: float) -> None:
    """Saturated pixels drive locations far outside [-1, 1], so that an average of locations would not be the mean."""
    parameters = torch.from_numpy(np.concatenate(parts)).view(1, -1, 1, 1)
    expected = expectation_of_two_channels(mixture(2), parameters)
    np.testing.assert_allclose(mixture(2).mean(parameters).flatten(), expected, atol=tolerance)
