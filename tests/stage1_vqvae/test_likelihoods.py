"""Likelihoods against scipy's distribution functions, closed forms, and the sum over all 256 values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from stage1_vqvae.likelihoods.build import build_likelihood
from stage1_vqvae.likelihoods.discretized_logistic import DiscretizedLogistic
from stage1_vqvae.likelihoods.fitted import FittedScale
from stage1_vqvae.likelihoods.gaussian import Gaussian
from stage1_vqvae.likelihoods.laplace import Laplace
from stage1_vqvae.likelihoods.logistic import clipped_mean

VALUES = np.arange(256)
IMAGES = VALUES / 127.5 - 1
LOWER = np.where(VALUES == 0, -np.inf, IMAGES - 1 / 255)
UPPER = np.where(VALUES == 255, np.inf, IMAGES + 1 / 255)
PIXELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
LOCATIONS = (-300.0, -3.0, -1.0, -0.4, 0.0, 1 / 255, 0.999, 1.7, 40.0)


def gaussian(scale: float) -> FittedScale:
    likelihood = Gaussian(fit_images=1)
    likelihood.log_scale.fill_(math.log(scale))
    return likelihood


def every_value(likelihood: torch.nn.Module, *parameters: float) -> np.ndarray:
    """log p of each of the 256 values under the same parameters."""
    tensor = torch.tensor(parameters, dtype=torch.float64).view(1, -1, 1, 1).expand(-1, -1, 1, 256)
    return likelihood.log_prob(tensor, PIXELS).numpy().ravel()


def oracle(family: stats.rv_continuous, location: float, scale: float) -> np.ndarray:
    """The log-probability of each value's interval, computed from the tail that keeps more digits."""
    left = family.cdf(UPPER, location, scale) - family.cdf(LOWER, location, scale)
    right = family.sf(LOWER, location, scale) - family.sf(UPPER, location, scale)
    with np.errstate(divide="ignore"):
        return np.log(np.where(location < LOWER, right, left))


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1 / 255, 0.1, 1.0, 1e3, 1e9])
def test_gaussian_probabilities_of_the_256_values_sum_to_one(location: float, scale: float) -> None:
    log_prob = every_value(gaussian(scale), location)
    assert log_prob.dtype == np.float64 and not np.isnan(log_prob).any()
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -3.0, 0.0, 5.0, 20.0])
def test_logistic_probabilities_of_the_256_values_sum_to_one(location: float, log_scale: float) -> None:
    log_prob = every_value(DiscretizedLogistic(min_log_scale=-9.0), location, log_scale)
    assert log_prob.dtype == np.float64 and not np.isnan(log_prob).any()
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-9)


