"""The vector quantizer against brute force, closed forms, and vector-quantize-pytorch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stage1_vqvae.quantizers.build import build_quantizers
from stage1_vqvae.quantizers.search import gather_statistics, nearest
from stage1_vqvae.quantizers.vq import VectorQuantizer

DEFAULTS: dict[str, Any] = {
    "codebook_size": 8,
    "codebook_dim": 4,
    "codebook_update": "ema",
    "ema_decay": 0.9,
    "ema_epsilon": 1e-5,
    "commitment_cost": 0.25,
    "codebook_cost": 1.0,
    "projection_dim": None,
    "distance": "euclidean",
    "entropy_bonus": 0.0,
    "entropy_temperature": 1.0,
    "diveq_variance": 0.0,
    "gradient_estimator": "straight_through",
    "start": "normal",
    "kmeans_rounds": 5,
    "revival_threshold": 0.0,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quantizer(**changes: Any) -> VectorQuantizer:
    return VectorQuantizer(**{**DEFAULTS, **changes})


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The first of the nearest codes, from the full table of differences in float64."""
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
    with pytest.raises(ValueError, match=r"width 4, got \(2, 5\)"):
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


def test_revival_resets_code_count_and_sum_of_the_dead_alone() -> None:
    alive = quantizer(codebook_size=4, codebook_dim=2)
    vq = quantizer(codebook_size=4, codebook_dim=2, revival_threshold=0.3)
    with torch.no_grad():
        for each in (alive, vq):
            each.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [60.0, 60.0]]))
            each.ema_count.copy_(torch.tensor([5.0, 5.0, 0.1, 0.1]))
            each.ema_sum.copy_(each.codebook * each.ema_count[:, None])
    z = torch.rand(30, 2)
    for each in (alive, vq):
        each(z)
        each.update(3, seed=0)
    even = alive.ema_count.sum() / 4
    for name in ("codebook", "ema_count", "ema_sum"):
        torch.testing.assert_close(getattr(vq, name)[:2], getattr(alive, name)[:2])
    for dead in (2, 3):
        assert (vq.codebook[dead] == z).all(1).any()  # a vector of the batch
        torch.testing.assert_close(vq.ema_count[dead], even)
        torch.testing.assert_close(vq.ema_sum[dead], vq.codebook[dead] * even)
    assert not torch.equal(vq.codebook[2], vq.codebook[3])


def test_a_revived_code_stays_where_it_was_put() -> None:
    vq = quantizer(codebook_size=4, codebook_dim=2, revival_threshold=0.3)
    with torch.no_grad():
        vq.codebook[2:] = 50.0
        vq.ema_count[2:] = 0.01
        vq.ema_sum[2:] = 0.5
    vq(torch.rand(30, 2))
    vq.update(0, seed=0)
    revived = vq.codebook[2].clone()
    vq(vq.codebook[:1].expand(30, 2))  # a batch of which the code gets nothing: its mean must not move
    vq.update(1, seed=0)
    torch.testing.assert_close(vq.codebook[2], revived, rtol=1e-3, atol=1e-3)


def test_revival_depends_on_seed_and_step_alone() -> None:
    found = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.manual_seed(0)
        vq = quantizer(revival_threshold=0.9)
        vq(torch.randn(50, 4) + 5)
        torch.manual_seed(len(found))
        vq.update(step, seed=seed)
        found.append(vq.codebook)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


def test_revival_recovers_a_collapsed_codebook() -> None:
    vq = quantizer(codebook_size=32, codebook_dim=2, revival_threshold=0.1, ema_decay=0.8)
    vq.codebook.add_(100)
    vq.ema_sum.add_(100)
    for step in range(60):
        vq(torch.rand(256, 2))
        vq.update(step, seed=0)
    used = nearest(torch.rand(2000, 2), vq.codebook).unique()
    assert len(used) > 0.9 * 32


