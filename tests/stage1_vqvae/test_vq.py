"""The vector quantizer against brute force, closed forms, and vector-quantize-pytorch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shipped import parameters

from stage1_vqvae.quantizers.build import build_quantizers
from stage1_vqvae.quantizers.search import gather_statistics, nearest
from stage1_vqvae.quantizers.vq import VectorQuantizer

DEFAULTS = parameters(
    "stage1_vqvae.quantizer.vq",
    codebook_size=8,
    codebook_dim=4,
    ema_decay=0.9,
    diveq_variance=0.0,
    start="normal",
    revival_threshold=0.0,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quantizer(**changes: Any) -> VectorQuantizer:
    return VectorQuantizer(**{**DEFAULTS, **changes})


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The first of the nearest codes, found in the full table of distances in float64."""
    table = (vectors.double()[:, None] - codebook.double()[None]).square().sum(-1)
    return torch.tensor([min(range(len(codebook)), key=row.__getitem__) for row in table.tolist()])


def test_output_shapes_and_lookup() -> None:
    vq = quantizer()
    for shape in [(4,), (3, 4), (2, 3, 5, 4)]:
        z_q, indices, loss, *_ = vq(torch.randn(shape))
        assert z_q.shape == shape and indices.shape == (*shape[:-1], 1) and loss.shape == ()
        assert indices.dtype == torch.int64
        assert torch.equal(vq.lookup(indices), z_q)
    assert (vq.depth, vq.codebook_size, vq.dim) == (1, 8, 4)


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width 4, got shape \(2, 5\)"):
        quantizer()(torch.randn(2, 5))


def test_ema_follows_its_closed_form_and_feeds_no_smoothing_back() -> None:
    decay, epsilon, size = 0.7, 0.05, 3
    vq = quantizer(codebook_size=size, codebook_dim=2, ema_decay=decay, ema_epsilon=epsilon)
    codebook = vq.codebook.double()
    count, total = torch.ones(size, dtype=torch.float64), codebook.clone()
    for step in range(3):
        z = torch.randn(20, 2)
        vq(z)
        vq.update(step, seed=0)
        one_hot = F.one_hot(brute_force(z, codebook), size).double()
        count = decay * count + (1 - decay) * one_hot.sum(0)
        total = decay * total + (1 - decay) * one_hot.T @ z.double()
        smoothed = (count + epsilon) / (count.sum() + size * epsilon) * count.sum()
        codebook = total / smoothed[:, None]
        torch.testing.assert_close(vq.ema_count.double(), count, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(vq.ema_sum.double(), total, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(vq.codebook.double(), codebook, rtol=1e-5, atol=1e-6)


def test_update_reports_the_perplexity_of_the_batch() -> None:
    vq = quantizer(codebook_size=4, codebook_dim=1)
    vq.codebook.copy_(torch.tensor([[0.0], [10.0], [20.0], [30.0]]))
    vq(torch.tensor([[0.0], [0.0], [10.0], [20.0]]))
    expected = 2 ** (0.5 * 1 + 2 * 0.25 * 2)
    assert vq.update(0, seed=0)["perplexity"].item() == pytest.approx(expected)


def test_the_commitment_cost_pulls_the_encoder_alone() -> None:
    vq = quantizer(commitment_cost=0.4, codebook_update="gradient")
    z = torch.randn(6, 4, requires_grad=True)
    output = vq(z)
    assert isinstance(vq.codebook, torch.nn.Parameter)
    output.loss.backward()
    difference = z.detach() - output.z_q.detach()
    torch.testing.assert_close(z.grad, 2 * 0.4 * difference / z.numel())
    pull = torch.zeros(8, 4).index_add_(0, output.indices.flatten(), -2 * difference / z.numel())  # without β
    torch.testing.assert_close(vq.codebook.grad, pull)
    torch.testing.assert_close(output.loss, 1.4 * difference.square().mean())


def test_an_ema_codebook_is_no_parameter_and_its_loss_is_the_commitment_alone() -> None:
    vq = quantizer(commitment_cost=0.4)
    z = torch.randn(6, 4, requires_grad=True)
    output = vq(z)
    output.loss.backward()
    assert list(vq.parameters()) == []
    torch.testing.assert_close(output.loss, 0.4 * F.mse_loss(z, output.z_q))


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_five_steps_equal_vector_quantize_pytorch(estimator: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever an oracle's import has to say is not about us
        from vector_quantize_pytorch import VectorQuantize
    theirs = VectorQuantize(
        dim=4,
        codebook_size=8,
        decay=0.9,
        eps=1e-5,
        commitment_weight=0.25,
        rotation_trick=estimator == "rotation",
        learnable_codebook=False,
        kmeans_init=False,
        threshold_ema_dead_code=0,
    )
    ours = quantizer(gradient_estimator=estimator)
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.codebook[None])
        theirs._codebook.embed_avg.copy_(ours.ema_sum[None])
    weights = torch.randn(3, 10, 4)
    for step in range(5):
        z = torch.randn(3, 10, 4)
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        output = ours(a)
        (output.loss + (weights * output.z_q.sin()).sum()).backward()
        ours.update(step, seed=0)
        their_z_q, their_indices, their_loss = theirs(b)
        (their_loss.sum() + (weights * their_z_q.sin()).sum()).backward()
        assert torch.equal(output.indices.squeeze(-1), their_indices)
        torch.testing.assert_close(output.z_q, their_z_q)
        torch.testing.assert_close(output.loss, their_loss.sum())
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.codebook, theirs.codebook)
    torch.testing.assert_close(ours.ema_count, theirs._codebook.cluster_size[0])
    torch.testing.assert_close(ours.ema_sum, theirs._codebook.embed_avg[0])


def test_evaluation_never_moves_anything() -> None:
    vq = quantizer(revival_threshold=0.5).eval()
    before = state(vq)
    for _ in range(3):
        vq(torch.randn(50, 4))
    assert not vq.gathered
    for name, tensor in vq.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_training_forward_moves_nothing_before_update() -> None:
    vq = quantizer(revival_threshold=0.5)
    before = state(vq)
    vq(torch.randn(50, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vq.state_dict().items())


def test_two_forwards_and_one_update_equal_the_whole_batch() -> None:
    whole, parts = quantizer(revival_threshold=0.9), quantizer(revival_threshold=0.9)
    parts.load_state_dict(whole.state_dict())
    z, before = torch.randn(40, 4) * 0.3, whole.codebook.clone()
    whole(z)
    for part in z.split([25, 15]):
        parts(part)
    whole.update(7, seed=1)
    parts.update(7, seed=1)
    assert (whole.codebook[:, None] == z).all(2).any(), "nothing was revived"
    assert not torch.equal(whole.codebook, before)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, parts.state_dict()[name])


def test_discard_forgets_the_batch() -> None:
    vq, untouched = quantizer(), quantizer()
    untouched.load_state_dict(vq.state_dict())
    vq(torch.full((10, 4), float("nan")))
    vq.discard()
    for quantized in (vq, untouched):
        quantized(torch.ones(10, 4))
        quantized.update(0, seed=0)
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in vq.state_dict().items())