def test_the_probability_of_training_sums_to_one_in_float32_too() -> None:
    likelihood = DiscretizedLogistic(min_log_scale=-7.0)
    parameters = torch.tensor([0.3, -3.0]).view(1, 2, 1, 1)
    images = PIXELS.float() / 127.5 - 1
    nats = [likelihood.loss(parameters, images[..., i : i + 1], 1.0).item() for i in range(256)]
    assert np.exp(-np.array(nats)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("location", [-1.4, -0.2, 0.0, 0.7, 1.2])
@pytest.mark.parametrize("scale", [0.01, 0.08, 0.5, 3.0])
def test_log_probabilities_are_the_differences_of_scipys_distribution_functions(location: float, scale: float) -> None:
    scale = float(np.exp(np.float64(np.float32(math.log(scale)))))  # the model keeps the log scale in float32
    for log_prob, family in (
        (every_value(gaussian(scale), location), stats.norm),
        (every_value(DiscretizedLogistic(min_log_scale=-9.0), location, math.log(scale)), stats.logistic),
    ):
        expected = oracle(family, location, scale)
        seen = expected > -600  # scipy's own difference underflows below
        np.testing.assert_allclose(log_prob[seen], expected[seen], rtol=1e-9, atol=1e-9)


def test_far_tails_keep_their_log_probability_where_a_difference_would_be_zero() -> None:
    log_prob = every_value(gaussian(0.001), -1.0)
    lower, upper = (IMAGES[200] - 1 / 255 + 1) / 0.001, (IMAGES[200] + 1 / 255 + 1) / 0.001
    assert log_prob[200] == pytest.approx(stats.norm.logsf(lower), rel=1e-6)
    assert stats.norm.sf(lower) - stats.norm.sf(upper) == 0
    assert np.isfinite(log_prob).all()


@pytest.mark.parametrize("location", [-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 0.0, 8.0, 50.0])
def test_logistic_loss_and_gradient_are_finite_everywhere(location: float, log_scale: float) -> None:
    parameters = torch.tensor([location, log_scale]).view(1, 2, 1, 1).repeat(1, 1, 1, 4).requires_grad_()
    images = torch.tensor([0, 1, 128, 255]).view(1, 1, 1, 4) / 127.5 - 1
    loss = DiscretizedLogistic(min_log_scale=-7.0).loss(parameters, images, 1.0)
    loss.backward()
    assert loss.isfinite() and parameters.grad.isfinite().all()


def test_logistic_gradient_is_that_of_float64_arithmetic() -> None:
    torch.manual_seed(0)
    likelihood = DiscretizedLogistic(min_log_scale=-7.0)
    parameters = torch.randn(2, 6, 4, 5)
    pixels = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    pixels[0, 0, 0, :2] = torch.tensor([0, 255])
    single, double = parameters.clone().requires_grad_(), parameters.double().requires_grad_()
    likelihood.loss(single, pixels.float() / 127.5 - 1, 1.0).backward()
    (likelihood.nll(double, pixels).mean() / 60).backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-7)


def test_log_scales_below_the_minimum_count_as_the_minimum() -> None:
    low, least = (every_value(DiscretizedLogistic(min_log_scale=-4.0), 0.2, s) for s in (-9.0, -4.0))
    np.testing.assert_array_equal(low, least)


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.6])
def test_fit_recovers_a_known_scale(scale: float) -> None:
    random = torch.Generator().manual_seed(0)
    mu = torch.rand(4, 3, 100, 100, generator=random) * 2 - 1
    x = mu + scale * torch.randn(mu.shape, generator=random)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    likelihood = Gaussian(fit_images=4)
    likelihood.fit(((mu[i : i + 1], pixels[i : i + 1]) for i in range(4)), 4)
    assert likelihood.log_scale.exp().item() == pytest.approx(scale, rel=0.01)


def test_fit_looks_at_as_much_where_there_are_fewer_images_than_asked_for(monkeypatch) -> None:
    looked = []
    likelihood = Gaussian(fit_images=4000)
    found = likelihood._log_prob
    monkeypatch.setattr(likelihood, "_log_prob", lambda *a: looked.append(a[0].numel()) or found(*a))
    mu = torch.rand(4, 3, 20, 20) * 2 - 1
    likelihood.fit([(mu, torch.zeros(mu.shape, dtype=torch.uint8))], 4)
    assert set(looked) == {4800}


def test_fit_finds_the_smallest_nll() -> None:
    random = torch.Generator().manual_seed(1)
    mu = torch.rand(1, 1, 30, 30, generator=random) * 2 - 1
    pixels = torch.randint(256, mu.shape, generator=random, dtype=torch.uint8)
    likelihood = Gaussian(fit_images=1)
    likelihood.fit([(mu, pixels)], len(mu))
    best = likelihood.log_scale.item()
    nll = [gaussian(math.exp(best + delta)).nll(mu, pixels).item() for delta in (-0.05, 0, 0.05)]
    assert nll[1] == min(nll)


def test_fit_survives_a_perfect_reconstruction() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    likelihood = Gaussian(fit_images=1)
    likelihood.fit([(pixels.float() / 127.5 - 1, pixels)], 1)
    assert likelihood.nll(pixels.float() / 127.5 - 1, pixels).item() == pytest.approx(0, abs=1e-3)