def test_revival_works_with_fewer_vectors_than_codes() -> None:
    vq = quantizer(revival_threshold=0.9)
    vq(torch.randn(3, 4) + 9)
    vq.update(0, seed=0)
    assert all(tensor.isfinite().all() for tensor in vq.state_dict().values())


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
    vq(torch.zeros(20, 4))  # none of them is near
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


def cosine_pair(**options: Any) -> tuple[VectorQuantizer, torch.nn.Module]:
    from vector_quantize_pytorch import VectorQuantize

    ours = quantizer(distance="cosine", **options)
    theirs = VectorQuantize(
        dim=4,
        codebook_size=8,
        decay=0.9,
        eps=1e-5,
        commitment_weight=0.25,
        use_cosine_sim=True,
        rotation_trick=False,
        learnable_codebook=False,
        kmeans_init=False,
        threshold_ema_dead_code=0,
    )
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.codebook[None])
        theirs._codebook.embed_avg.copy_(ours.ema_sum[None])
        theirs._codebook.cluster_size.copy_(ours.ema_count[None])
    return ours, theirs


def test_five_cosine_steps_equal_vector_quantize_pytorch() -> None:
    ours, theirs = cosine_pair()
    weights = torch.randn(3, 10, 4)
    for step in range(5):
        z = torch.randn(3, 10, 4) * 3
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        output, (code, indices, loss) = ours(a), theirs(b)
        assert torch.equal(output.indices.squeeze(-1), indices)
        torch.testing.assert_close((output.z_q, output.loss), (code, loss.sum()))
        ((output.z_q * weights).sum() + output.loss).backward()
        ((code * weights).sum() + loss.sum()).backward()
        torch.testing.assert_close(a.grad, b.grad)
        ours.update(step, seed=0)
    torch.testing.assert_close(ours.codebook, theirs.codebook)
    torch.testing.assert_close(ours.ema_count, theirs._codebook.cluster_size[0])
    torch.testing.assert_close(ours.ema_sum, theirs._codebook.embed_avg[0])


def test_cosine_codes_stay_on_the_sphere_and_move_to_their_vectors_mean_direction() -> None:
    vq = quantizer(distance="cosine", ema_decay=0.0, start="kmeans")
    vectors = torch.randn(300, 4) * torch.rand(300, 1) * 10  # lengths do not count
    vq.initialise_from_data(lambda: vectors, torch.Generator().manual_seed(0))
    torch.testing.assert_close(vq.codebook.norm(dim=1), torch.ones(8))
    indices = vq(vectors).indices.squeeze(1)
    vq.update(0, seed=0)
    unit = F.normalize(vectors, dim=1)
    expected = torch.stack([F.normalize(unit[indices == code].sum(0), dim=0) for code in range(8)])
    torch.testing.assert_close(vq.codebook, expected)


def test_unused_cosine_codes_stay_where_they_are() -> None:
    vq = quantizer(distance="cosine", codebook_size=16, ema_decay=0.5, revival_threshold=0.0)
    z = torch.nn.functional.normalize(torch.randn(1, 4), dim=-1).expand(30, 4)
    before = vq.codebook.clone()
    for step in range(300):  # the sums of the unused end below float32's smallest number
        vq(z)
        vq.update(step, seed=0)
    used = vq.eval()(z).indices.unique()
    others = [code for code in range(16) if code not in used]
    assert len(others) == 15
    torch.testing.assert_close(vq.codebook.norm(dim=1), torch.ones(16))
    torch.testing.assert_close(vq.codebook[others], before[others], rtol=1e-4, atol=1e-4)


def test_codes_that_the_decoder_alone_learns_are_averaged_and_not_re_estimated() -> None:
    vq = quantizer(codebook_update="gradient", gradient_estimator="diveq", codebook_cost=0.0)
    before = vq.codebook.detach().clone()
    vq.re_estimate(lambda: [torch.randn(50, 4)])
    assert vq.re_estimated == () and torch.equal(vq.codebook, before)
    other = quantizer(codebook_update="gradient")
    other.re_estimate(lambda: [torch.randn(50, 4)])
    assert other.re_estimated == ("codebook",) and not torch.equal(other.codebook, before)


