"""The vector quantizer's options: cosine distance, projections, the entropy bonus, and codes that are parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stage1_vqvae.quantizers.vq import VectorQuantizer

Make = Callable[..., VectorQuantizer]


def cosine_pair(make_vq: Make, **options: Any) -> tuple[VectorQuantizer, torch.nn.Module]:
    from vector_quantize_pytorch import VectorQuantize

    ours = make_vq(distance="cosine", **options)
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


def test_five_cosine_steps_equal_vector_quantize_pytorch(make_vq) -> None:
    ours, theirs = cosine_pair(make_vq)
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


def test_cosine_codes_stay_on_the_sphere_and_move_to_their_vectors_mean_direction(make_vq) -> None:
    vq = make_vq(distance="cosine", ema_decay=0.0, start="kmeans")
    vectors = torch.randn(300, 4) * torch.rand(300, 1) * 10  # lengths have no influence
    vq.initialise_from_data(lambda: vectors, torch.Generator().manual_seed(0))
    torch.testing.assert_close(vq.codebook.norm(dim=1), torch.ones(8))
    indices = vq(vectors).indices.squeeze(1)
    vq.update(0, seed=0)
    unit = F.normalize(vectors, dim=1)
    expected = torch.stack([F.normalize(unit[indices == code].sum(0), dim=0) for code in range(8)])
    torch.testing.assert_close(vq.codebook, expected)


def test_unused_cosine_codes_stay_where_they_are(make_vq) -> None:
    vq = make_vq(distance="cosine", codebook_size=16, ema_decay=0.5, revival_threshold=0.0)
    z = torch.nn.functional.normalize(torch.randn(1, 4), dim=-1).expand(30, 4)
    before = vq.codebook.clone()
    for step in range(300):  # the sums of unused codes fall below float32's smallest number
        vq(z)
        vq.update(step, seed=0)
    used = vq.eval()(z).indices.unique()
    others = [code for code in range(16) if code not in used]
    assert len(others) == 15
    torch.testing.assert_close(vq.codebook.norm(dim=1), torch.ones(16))
    torch.testing.assert_close(vq.codebook[others], before[others], rtol=1e-4, atol=1e-4)


def test_codes_that_the_decoder_alone_learns_are_averaged_and_not_re_estimated(make_vq) -> None:
    vq = make_vq(codebook_update="gradient", gradient_estimator="diveq", codebook_cost=0.0)
    before = vq.codebook.detach().clone()
    vq.re_estimate(lambda: [torch.randn(50, 4)])
    assert vq.re_estimated == () and torch.equal(vq.codebook, before)
    other = make_vq(codebook_update="gradient")
    other.re_estimate(lambda: [torch.randn(50, 4)])
    assert other.re_estimated == ("codebook",) and not torch.equal(other.codebook, before)


def test_a_gradient_codebook_with_cosine_is_normalised_where_it_is_used(make_vq) -> None:
    vq = make_vq(distance="cosine", codebook_update="gradient").eval()
    with torch.no_grad():
        vq.codebook *= torch.rand(8, 1) * 5 + 0.1
    output = vq(torch.randn(20, 4))
    torch.testing.assert_close(output.z_q.norm(dim=1), torch.ones(20))
    assert torch.equal(output.z_q, vq.lookup(output.indices))


def test_a_projection_quantizes_in_its_own_width(make_vq) -> None:
    vq = make_vq(projection_dim=2)
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


def test_the_entropy_bonus_is_that_of_its_definition(make_vq) -> None:
    plain, vq = (make_vq(codebook_update="gradient", entropy_bonus=bonus) for bonus in (0.0, 0.3))
    plain.load_state_dict(vq.state_dict())
    vq.entropy_temperature = 0.7
    z = torch.randn(30, 4)
    p = (-torch.cdist(z.double(), vq.codebook.double()).square() / 0.7).softmax(1)
    expected = torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum()
    assert (vq(z).loss - plain(z).loss).item() == pytest.approx(0.3 * expected.item(), rel=1e-5)
    assert torch.equal(vq.eval()(z).loss, plain.eval()(z).loss)


def test_diveq_moves_z_and_a_gradient_codebook_by_each_images_own_noise(make_vq) -> None:
    vq = make_vq(codebook_update="gradient", gradient_estimator="diveq", diveq_variance=1e-2, commitment_cost=0.0)
    assert vq.stochastic
    z, seeds = torch.randn(6, 5, 4), torch.arange(6)
    output = vq(z, seeds)
    distance = (output.code - z).norm(dim=-1)
    # z_q lies as far from z as the code does, and nearly in the code's direction.
    torch.testing.assert_close((output.z_q - z).norm(dim=-1), distance)
    assert (output.z_q - output.code).abs().max() > 0
    torch.testing.assert_close(vq(z[2:3], seeds[2:3]).z_q, output.z_q[2:3])
    output.z_q.square().sum().backward()
    assert vq.codebook.grad.abs().sum() > 0
    assert not make_vq(gradient_estimator="diveq", diveq_variance=0.0).stochastic


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
def test_a_state_read_back_goes_on_as_the_original_would(make_vq, changes: dict[str, Any]) -> None:
    changes = {"revival_threshold": 0.3, **changes}
    vq, other = make_vq(**changes), make_vq(**changes)
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
    assert torch.equal(output.z_q, other.lookup(output.indices))  # in evaluation it is the code for every estimator
