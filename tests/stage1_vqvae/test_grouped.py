"""Grouped quantization, with a codebook for each group or one for all groups."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from shipped import parameters

from stage1_vqvae.quantizers.build import build_quantizers

VQ = parameters(
    "stage1_vqvae.quantizer.vq",
    codebook_size=8,
    codebook_dim=3,
    ema_decay=0.9,
    gradient_estimator="rotation",
    diveq_variance=0.0,
    revival_threshold=0.0,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def grouped(groups: int = 4, share: bool = False, inner: dict | None = None, **vq: Any) -> torch.nn.Module:
    inner = inner or {"name": "vq", "vq": {**VQ, **vq}}
    values = {"groups": groups, "share_codebook": share, "quantizer": inner}
    return build_quantizers({"name": "grouped", "grouped": values}, 1)[0]


@pytest.mark.parametrize("share", [False, True])
def test_groups_are_quantized_side_by_side(share: bool) -> None:
    quantizer = grouped(share=share)
    z = torch.randn(2, 5, 12, requires_grad=True)
    output = quantizer(z)
    parts = [quantizer.parts[0 if share else g] for g in range(4)]
    alone = [part(x) for part, x in zip(parts, z.split(3, -1), strict=True)]
    torch.testing.assert_close(output.z_q, torch.cat([o.z_q for o in alone], -1))
    assert torch.equal(output.indices, torch.cat([o.indices for o in alone], -1))
    torch.testing.assert_close(output.loss, torch.stack([o.loss for o in alone]).mean())
    assert (quantizer.dim, quantizer.depth, output.indices.shape) == (12, 4, (2, 5, 4))
    assert torch.equal(quantizer.eval()(z).z_q, quantizer.lookup(quantizer(z).indices))


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width 12, got shape \(2, 11\)"):
        grouped()(torch.randn(2, 11))


@pytest.mark.parametrize("share", [False, True])
def test_initialisation_re_estimation_and_update_work_on_each_groups_own_vectors(share: bool) -> None:
    quantizer = grouped(groups=2, share=share).eval()
    vectors = torch.cat([torch.randn(300, 3) * 0.1 + 5, torch.randn(300, 3) * 0.1 - 5], 1)
    quantizer.initialise_from_data(lambda: vectors, torch.Generator().manual_seed(0))
    ranges = [(part.codebook.min().item(), part.codebook.max().item()) for part in quantizer.parts]
    expected = [(-5.0, 5.0)] if share else [(5.0, 5.0), (-5.0, -5.0)]
    np.testing.assert_allclose(ranges, expected, atol=0.5)
    for part in quantizer.parts:
        part.codebook += 0.5
    assert (quantizer(vectors).z_q - vectors).square().mean() > 0.1
    quantizer.re_estimate(lambda: vectors.split(100))
    assert (quantizer(vectors).z_q - vectors).square().mean() < 0.012
    quantizer.train()(vectors)
    assert quantizer.update(0, seed=0)["perplexity"] > 1


@pytest.mark.parametrize("share", [False, True])
def test_several_forwards_and_one_update_equal_the_whole_batch(share: bool) -> None:
    whole, parts = grouped(share=share, revival_threshold=0.9), grouped(share=share, revival_threshold=0.9)
    parts.load_state_dict(whole.state_dict())
    z = torch.randn(40, 12) * 0.3
    whole.train()(z)
    for part in z.split([25, 15]):
        parts.train()(part)
    whole.update(7, seed=1)
    parts.update(7, seed=1)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, parts.state_dict()[name])


def test_residual_in_groups_gives_depth_times_groups_codes() -> None:
    residual = {"depth": 2, "share_codebook": False, "quantizer": {"name": "vq", "vq": VQ}}
    inner = {"name": "residual", "residual": residual}
    quantizer = grouped(3, inner=inner).eval()
    output = quantizer(torch.randn(4, 9))
    assert output.indices.shape == (4, 6) and quantizer.depth == 6
    assert torch.equal(quantizer.lookup(output.indices), output.z_q)


def test_groups_of_residuals_equal_vector_quantize_pytorch() -> None:
    """Indices and codes agree in training, and the running means agree after 5 steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever an oracle's import has to say is not about us
        from vector_quantize_pytorch import GroupedResidualVQ
    residual = {"depth": 2, "share_codebook": False, "quantizer": {"name": "vq", "vq": VQ}}
    quantizer = grouped(3, inner={"name": "residual", "residual": residual})
    theirs = GroupedResidualVQ(
        dim=9,
        groups=3,
        num_quantizers=2,
        codebook_size=8,
        decay=0.9,
        kmeans_init=False,
        threshold_ema_dead_code=0,
    )
    pairs = [
        (mine, other._codebook)
        for part, chain in zip(quantizer.parts, theirs.rvqs, strict=True)
        for mine, other in zip(part.layers, chain.layers, strict=True)
    ]
    for mine, other in pairs:
        other.embed.copy_(mine.codebook[None])
        other.embed_avg.copy_(mine.ema_sum[None])
    for step in range(5):
        z = torch.randn(2, 30, 9)
        output, (code, indices, _) = quantizer(z), theirs(z)
        assert torch.equal(output.indices.view(2, 30, 3, 2), indices.permute(1, 2, 0, 3))  # groups come before depths
        torch.testing.assert_close(output.z_q, code)
        quantizer.update(step, seed=0)
    for mine, other in pairs:
        torch.testing.assert_close(mine.codebook, other.embed[0])
        torch.testing.assert_close(mine.ema_count, other.cluster_size[0])