def test_a_gradient_codebook_with_cosine_is_normalised_where_it_is_used() -> None:
    vq = quantizer(distance="cosine", codebook_update="gradient").eval()
    with torch.no_grad():
        vq.codebook *= torch.rand(8, 1) * 5 + 0.1
    output = vq(torch.randn(20, 4))
    torch.testing.assert_close(output.z_q.norm(dim=1), torch.ones(20))
    assert torch.equal(output.z_q, vq.lookup(output.indices))


def test_a_projection_quantizes_in_its_own_width() -> None:
    vq = quantizer(projection_dim=2)
    z = torch.randn(5, 6, 4, requires_grad=True)
    output = vq(z)
    target = vq.project_in(z).detach()
    nearest_code = torch.cdist(target.flatten(0, 1), vq.codebook).argmin(1)
    assert torch.equal(output.indices.flatten(), nearest_code) and vq.codebook.shape == (8, 2)
    torch.testing.assert_close(output.z_q, vq.project_out(vq.codebook[nearest_code]).view(5, 6, 4))
    torch.testing.assert_close(output.loss, 0.25 * F.mse_loss(target, output.code))
    output.z_q.sum().backward()
    assert z.grad.abs().sum() > 0 and vq.project_in.weight.grad.abs().sum() > 0
    assert torch.equal(vq.eval()(z).z_q, vq.lookup(output.indices))


def test_the_entropy_bonus_is_that_of_its_definition() -> None:
    plain, vq = (quantizer(codebook_update="gradient", entropy_bonus=bonus) for bonus in (0.0, 0.3))
    plain.load_state_dict(vq.state_dict())
    vq.entropy_temperature = 0.7
    z = torch.randn(30, 4)
    p = (-torch.cdist(z.double(), vq.codebook.double()).square() / 0.7).softmax(1)
    expected = torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum()
    assert (vq(z).loss - plain(z).loss).item() == pytest.approx(0.3 * expected.item(), rel=1e-5)
    assert torch.equal(vq.eval()(z).loss, plain.eval()(z).loss)


def test_diveq_moves_z_and_a_gradient_codebook_by_each_images_own_noise() -> None:
    vq = quantizer(codebook_update="gradient", gradient_estimator="diveq", diveq_variance=1e-2, commitment_cost=0.0)
    assert vq.stochastic
    z, seeds = torch.randn(6, 5, 4), torch.arange(6)
    output = vq(z, seeds)
    distance = (output.code - z).norm(dim=-1)
    torch.testing.assert_close((output.z_q - z).norm(dim=-1), distance)  # as far as the code, nearly its way
    assert (output.z_q - output.code).abs().max() > 0
    torch.testing.assert_close(vq(z[2:3], seeds[2:3]).z_q, output.z_q[2:3])
    output.z_q.square().sum().backward()
    assert vq.codebook.grad.abs().sum() > 0
    assert not quantizer(gradient_estimator="diveq", diveq_variance=0.0).stochastic


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codebook_update": "gradient"},
        {"distance": "cosine"},
        {"distance": "cosine", "codebook_update": "gradient"},
        {"projection_dim": 2, "distance": "cosine"},
        {"gradient_estimator": "diveq", "diveq_variance": 0.1},
    ],
)
def test_a_state_read_back_goes_on_as_the_original_would(changes: dict[str, Any]) -> None:
    changes = {"revival_threshold": 0.3, **changes}
    vq, other = quantizer(**changes), quantizer(**changes)
    vq(torch.randn(40, 4))
    vq.update(0, seed=0)
    other.load_state_dict(vq.state_dict())
    z, seeds = torch.randn(40, 4), torch.arange(40)
    assert torch.equal(vq(z, seeds).z_q, other(z, seeds).z_q)
    for each in (vq, other):
        each.update(1, seed=0)
        each.eval()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in vq.state_dict().items())
    output = vq(z)
    assert torch.equal(output.z_q, other.lookup(output.indices))  # the code, whatever the estimator
