"""Residual quantization: sums of codes, one gradient, and computing each depth's codebook from data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as oracle
from shipped import parameters

from stage1_vqvae.quantizers.build import build_quantizers

VQ = parameters(
    "stage1_vqvae.quantizer.vq",
    codebook_size=8,
    codebook_dim=4,
    ema_decay=0.9,
    diveq_variance=0.0,
    revival_threshold=0.0,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def residual(depth: int = 3, share: bool = False, inner: dict | None = None, **vq: Any) -> torch.nn.Module:
    inner = inner or {"name": "vq", "vq": {**VQ, **vq}}
    values = {"depth": depth, "share_codebook": share, "quantizer": inner}
    return build_quantizers({"name": "residual", "residual": values}, 1)[0]


@pytest.mark.parametrize("share", [False, True])
def test_each_code_is_the_nearest_to_what_those_before_it_left(share: bool) -> None:
    quantizer = residual(share=share).eval()
    z = torch.randn(2, 30, 4)
    output = quantizer(z)
    rest, total = z, torch.zeros_like(z)
    for depth in range(3):
        codebook = quantizer.layers[0 if share else depth].codebook
        nearest = torch.cdist(rest.flatten(0, 1), codebook).argmin(1).view(2, 30)
        assert torch.equal(output.indices[..., depth], nearest)
        rest, total = rest - codebook[nearest], total + codebook[nearest]
    torch.testing.assert_close(output.z_q, total)
    assert torch.equal(quantizer.lookup(output.indices), output.z_q)
    assert (quantizer.depth, quantizer.dim, output.indices.shape) == (3, 4, (2, 30, 3))


def test_indices_and_codes_equal_vector_quantize_pytorch() -> None:
    quantizer = residual().eval()
    theirs = oracle.ResidualVQ(dim=4, num_quantizers=3, codebook_size=8).eval()
    for mine, other in zip(quantizer.layers, theirs.layers, strict=True):
        other._codebook.embed.copy_(mine.codebook[None])
    z = torch.randn(2, 30, 4)
    output, (code, indices, _) = quantizer(z), theirs(z)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.z_q, code)


def test_ema_of_every_depth_after_five_steps_equals_vector_quantize_pytorch() -> None:
    quantizer = residual()
    theirs = oracle.ResidualVQ(
        dim=4, num_quantizers=3, codebook_size=8, decay=0.9, kmeans_init=False, threshold_ema_dead_code=0
    )
    for mine, other in zip(quantizer.layers, theirs.layers, strict=True):
        other._codebook.embed.copy_(mine.codebook[None])
        other._codebook.embed_avg.copy_(mine.ema_sum[None])
    for step in range(5):
        z = torch.randn(2, 30, 4)
        output, (_, indices, _) = quantizer(z), theirs(z)
        assert torch.equal(output.indices, indices)
        quantizer.update(step, seed=0)
    for mine, other in zip(quantizer.layers, theirs.layers, strict=True):
        torch.testing.assert_close(mine.codebook, other._codebook.embed[0])
        torch.testing.assert_close(mine.ema_count, other._codebook.cluster_size[0])
        torch.testing.assert_close(mine.ema_sum, other._codebook.embed_avg[0])


@pytest.mark.parametrize("share", [False, True])
def test_a_state_read_back_goes_on_as_the_original_would(share: bool) -> None:
    quantizer, other = residual(share=share), residual(share=share)
    quantizer(torch.randn(40, 4))
    quantizer.update(0, seed=0)
    other.load_state_dict(quantizer.state_dict())
    z = torch.randn(40, 4)
    for each in (quantizer, other):
        each(z)
        each.update(1, seed=0)
        each.eval()
    assert len(quantizer.state_dict()) == (3 if share else 9)
    output = quantizer(z)
    assert torch.equal(output.z_q, other.lookup(output.indices)) and torch.equal(output.indices, other(z).indices)


@pytest.mark.parametrize("estimator", ["straight_through", "rotation", "diveq"])
def test_the_gradient_reaches_z_once_whatever_the_depth(estimator: str) -> None:
    from stage1_vqvae.quantizers.gradients import GRADIENT_ESTIMATORS

    quantizer = residual(gradient_estimator=estimator)
    z, weights = torch.randn(20, 4), torch.randn(20, 4)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    output = quantizer(a)
    (output.z_q * weights).sum().backward()
    (GRADIENT_ESTIMATORS[estimator](b, output.code) * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_the_loss_is_the_mean_commitment_of_the_partial_sums() -> None:
    quantizer = residual()
    z = torch.randn(20, 4)
    output = quantizer(z)
    codes = [layer.codebook[output.indices[:, i]] for i, layer in enumerate(quantizer.layers)]
    partial = [sum(codes[: i + 1]) for i in range(3)]
    expected = sum((z - part).square().mean() for part in partial) / 3 * 0.25
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("share", [False, True])
def test_initialisation_and_re_estimation_make_every_depth_leave_less(share: bool) -> None:
    quantizer = residual(share=share).eval()
    vectors = torch.randn(500, 4) * 3
    quantizer.initialise_from_data(lambda: vectors, torch.Generator().manual_seed(0))

    def left(depth: int) -> float:
        codes = quantizer(vectors).indices
        total = sum(quantizer._layer(i)[0].lookup(codes[:, i : i + 1]) for i in range(depth))
        return (vectors - total).square().mean().item()

    started = [left(depth) for depth in (1, 2, 3)]
    assert started[0] > 1.5 * started[1] > 2 * started[2]
    for layer in quantizer.layers:
        layer.codebook += 0.3 * torch.randn(8, 4)
    spoilt = left(3)
    for _ in range(5):
        quantizer.re_estimate(lambda: vectors.split(100))
    assert left(3) < (0.95 if share else 0.9) * spoilt


def test_a_shared_codebook_is_updated_once_with_the_vectors_of_all_depths() -> None:
    quantizer = residual(share=True)
    z = torch.randn(10, 4)
    output = quantizer(z)
    codebook = quantizer.layers[0].codebook.clone()
    quantizer.update(0, seed=0)
    counts = torch.bincount(output.indices.flatten(), minlength=8).float()
    torch.testing.assert_close(quantizer.layers[0].ema_count, 0.9 + 0.1 * counts)
    assert not torch.equal(quantizer.layers[0].codebook, codebook)


@pytest.mark.parametrize("levels", [[5, 5], [4, 7], [4, 4], [8, 6]])
def test_fsq_refines_its_grid_at_every_depth(levels: list[int]) -> None:
    depth = 5
    quantizer = residual(depth, inner={"name": "fsq", "fsq": {"levels": levels}}).eval()
    z = torch.randn(2000, 2) * 2
    output = quantizer(z)
    errors = [
        (output.target - sum(quantizer.layers[i].lookup(output.indices[:, i : i + 1]) * s**i for i in range(d)))
        .abs()
        .max()
        .item()
        for s in [quantizer.layers[0].residual_scale]
        for d in range(1, depth + 1)
    ]
    assert all(after < 1.1 * before / (min(levels) // 2 * 2) for before, after in pairwise(errors))


def test_lfq_is_successive_approximation_by_halves() -> None:
    lfq = {
        "bits": 3,
        "commitment_cost": 0.0,
        "entropy_cost": 0.0,
        "entropy_temperature": 1.0,
        "diversity": 1.0,
        "entropy_group_bits": 3,
    }
    quantizer = residual(6, inner={"name": "lfq", "lfq": lfq}).eval()
    z = torch.rand(100, 3) * 4 - 2
    assert (quantizer(z).z_q - z).abs().max() <= 2**-5 + 1e-6


def test_the_commitment_to_each_bit_is_as_large_as_the_error_it_leaves() -> None:
    """The loss of each depth is the squared error that it leaves, in z's units. Finer bits do not pull harder."""
    lfq = {"bits": 3, "commitment_cost": 0.5, "entropy_cost": 0.0, "entropy_temperature": 1.0, "diversity": 1.0}
    quantizer = residual(4, inner={"name": "lfq", "lfq": {**lfq, "entropy_group_bits": 3}})
    z = torch.rand(100, 3) * 4 - 2
    output = quantizer(z)
    partial = torch.zeros_like(z)
    expected = 0.0
    for depth in range(4):
        bits = quantizer.layers[depth].embed(output.indices[:, depth : depth + 1])
        partial = partial + bits * 2.0**-depth
        expected += 0.5 * (z - partial).square().mean().item() / 4
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_quantizer_inside_leaves_the_gradient_estimator_to_the_residual() -> None:
    """Its z_q is the code itself, so that the gradient reaches the codebook but not z."""
    quantizer = residual(codebook_update="gradient", gradient_estimator="diveq", commitment_cost=0.0, codebook_cost=0.0)
    layer, z = quantizer.layers[0], torch.randn(20, 4, requires_grad=True)
    assert layer.inside_residual and not quantizer.inside_residual and quantizer.estimator == layer.estimator
    output = layer(z)
    assert torch.equal(output.z_q, output.code)
    output.z_q.sum().backward()
    counts = torch.bincount(output.indices.flatten(), minlength=8).float()
    torch.testing.assert_close(layer.codebook.grad, counts[:, None].expand(8, 4))
    assert z.grad is None or not z.grad.any()
