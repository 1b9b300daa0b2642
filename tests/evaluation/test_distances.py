"""Distances between sets of feature vectors, against closed forms, other libraries and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.kid import poly_mmd

from evaluation.distances import (
    Moments,
    bootstrap,
    frechet_distance,
    frechet_of_vectors,
    inception_score,
    interval,
    kernel_distance,
    kernel_distances,
    neighbour_figures,
)


def normal(count: int, width: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=random, dtype=torch.float64) * scale + shift


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 40) -> torch.Tensor:
    """Vectors whose sample mean and unbiased sample covariance are exactly these."""
    vectors = np.random.default_rng(0).normal(size=(count, len(mean)))
    vectors -= vectors.mean(0)
    white = vectors @ np.linalg.inv(np.linalg.cholesky(np.cov(vectors.T))).T
    return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)


def moments(vectors: torch.Tensor) -> Moments:
    return Moments(vectors.shape[1]).add(vectors)


def test_the_frechet_distance_of_gaussians_is_its_closed_form() -> None:
    """Of commuting covariances: |μ1 - μ2|² + Σ (√λ1 - √λ2)²."""
    one, other = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    rotation = scipy.linalg.expm(np.array([[0, 1, 2], [-1, 0, 0.5], [-2, -0.5, 0]]))
    means = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]])
    sets = [gaussian(m, rotation @ np.diag(v) @ rotation.T) for m, v in zip(means, (one, other), strict=True)]
    expected = 1 + 9 + ((np.sqrt(one) - np.sqrt(other)) ** 2).sum()
    assert frechet_distance(*map(moments, sets)) == pytest.approx(expected, rel=1e-9)
    assert frechet_of_vectors(*sets) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(sets[0]), moments(sets[0])) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("counts", [(40, 60), (5, 40), (6, 7)])
def test_the_frechet_distance_is_the_formula_with_a_matrix_root_also_of_few_images(counts: tuple[int, int]) -> None:
    sets = [normal(count, 12, seed) @ normal(12, 12, seed + 5) + seed for seed, count in enumerate(counts)]
    first, second = (np.cov(x.numpy().T) for x in sets)
    root = scipy.linalg.sqrtm(scipy.linalg.sqrtm(first) @ second @ scipy.linalg.sqrtm(first)).real
    apart = ((sets[0].mean(0) - sets[1].mean(0)) ** 2).sum().item()
    expected = apart + np.trace(first + second - 2 * root)
    assert frechet_distance(*map(moments, sets)) == pytest.approx(expected, rel=1e-5)
    assert frechet_of_vectors(*sets) == pytest.approx(frechet_distance(*map(moments, sets)), rel=1e-7)


def test_moments_are_those_of_all_vectors_in_any_pieces() -> None:
    vectors = normal(50, 4, 0, shift=3.0)
    found = Moments(4)
    for part in vectors.split(7):
        found.add(part.float())
    assert found.mean.numpy() == pytest.approx(vectors.float().double().mean(0).numpy(), rel=1e-12)
    assert found.covariance.numpy() == pytest.approx(np.cov(vectors.float().double().numpy().T), rel=1e-10)


def test_kid_is_that_of_torchmetrics() -> None:
    one, other = normal(30, 6, 0), normal(25, 6, 1, shift=0.5)
    assert kernel_distance(one, one.flip(0)) < 0  # the unbiased estimate leaves out a vector with itself
    other_library = poly_mmd(one[:25], other)
    assert kernel_distance(one[:25], other) == pytest.approx(other_library.item(), rel=1e-9)
    assert kernel_distance(one, other) == pytest.approx(kernel_distance(other, one))


def test_a_weight_counts_a_vector_so_often_without_pairs_of_it_and_itself() -> None:
    one, other = normal(4, 3, 0), normal(5, 3, 1)
    times = [torch.tensor([2, 1, 0, 1]), torch.tensor([0, 3, 1, 1, 1])]

    def mean(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, v: torch.Tensor, same: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if i != j or not same]
        terms = [(w[i] * v[j], (x[i] @ y[j] / 3 + 1) ** 3) for i, j in pairs]
        return float(sum(weight * value for weight, value in terms) / sum(weight for weight, _ in terms))

    expected = mean(one, one, times[0], times[0], True) + mean(other, other, times[1], times[1], True)
    expected -= 2 * mean(one, other, *times, False)
    found = kernel_distances(one, other, *(t[None].double() for t in times))
    assert found.tolist() == pytest.approx([expected])
    pair, ones = (one, normal(4, 3, 2)), torch.ones(4)
    expected = sum(mean(x, x, ones, ones, True) for x in pair) - 2 * mean(*pair, ones, ones, True)
    assert kernel_distance(*pair, paired=True) == pytest.approx(expected)


def test_images_and_their_likenesses_are_no_nearer_than_their_distributions() -> None:
    """A sharp likeness of each image, from a distribution that differs: no figure below 0 hides it."""
    found = []
    for seed in range(20):
        real = normal(30, 4, seed)
        found.append([kernel_distance(real, real + 0.02, paired) for paired in (True, False)])
    paired, as_usual = np.mean(found, 0)
    assert paired == pytest.approx(0, abs=0.02) and as_usual < -0.1


def test_precision_and_recall_are_those_of_torch_fidelity() -> None:
    real, shown = normal(80, 5, 0), normal(70, 5, 1, shift=0.4, scale=0.8)
    options = {"prc_neighborhood": 3, "prc_batch_size": 1000, "save_cpu_ram": False, "verbose": False}
    expected = prc_features_to_metric(shown, real, **options)
    found = neighbour_figures(real, shown)
    assert 0 < found["recall"] < found["precision"] < 1
    assert (found["precision"], found["recall"]) == pytest.approx((expected["precision"], expected["recall"]))


def test_density_and_coverage_are_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.distances.ROWS", 11)
    real, shown = normal(40, 3, 0), normal(30, 3, 1, shift=0.7)
    balls, covered = 0, 0
    for x in real:
        radius = sorted((x - other).norm().item() for other in real)[5]
        inside = [(x - y).norm().item() < radius for y in shown]
        balls, covered = balls + sum(inside), covered + any(inside)
    found = neighbour_figures(real, shown)
    assert found["density"] == pytest.approx(balls / (5 * 30)) and found["coverage"] == pytest.approx(covered / 40)
    assert 0 < found["coverage"] < 1


def test_two_halves_of_one_set_are_at_the_floor() -> None:
    one, other = normal(800, 4, 3).split(400)
    shifted = other + 0.5
    floor, kid = frechet_of_vectors(one, other), kernel_distance(one, other)
    error = bootstrap(one, other, paired=False)
    low, high = interval(kid, error.kid)
    assert low < 0 < high
    assert floor < 0.1 * frechet_of_vectors(one, shifted) and kid < 0.1 * kernel_distance(one, shifted)
    found = neighbour_figures(one, other)
    # Naeem et al. 2020, lemma 2: of two samples of one distribution, as many in each.
    expected = 1 - np.prod([(400 - i) / (800 - i) for i in range(1, 6)])
    assert found["density"] == pytest.approx(1, abs=0.1) and found["coverage"] == pytest.approx(expected, abs=0.03)
    assert min(found["precision"], found["recall"]) > 0.85


def test_a_bootstrap_has_the_spread_of_new_images() -> None:
    sets = [(normal(60, 3, seed), normal(60, 3, 100 + seed, shift=1.0)) for seed in range(40)]
    kids, distances = (torch.tensor([f(*pair) for pair in sets]).std() for f in (kernel_distance, frechet_of_vectors))
    errors = [bootstrap(*pair, paired=False) for pair in sets[:8]]
    assert np.mean([error.kid for error in errors]) == pytest.approx(kids.item(), rel=0.35)
    assert np.mean([error.frechet_distance for error in errors]) == pytest.approx(distances.item(), rel=0.35)
    # An image and its reconstruction are drawn together: what both share spreads neither distance.
    pair = sets[0][0], sets[0][0] + normal(60, 3, 7, scale=0.1)
    assert bootstrap(*pair, paired=True).frechet_distance < 0.3 * bootstrap(*pair, paired=False).frechet_distance


def test_the_error_of_a_frechet_distance_is_that_of_all_images_it_was_measured_on() -> None:
    """Of 2,000 images of each set 100 are kept."""
    sets = [(normal(2000, 3, seed), normal(2000, 3, 100 + seed, shift=1.0)) for seed in range(30)]
    spread = torch.tensor([frechet_of_vectors(*pair) for pair in sets]).std().item()
    kept = [(one[:100], other[:100]) for one, other in sets[:8]]
    errors = [bootstrap(*pair, paired=False, images=2000) for pair in kept]
    assert np.mean([error.frechet_distance for error in errors]) == pytest.approx(spread, rel=0.35)
    assert errors[0].kid == bootstrap(*kept[0], paired=False).kid  # of the kept images, whatever their number


@pytest.mark.parametrize("paired", [False, True])
def test_a_bootstrap_of_few_images_may_draw_one_alone_and_is_finite(paired: bool) -> None:
    error = bootstrap(normal(3, 3, 0), normal(3, 3, 1), paired)
    assert 0 < error.kid < np.inf and 0 < error.frechet_distance < np.inf


def test_the_inception_score_is_its_definition() -> None:
    p = normal(30, 5, 0).softmax(1)
    parts = p.split(15)
    sums = [torch.stack([part.sum(0) for part in parts]), torch.stack([(q * q.log()).sum() for q in parts])]
    scores = [(q * (q / q.mean(0)).log()).sum(1).mean().exp().item() for q in parts]
    counts = torch.tensor([15.0, 15.0])
    assert inception_score(*sums, counts) == pytest.approx((np.mean(scores), np.std(scores)))