def test_a_distribution_spread_far_wider_than_the_pixels_costs_one_bit_a_dimension() -> None:
    """Each tail holds half of the mass, and the values 0 and 255 include the tails."""
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    bits = gaussian(1e7).nll(torch.zeros(1, 1, 1, 2), pixels) / (2 * math.log(2))
    assert bits.item() == pytest.approx(1, abs=1e-6)


def test_nll_adds_up_the_dimensions_of_each_image() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (3, 2, 4, 5), dtype=torch.uint8)
    for name, options, channels in (("gaussian", {"fit_images": 1}, 2), ("discretized_logistic", {}, 4)):
        options = options or {"min_log_scale": -7.0}
        likelihood = build_likelihood({"name": name, name: options})
        assert likelihood.parameter_channels(2) == channels
        parameters = torch.randn(3, channels, 4, 5)
        nll = likelihood.nll(parameters, pixels)
        assert nll.shape == (3,) and nll.dtype == torch.float64
        torch.testing.assert_close(nll, -likelihood.log_prob(parameters, pixels).sum((1, 2, 3)))
        mean = likelihood.mean(parameters)
        values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        chances = [likelihood.log_prob(parameters, torch.full_like(pixels, value)).exp() for value in range(256)]
        average = sum(chance * value for chance, value in zip(chances, values, strict=True)).float()
        expected = parameters[:, :2].clamp(-1, 1) if name == "gaussian" else average
        # The outermost values include the tails. They stand at -1 and 1, half an interval inside where the tails begin.
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-5 if name == "gaussian" else 1 / 255)


def test_gaussian_loss_is_the_nmse() -> None:
    torch.manual_seed(0)
    mu, images = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = np.square((mu - images).numpy()).mean() / 0.25
    assert Gaussian(fit_images=1).loss(mu, images, 0.25).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1 / 255, 0.1, 1.0, 1e3, 1e9])
def test_laplace_probabilities_of_the_256_values_sum_to_one(location: float, scale: float) -> None:
    likelihood = Laplace(fit_images=1)
    likelihood.log_scale.fill_(math.log(scale))
    log_prob = every_value(likelihood, location)
    assert not np.isnan(log_prob).any() and np.exp(log_prob).sum() == pytest.approx(1, abs=1e-9)
    scale = float(np.exp(np.float64(np.float32(math.log(scale)))))
    expected = oracle(stats.laplace, location, scale)
    # scipy's difference cancels where the interval is a small part of the distribution.
    seen = (expected > -600) & (expected > math.log(1e-5))
    np.testing.assert_allclose(log_prob[seen], expected[seen], rtol=1e-8, atol=1e-8)


def test_laplace_keeps_its_digits_where_a_difference_would_lose_them() -> None:
    likelihood = Laplace(fit_images=1)
    likelihood.log_scale.fill_(math.log(1e6))  # an interval is a millionth of the scale wide
    log_prob = every_value(likelihood, float(IMAGES[100]))
    assert log_prob[100] == pytest.approx(math.log(2 / 255 / 1e6 / 2), abs=1e-6)
    likelihood.log_scale.fill_(math.log(1e-3))
    far = (IMAGES[200] - IMAGES[10] - 1 / 255) / 1e-3
    assert every_value(likelihood, float(IMAGES[10]))[200] == pytest.approx(-far - math.log(2), rel=1e-5)


