"""Levels that build on each other: a context that adds up over levels, and a quantizer that all levels share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae import model as model_module
from stage1_vqvae.codebooks import initialise_codebooks, re_estimate_codebooks
from stage1_vqvae.model import VQVAE, load_vqvae
from stage1_vqvae.networks.base import Network
from tessera.artifacts.models import save_model
from tessera.errors import UserError
from tessera.training.optimizer import build_optimizer

SHAPE = (3, 8, 16)
GRIDS = [(1, 2), (2, 4), (4, 8)]


class Accumulating(Network):
    """Each level codes what the sum of all coarser levels, enlarged to the finest grid, leaves of one feature map.

    Tian et al. 2024, "Visual Autoregressive Modeling", algorithm 1, has levels of this kind.
    """

    def __init__(self, image_shape: tuple[int, int, int], outputs: int, codebook_dim: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(image_shape[0], codebook_dim, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(codebook_dim, outputs, 2, stride=2)
        self.contexts: list[tuple[int, torch.Tensor | None]] = []

    @staticmethod
    def grids_of(image_shape: tuple[int, int, int], **parameters: object) -> list[tuple[int, int]]:
        return GRIDS

    @staticmethod
    def enlarged(z_q: torch.Tensor) -> torch.Tensor:
        return F.interpolate(z_q, GRIDS[-1], mode="nearest")

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.encoder(images)] * len(GRIDS)

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        left = feature if context is None else feature - context
        return F.adaptive_avg_pool2d(left, GRIDS[level])

    def context(self, level: int, z_q: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        self.contexts.append((level, context))
        return self.enlarged(z_q) if context is None else context + self.enlarged(z_q)

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        return self.decoder(sum(self.enlarged(z_q) for z_q in quantized))


@pytest.fixture
def build(params: Callable, choose_quantizer: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VQVAE]:
    """`build("vq", shared=True)`: a model of three levels whose context adds up."""

    def make(case: str = "vq", shared: bool = False, **changes: Any) -> VQVAE:
        choose_quantizer(case)
        monkeypatch.setattr(model_module, "network_class", lambda config: Accumulating)
        monkeypatch.setattr(model_module, "build_network", lambda config, *arguments: Accumulating(*arguments))
        quantizer = "stage1_vqvae.quantizer."
        changes = {quantizer + "shared_by_levels": shared} | {quantizer + k: v for k, v in changes.items()}
        section = params(changes).stage1_vqvae
        torch.manual_seed(0)
        config = {"image_shape": list(SHAPE), "data_variance": 0.3, "network": {"name": "test", "test": {}}}
        config |= {"quantizer": section.quantizer.values(), "likelihood": section.likelihood.values()}
        return VQVAE(config)

    return make


def images(count: int = 16) -> torch.Tensor:
    """Smooth float images in [-1, 1], so that coarse levels say something about them."""
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 2, 4, generator=random) * 1.6 - 0.8
    return F.interpolate(coarse, SHAPE[1:], mode="bilinear") + torch.randn(count, *SHAPE, generator=random) * 0.05


def trained(model: VQVAE, params: Any, steps: int = 30) -> list[float]:
    """Trains a model and returns the distortion of each step."""
    optimizer = build_optimizer(dict(model.named_parameters()), params, model.re_estimated_parameters)
    batch, distortions = images(), []
    initialise_codebooks(model, lambda: batch.split(8), seed=0)
    for step in range(steps):
        loss, parts = model(batch, torch.arange(len(batch)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update(step, seed=0)
        distortions.append(parts["distortion"].item())
    return distortions


CASES = ["vq", "vq gradient", "soft_em", "residual, shared", "grouped", "gumbel", "fsq"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_levels_with_a_context_that_adds_up_train_encode_decode_and_draw(build, params, case, shared) -> None:
    model = build(case, shared)
    distortions = trained(model, params().stage1_vqvae.training)
    assert sum(distortions[-5:]) < sum(distortions[:5])
    model.eval()
    batch = images(5)
    with torch.no_grad():
        outputs, codes = model.quantize(batch), model.encode(batch)
        direct = model.network.decode([model_module.planes(output.z_q) for output in outputs])
        assert torch.equal(model.decode_parameters(codes), direct)
        # One image alone has the same codes, and its drawn codes are conditioned on the drawn coarser ones.
        alone = model.encode(batch[2:3])
        assert all(torch.equal(one, grid[2:3]) for one, grid in zip(alone, codes, strict=True))
        seeds = torch.arange(5)
        drawn, again = model.draw(batch, seeds), model.draw(batch[2:3], seeds[2:3])
        assert all(torch.equal(one, grid[2:3]) for one, grid in zip(again, drawn, strict=True))
        if not model.quantizers[0].can_draw:
            assert all(torch.equal(a, b) for a, b in zip(drawn, codes, strict=True))
    assert [tuple(grid.shape[1:]) for grid in codes] == [(v.height, v.width, v.depth) for v in model.layout.levels]


def test_every_level_receives_the_sum_of_all_coarser_levels(build) -> None:
    model = build().eval()
    batch = images(4)
    with torch.no_grad():
        initialise_codebooks(model, lambda: [batch], seed=0)
        model.eval().network.contexts.clear()
        outputs = model.quantize(batch)
        sums = [Accumulating.enlarged(model_module.planes(output.z_q)) for output in outputs]
        feature = model.network.encode(batch)[0]
        for level, output in enumerate(outputs):
            left = F.adaptive_avg_pool2d(feature - sum(sums[:level]), GRIDS[level])
            torch.testing.assert_close(output.target, left.permute(0, 2, 3, 1))
        (first, none), (second, one) = model.network.contexts
    assert (first, none, second) == (0, None, 1)  # the finest level's context is never asked for
    torch.testing.assert_close(one, sums[0])


def test_further_levels_lower_the_error(build, params) -> None:
    model = build(shared=True)
    trained(model, params().stage1_vqvae.training)
    batch = images()
    with torch.no_grad():
        quantized = [model_module.planes(output.z_q) for output in model.eval().quantize(batch)]
        decoded = [model.network.decode(quantized[: count + 1]) for count in range(3)]
    errors = [(image - batch).square().mean().item() for image in decoded]
    assert errors[0] > errors[1] > errors[2]


def test_a_shared_quantizer_is_held_once_and_the_layout_is_the_same(build, tmp_path: Path) -> None:
    own, shared = build("vq"), build("vq", shared=True)
    assert shared.layout == own.layout and len(own.quantizers) == 3 and len(shared.quantizers) == 1
    assert {shared.quantizer_of(level) for level in range(3)} == {shared.quantizers[0]}
    assert "shared_by_levels" not in own.config["quantizer"] and shared.config["quantizer"]["shared_by_levels"] is True
    names = [name for name in shared.state_dict() if name.startswith("quantizers")]
    assert sorted(names) == [f"quantizers.0.{name}" for name in ("codebook", "ema_count", "ema_sum")]
    save_model(tmp_path / "vqvae", "vqvae", shared.config, shared.eval().state_dict(), {})
    loaded, _ = load_vqvae(tmp_path / "vqvae")
    codes = shared.encode(images(3))
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(images(3)), codes, strict=True))
    assert torch.equal(loaded.decode(codes), shared.decode(codes))


def test_a_shared_quantizer_is_updated_once_a_step_with_the_vectors_of_all_levels(build) -> None:
    model = build(shared=True, ema_decay=0.9, revival_threshold=0.0)
    outputs = model.quantize(images())
    indices = torch.cat([output.indices.flatten() for output in outputs])
    quantizer = model.quantizers[0]
    figures = model.update(0, seed=0)
    counts = torch.bincount(indices, minlength=8).float()
    torch.testing.assert_close(quantizer.ema_count, 0.9 + 0.1 * counts)
    shares = counts / counts.sum()
    assert set(figures) == {"perplexity"}
    torch.testing.assert_close(figures["perplexity"], torch.special.entr(shares).sum().exp())


def test_a_shared_quantizer_starts_at_the_vectors_of_all_levels(build) -> None:
    model = build(shared=True, codebook_size=64)
    batch = images()
    initialise_codebooks(model, lambda: batch.split(5), seed=0)
    quantizer = model.eval().quantizers[0]
    with torch.no_grad():
        levels = model.vectors(range(3), batch).split([16 * height * width for height, width in GRIDS])
        for vectors in levels:  # no level is left out: codes say more about its vectors than their mean does
            error = (quantizer(vectors).z_q - vectors).square().mean()
            assert error < 0.6 * (vectors - vectors.mean(0)).square().mean()
    assert quantizer.ema_count.sum().item() == pytest.approx(64, rel=1e-4)


def test_re_estimation_puts_a_shared_codebook_at_the_means_over_all_levels(build) -> None:
    model = build(shared=True)
    batch = images()
    initialise_codebooks(model, lambda: [batch], seed=0)
    with torch.no_grad():
        model.network.encoder.weight.mul_(1.1)
    model.eval()
    vectors = model.vectors(range(3), batch)
    own = model.quantizers[0](vectors).indices.flatten()
    re_estimate_codebooks(model, lambda: batch.split(5))
    for code in own.unique():
        torch.testing.assert_close(model.quantizers[0].codebook[code], vectors[own == code].mean(0))
    assert build("vq gradient", shared=True).re_estimated_parameters == {"quantizers.0.codebook"}


@pytest.mark.parametrize("case", ["vq", "residual, shared", "grouped, shared", "soft_em"])
def test_micro_batches_move_a_shared_codebook_as_the_whole_batch_does(build, case) -> None:
    whole, parts = build(case, True, revival_threshold=0.9), build(case, True, revival_threshold=0.9)
    batch, seeds = images(), torch.arange(16)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    whole(batch, seeds)
    for rows in (slice(0, 5), slice(5, 16)):
        parts(batch[rows], seeds[rows])
    whole.update(3, seed=0)
    parts.update(3, seed=0)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, parts.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_shared_quantizer_with_several_codebook_sizes_is_refused(params) -> None:
    quantizer = "stage1_vqvae.quantizer."
    levels = {"stage1_vqvae.network.conv.strides": [2, 2], quantizer + "codebook_size": [3, 9]}
    params(levels)
    with pytest.raises(UserError, match=r"quantizer: shared_by_levels: .*codebook sizes \[3, 9\]; give one"):
        params(levels | {quantizer + "shared_by_levels": True})