def test_start_puts_codebook_and_averages_at_the_clusters() -> None:
    vq = quantizer(start="kmeans")
    vectors = torch.randn(500, 4) + 7
    vq.initialise_from_data(lambda: vectors, torch.Generator().manual_seed(0))
    counts, _ = gather_statistics(vectors, nearest(vectors, vq.codebook), 8)
    torch.testing.assert_close(vq.ema_count, counts * 8 / 500)
    torch.testing.assert_close(vq.ema_sum, vq.codebook * vq.ema_count[:, None])
    assert (vectors - vq.lookup(nearest(vectors, vq.codebook)[:, None])).square().mean() < vectors.var()


def test_a_code_that_starts_without_vectors_stays_at_its_place() -> None:
    vq = quantizer(start="kmeans")
    vq.initialise_from_data(lambda: torch.randn(3, 4) + 50, torch.Generator().manual_seed(0))
    started = vq.codebook.clone()
    vq(torch.zeros(20, 4))  # all codes are far from these vectors
    vq.update(0, seed=0)
    assert (vq.codebook.norm(dim=1) > 1).sum() >= 7
    unused = vq.codebook.norm(dim=1) > 90
    torch.testing.assert_close(vq.codebook[unused], started[unused], rtol=1e-3, atol=0.1)
    assert unused.sum() >= 7


@pytest.mark.parametrize("count", [1, 3, 7])
def test_start_with_fewer_vectors_than_codes(count: int) -> None:
    vq = quantizer(start="kmeans")
    vq.initialise_from_data(lambda: torch.randn(count, 4), torch.Generator().manual_seed(0))
    assert all(tensor.isfinite().all() for tensor in vq.state_dict().values())
    vq(torch.randn(20, 4))
    vq.update(0, seed=0)
    assert vq.codebook.isfinite().all()


def test_a_normal_start_leaves_the_codebook_alone() -> None:
    vq = quantizer(start="normal")
    before = state(vq)
    vq.initialise_from_data(lambda: torch.randn(50, 4), torch.Generator())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vq.state_dict().items())


def test_without_smoothing_a_code_without_any_count_stays_finite() -> None:
    vq = quantizer(ema_epsilon=0.0)
    vq.ema_count[3] = 0.0
    vq.ema_sum[3] = 0.0
    vq.codebook[3] = 99.0
    vq(torch.randn(20, 4))
    vq.update(0, seed=0)
    assert vq.codebook.isfinite().all()


def test_reestimation_puts_used_codes_at_their_means_and_leaves_the_others() -> None:
    vq = quantizer(codebook_size=3, codebook_dim=1)
    vq.codebook.copy_(torch.tensor([[1.0], [-9.0], [0.4]]))
    vq.re_estimate(lambda: iter([torch.tensor([[1.2], [0.1]]), torch.tensor([[1.8], [0.2], [0.6]])]))
    torch.testing.assert_close(vq.codebook, torch.tensor([[1.5], [-9.0], [0.3]]))
    torch.testing.assert_close(vq.ema_sum, vq.codebook * vq.ema_count[:, None])


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_arithmetic_and_statistics_are_float32_under_bf16(update: str) -> None:
    vq, plain = (quantizer(codebook_update=update, ema_decay=0.999) for _ in range(2))
    plain.load_state_dict(vq.state_dict())
    z = torch.randn(50, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output = vq(z)
    expected = plain(z.float())
    for found, wanted in zip(output, expected, strict=True):
        assert torch.equal(found, wanted)
    assert output.z_q.dtype == output.loss.dtype == torch.float32
    vq.update(0, seed=0)
    plain.update(0, seed=0)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in vq.state_dict().items())
    assert all(tensor.dtype == torch.float32 for tensor in vq.state_dict().values())


def test_one_codebook_size_serves_all_levels_or_each_has_its_own() -> None:
    options = {key: value for key, value in DEFAULTS.items() if key != "codebook_size"}
    same = build_quantizers({"name": "vq", "vq": {**options, "codebook_size": 5}}, 2)
    own = build_quantizers({"name": "vq", "vq": {**options, "codebook_size": [3, 9]}}, 2)
    assert [q.codebook_size for q in same] == [5, 5]
    assert [q.codebook_size for q in own] == [3, 9]