def test_laplace_loss_is_the_absolute_error_and_its_fitted_scale_the_mean_of_it() -> None:
    torch.manual_seed(0)
    mu = torch.rand(2, 3, 60, 60) - 0.5
    noise = torch.distributions.Laplace(0.0, 0.08).sample(mu.shape)
    pixels = ((mu + noise + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    likelihood = Laplace(fit_images=2)
    images = pixels / 127.5 - 1
    assert likelihood.loss(mu, images, 0.25).item() == pytest.approx((mu - images).abs().mean().item() / 0.5, rel=1e-5)
    likelihood.fit([(mu, pixels)], len(mu))
    assert likelihood.log_scale.exp().item() == pytest.approx((mu - images).abs().mean().item(), rel=0.02)


@pytest.mark.parametrize("location", [-1e4, -3.0, -1.0, -0.2, 0.0, 0.7, 1.0, 40.0, 1e4])
@pytest.mark.parametrize("log_scale", [-30.0, -3.0, -1.0, 0.6, 0.8, 5.0, 20.0, 100.0])
def test_clipped_mean_is_the_expectation_over_the_256_values(location: float, log_scale: float) -> None:
    probability = np.exp(every_value(DiscretizedLogistic(min_log_scale=-30.0), location, log_scale))
    found = clipped_mean(torch.tensor(location), torch.tensor(log_scale))
    assert found.dtype == torch.float32
    # A distribution narrower than a pixel value's interval lies on that value, half an interval away at most.
    tolerance = 1 / 255 + 1e-6 if log_scale == -30 else 3e-5
    assert found.item() == pytest.approx(probability @ IMAGES, abs=tolerance)


def test_probabilities_are_integrals_of_the_densities() -> None:
    """The integrals are sums of densities on a fine grid, without any distribution function."""
    location, scale, value, points = 0.13, 0.07, 140, 20_000
    grid = IMAGES[value] - 1 / 255 + (np.arange(points) + 0.5) * (2 / 255 / points)
    u = np.abs(grid - location) / scale
    densities = {
        "gaussian": np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi) / scale,
        "laplace": np.exp(-u) / 2 / scale,
        "discretized_logistic": np.exp(-u) / (1 + np.exp(-u)) ** 2 / scale,
    }
    for name, density in densities.items():
        options = {"min_log_scale": -9.0} if name == "discretized_logistic" else {"fit_images": 1}
        likelihood = build_likelihood({"name": name, name: options})
        if name == "discretized_logistic":
            found = every_value(likelihood, location, math.log(scale))[value]
        else:
            likelihood.log_scale.fill_(math.log(scale))
            found = every_value(likelihood, location)[value]
        assert found == pytest.approx(math.log(density.mean() * 2 / 255), abs=1e-6), name


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
@pytest.mark.parametrize("spread", [0.0, 1.0, 1e4])
def test_plain_errors_have_finite_gradients_everywhere(name: str, spread: float) -> None:
    torch.manual_seed(0)
    location = (torch.randn(4, 3, 2, 2) * spread).bfloat16().requires_grad_()
    images = torch.tensor([0, 1, 128, 255]).view(4, 1, 1, 1).expand(-1, 3, 2, 2) / 127.5 - 1
    loss = build_likelihood({"name": name, name: {"fit_images": 1}}).loss(location, images, 0.25)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and location.grad.isfinite().all()


def test_fitting_keeps_a_part_of_every_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pixel values of a large data set would not fit into memory. A random part gives the same scale."""
    from stage1_vqvae.likelihoods import fitted
    from stage1_vqvae.likelihoods.intervals import log_normal_interval

    monkeypatch.setattr(fitted, "FIT_VALUES", 20_000)
    torch.manual_seed(0)
    likelihood, sizes = Gaussian(fit_images=8), []

    def counted(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        sizes.append(lower.numel())
        return log_normal_interval(lower, upper)

    likelihood.log_interval = counted
    mu = torch.rand(8, 3, 64, 64) - 0.5
    pixels = ((mu + 0.1 * torch.randn(mu.shape) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    likelihood.fit(((mu[i : i + 2], pixels[i : i + 2]) for i in range(0, 8, 2)), 8)
    assert set(sizes) == {20_000}
    assert likelihood.log_scale.exp().item() == pytest.approx(0.1, rel=0.03)
