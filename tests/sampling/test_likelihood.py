"""Likelihoods of a tiny published run: distortion, rates, and sums over labels."""

from __future__ import annotations

import math

import pytest
import torch
from choices import few

from sampling.likelihood import summed_rates
from sampling.pipeline import TwoStagePipeline
from stage2_prior.priors.masked import Masked
from tessera import paths
from tessera.codes.store import open_codes
from tessera.errors import UserError
from tessera.images.prepared import open_prepared


def test_log_likelihood_is_distortion_plus_rate(pipeline, pixels):
    labels = torch.arange(len(pixels)) % 3
    found = pipeline.log_likelihood(pixels, labels, batch_size=6)
    tokens = open_codes(paths.CODES)["test"].rows(slice(None))
    unit = 64 * math.log(2)
    with torch.no_grad():
        rate = pipeline.prior.nll(tokens, labels).double().sum(1) / unit
        parameters = pipeline.vqvae.decode_parameters(pipeline.layout.unflatten(tokens))
        distortion = pipeline.vqvae.likelihood.nll(parameters, pixels).double() / unit
    assert torch.allclose(found["rate"], rate, atol=1e-6)
    assert torch.allclose(found["distortion"], distortion, atol=1e-4)
    assert torch.equal(found["total"], found["rate"] + found["distortion"])
    assert found["total"].dtype == torch.float64


@pytest.mark.parametrize("prior", few(["masked", "chain"], "chain"))
def test_labels_summed_out_of_bounds_are_a_bound(tiny_run, prior):
    tiny_run((1, 8, 16), strides=[4, 2], sizes=[5, 9], prior=prior)
    pipeline = TwoStagePipeline.load("models", "cpu")
    for module in pipeline.prior.modules():
        if isinstance(module, Masked):
            module.bound_draws = 400
    for parameter in pipeline.prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that classes differ
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    weights, unit = torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64), 128 * math.log(2)
    found = pipeline.log_likelihood(pixels, class_probabilities=weights)
    each = [pipeline.log_likelihood(pixels, [y] * len(pixels)) for y in range(3)]
    bounds = torch.stack([one["rate"] for one in each]) * unit
    expected = -torch.logsumexp(weights.log()[:, None] - bounds, 0) / unit  # as if they were exact
    assert (found["rate_standard_error"] > 0).all()
    assert (found["rate_standard_error"] <= torch.stack([one["rate_standard_error"] for one in each]).amax(0)).all()
    assert (found["rate"] >= expected - 1e-9).all()  # for whatever q, with equality for the bounds' own
    assert ((found["rate"] - expected) < 4 * found["rate_standard_error"]).all()
    torch.testing.assert_close(found["rate_by_level"].sum(1), found["rate"])


def test_bounds_are_weighed_by_other_estimates_than_those_that_are_summed(tiny_run):
    """Or the sum would follow the errors of its own estimates below the bound."""
    tiny_run(prior="masked")
    prior = TwoStagePipeline.load("models", "cpu").prior
    prior.bound_draws = 2
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = open_codes(paths.CODES)["test"].rows(slice(None))
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    with torch.no_grad():
        found, variance = summed_rates(prior, tokens, weights)
        estimates = [[prior.estimate(tokens, torch.full((len(tokens),), y), k) for y in range(3)] for k in range(2)]
    (bounds, others) = (torch.stack([nats.double().sum(1) for nats, _ in each]) for each in estimates)
    assert (bounds - others).abs().min() > 1e-3
    log_p = weights.log()[:, None]
    q = (log_p - others).softmax(0)
    torch.testing.assert_close(found.sum(1), (q * (bounds + q.log() - log_p)).sum(0))
    errors = torch.stack([spread.double().sqrt() for _, spread in estimates[0]])
    torch.testing.assert_close(variance.sqrt(), (q * errors).sum(0))


def test_the_rate_is_told_by_level(tiny_run):
    tiny_run((3, 8, 12), strides=[2, 2], sizes=[5, 9])
    pipeline = TwoStagePipeline.load("models", "cpu")
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    found = pipeline.log_likelihood(pixels, torch.arange(20) % 3)
    assert found["rate_by_level"].shape == (20, 2)
    torch.testing.assert_close(found["rate_by_level"].sum(1), found["rate"])
    coarse = pipeline.prior.nll(open_codes(paths.CODES)["test"].rows(slice(None)), torch.arange(20) % 3)
    torch.testing.assert_close(found["rate_by_level"][:, 0], coarse[:, :6].double().sum(1) / (288 * math.log(2)))


def test_labels_summed_out_are_a_mixture(pipeline, pixels):
    weights = [0.5, 0.2, 0.3]
    found = pipeline.log_likelihood(pixels, class_probabilities=weights, batch_size=7)
    unit = 64 * math.log(2)
    each = [pipeline.log_likelihood(pixels, [y] * len(pixels))["rate"] * unit for y in range(3)]
    expected = -sum(w * (-nats).exp() for w, nats in zip(weights, each, strict=True)).log() / unit
    torch.testing.assert_close(found["rate"], expected)
    torch.testing.assert_close(found["total"], found["rate"] + found["distortion"])


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([0.5, 0.5], None, "expected 3 numbers"),
        ([0.5, 0.5, 0.5], None, "sum to 1"),
        ([1.5, -0.5, 0.0], None, "at least 0"),
        ([0.5, 0.5, math.nan], None, "sum to nan"),
        ([0.5, 0.25, 0.25], [0] * 20, "give no labels"),
    ],
)
def test_probabilities_of_classes_that_are_none_are_refused(pipeline, pixels, values, labels, message):
    with pytest.raises(UserError, match=message):
        pipeline.log_likelihood(pixels, labels, class_probabilities=values)