@pytest.mark.parametrize("share", [False, True])
def test_a_state_read_back_goes_on_as_the_original_would(share: bool) -> None:
    quantizer, other = grouped(share=share), grouped(share=share)
    quantizer(torch.randn(40, 12))
    quantizer.update(0, seed=0)
    other.load_state_dict(quantizer.state_dict())
    z = torch.randn(40, 12)
    for each in (quantizer, other):
        each(z)
        each.update(1, seed=0)
        each.eval()
    output = quantizer(z)
    assert torch.equal(output.z_q, other.lookup(output.indices)) and torch.equal(output.indices, other(z).indices)


def test_a_list_of_sizes_reaches_the_innermost_codebook_of_each_level() -> None:
    residual = {"depth": 2, "share_codebook": False, "quantizer": {"name": "vq", "vq": {**VQ, "codebook_size": [4, 9]}}}
    values = {"groups": 2, "share_codebook": True, "quantizer": {"name": "residual", "residual": residual}}
    levels = build_quantizers({"name": "grouped", "grouped": values}, 2)
    assert [q.codebook_size for q in levels] == [4, 9]
    assert [len(q.parts[0].layers[1].codebook) for q in levels] == [4, 9]
    assert residual["quantizer"]["vq"]["codebook_size"] == [4, 9]  # building has not changed the configuration


def test_stochastic_groups_draw_apart_and_each_image_its_own() -> None:
    soft = {
        "codebook_size": 16,
        "codebook_dim": 2,
        "samples": 3,
        "ema_decay": 0.9,
        "ema_epsilon": 1e-5,
        "commitment_cost": 0.25,
        "start": "normal",
        "kmeans_rounds": 1,
        "revival_threshold": 0.0,
    }
    quantizer = grouped(2, share=True, inner={"name": "soft_em", "soft_em": soft})
    z, seeds = torch.randn(1, 9, 2).repeat(3, 1, 2), torch.tensor([4, 5, 6])
    drawn = quantizer.draw(z, seeds)
    assert not torch.equal(drawn[..., 0], drawn[..., 1])  # vectors and codebook are equal; only the noise differs
    assert torch.equal(quantizer.draw(z[1:2], seeds[1:2]), drawn[1:2])
