"""One feature map at several scales, against the definition written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_vqvae import scales
from stage1_vqvae.codebooks import initialise_codebooks
from stage1_vqvae.model import VQVAE, load_vqvae
from stage1_vqvae.pictures import reconstructions
from stage1_vqvae.quantizers.output import planes
from tessera.artifacts.models import save_model
from tessera.images.pixels import to_float, to_uint8

SHAPE = (3, 12, 20)  # a network of factor 4 has a grid of 3x5
GRIDS = [(1, 1), (1, 2), (2, 3), (3, 5)]
SECTION = "stage1_vqvae."


@pytest.fixture
def build(params: Callable, choose_quantizer: Callable, choose_network: Callable) -> Callable[..., VQVAE]:
    """`build("fsq", dropout=0.5)`: a model of scales, whose convolutions are no longer the identity."""

    def make(case: str = "vq", network: str = "conv", quantizer: dict[str, Any] | None = None, **scales: Any) -> VQVAE:
        choose_quantizer(case)
        choose_network(network)
        scales = {"sides": [1, [1, 2], [2, 3], [3, 5]], "dropout": 0.0} | scales
        changes = {f"{SECTION}scales.{key}": value for key, value in scales.items()}
        changes |= {f"{SECTION}quantizer.{key}": value for key, value in (quantizer or {}).items()}
        changes |= dict(zip(("data.channels", "data.height", "data.width"), SHAPE, strict=True))
        section = params(changes).stage1_vqvae
        torch.manual_seed(0)
        model = VQVAE({"image_shape": list(SHAPE), "data_variance": 0.3, **section.model()})
        with torch.no_grad():
            for convolution in model.network.convolutions:
                convolution.weight += torch.randn_like(convolution.weight) * 0.1
        return model

    return make


def images(count: int = 6) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.rand(count, *SHAPE, generator=random) * 2 - 1


def initialised(model: VQVAE, count: int = 64) -> VQVAE:
    initialise_codebooks(model, lambda: images(count).split(16), seed=0)
    return model


def cell_means(x: Tensor, height: int, width: int) -> Tensor:
    """Means over the cells of a grid. A cell begins at the whole number below its edge and ends at the one above."""
    rows, columns = x.shape[2:]
    found = x.new_zeros(*x.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -(-(i + 1) * rows // height)
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            found[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    return found


def cubic_weights(small: int, large: int) -> Tensor:
    """The matrix (large, small) of cubic convolution (Keys 1981, a = -0.75), with edges repeated."""

    def kernel(distance: float) -> float:
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    found = torch.zeros(large, small, dtype=torch.float64)
    for i in range(large):
        place = (i + 0.5) * small / large - 0.5
        for near in range(int(place // 1) - 1, int(place // 1) + 3):
            found[i, min(max(near, 0), small - 1)] += kernel(place - near)
    return found


def of_definition(model: VQVAE, pixels: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The codes (B, h, w) of each scale, the sums (B, D, h, w) up to each scale, and the feature map, by definition."""
    network, strength = model.network, model.network.strength
    feature = network.network.latent(0, network.network.encode(pixels)[0], None).double()
    left, codes, sums = feature.clone(), [], []
    for scale, (height, width) in enumerate(GRIDS):
        table = model.quantizer_of(scale).codebook.double()
        z = cell_means(left, height, width)
        distances = (z.permute(0, 2, 3, 1)[..., None, :] - table).square().sum(-1)
        codes.append(distances.argmin(-1))
        z_q = table[codes[-1]].permute(0, 3, 1, 2)
        rows, columns = cubic_weights(height, GRIDS[-1][0]), cubic_weights(width, GRIDS[-1][1])
        large = torch.einsum("ih,jw,bdhw->bdij", rows, columns, z_q)
        convolution = network.convolutions[scale * len(network.convolutions) // len(GRIDS)]
        brought = (1 - strength) * large + strength * F.conv2d(large, convolution.weight.double(), padding=1)
        left = left - brought
        sums.append(brought if not sums else sums[-1] + brought)
    return codes, sums, feature


@pytest.mark.parametrize(("shared", "convolutions", "strength"), [(False, 4, 0.5), (True, 2, 0.3), (False, 9, 1.0)])
@torch.no_grad()
def test_codes_and_sums_are_those_of_the_definition(build, shared, convolutions, strength) -> None:
    model = build(quantizer={"shared_by_levels": shared}, convolutions=convolutions, strength=strength)
    model = initialised(model).eval()
    assert len(model.network.convolutions) == min(convolutions, 4) and len(model.quantizers) == (1 if shared else 4)
    pixels, network = images(), model.network
    codes, sums, feature = of_definition(model, pixels)
    outputs = model.quantize(pixels)
    total, brought = None, []
    for scale, output in enumerate(outputs):
        assert torch.equal(output.indices[..., 0], codes[scale])
        brought.append(network.context(scale, planes(output.z_q), None).total)
        total = network.context(scale, planes(output.z_q), total)
        torch.testing.assert_close(total.total.double(), sums[scale], rtol=1e-5, atol=1e-5)
    # What the scales brought up and what is left add up to the feature map.
    left = network.latent(3, feature.float(), total)
    torch.testing.assert_close(sum(brought) + left, feature.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(network.decoder_inputs([planes(o.z_q) for o in outputs])[0], total.total)


@torch.no_grad()
def test_encoding_is_the_forward_pass_and_k_scales_decode_to_their_partial_sum(build) -> None:
    model = initialised(build(dropout=0.4))
    pixels = images()
    while_training = [output.indices for output in model.quantize(pixels)]
    model.eval()
    codes, (_, sums, _) = model.encode(pixels), of_definition(model, pixels)
    assert [tuple(grid.shape) for grid in codes] == [(6, *grid, 1) for grid in GRIDS]
    for found, expected in zip(while_training, codes, strict=True):
        assert torch.equal(found, expected)
    for count in range(1, 5):
        expected = model.likelihood.mean(model.network.network.decode([sums[count - 1].float()]))
        torch.testing.assert_close(model.decode(codes, list(range(count))), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.decode(codes, [0, 1, 2, 3]), model.decode(codes))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_loss_is_the_commitment_on_the_sums(build, update) -> None:
    model = initialised(build(quantizer={"commitment_cost": 0.3, "vq.codebook_update": update}))
    pixels = images()
    outputs = model.quantize(pixels)
    with torch.no_grad():
        _, sums, feature = of_definition(model, pixels)
        errors = [(feature - total).square().mean() for total in sums]
        expected = sum(1.3 * error for error in errors) / 4
        if update == "gradient":
            own = [(o.target - o.code).square().mean() for o in outputs]
            expected = expected + sum(own) / 4  # the codebook's term
    found = sum(output.loss for output in outputs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    # The encoder is pulled to the sums, and the convolutions to the feature map.
    (to_map,) = torch.autograd.grad(found, model.network.convolutions[0].weight, retain_graph=True)
    assert to_map.abs().sum() > 0
    feature = model.network.encode(pixels)[0].detach().requires_grad_()
    outputs, contexts = model.quantize_features([feature] * 4, lambda level, z: z)
    outputs, _ = model.network.trained_by([feature] * 4, outputs, contexts, None)
    (pull,) = torch.autograd.grad(sum(output.loss for output in outputs), feature)
    wanted = sum(0.3 * 2 * (feature.detach().double() - total) for total in sums) / 4 / feature.numel()
    torch.testing.assert_close(pull.double(), wanted, rtol=1e-4, atol=1e-7)


def test_a_gradient_passes_to_the_feature_map_as_if_nothing_were_quantized(build) -> None:
    model = initialised(build())
    for convolution in model.network.convolutions:
        torch.nn.init.dirac_(convolution.weight)
    feature = model.network.encode(images())[0].detach().requires_grad_()
    outputs, contexts = model.quantize_features([feature] * 4, lambda level, z: z)
    _, (total,) = model.network.trained_by([feature] * 4, outputs, contexts, None)
    weights = torch.randn_like(total)
    (found,) = torch.autograd.grad((total * weights).sum(), feature)
    torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.7])
def test_gradients_are_those_of_the_definition(build, dropout) -> None:
    """The loss's second term trains convolutions alone; what the decoder receives trains the encoder too."""
    model, seeds = initialised(build(strength=0.3, dropout=dropout)), torch.arange(6)
    network = model.network
    feature = network.encode(images())[0].detach().requires_grad_()
    outputs, contexts = model.quantize_features([feature] * 4, lambda level, z: z)
    weights = torch.randn_like(feature)
    found, (decoded,) = network.trained_by([feature] * 4, outputs, contexts, seeds)
    kept = network._kept(6, seeds, feature.device) if dropout else torch.full((6,), 4)
    loss = sum(output.loss for output in found) + (decoded * weights).sum()

    def brought(scale: int, z_q: Tensor) -> Tensor:
        large = F.interpolate(z_q, GRIDS[-1], mode="bicubic", align_corners=False)
        convolution = network.convolutions[scale * len(network.convolutions) // len(GRIDS)]
        return 0.7 * large + 0.3 * convolution(large)

    total, fixed, wanted, seen = 0, 0, 0, 0
    for scale in range(4):
        z = F.adaptive_avg_pool2d(feature - total, GRIDS[scale]).permute(0, 2, 3, 1)
        output = model.quantizer_of(scale)(z)
        total = total + brought(scale, planes(output.z_q))
        seen = seen + brought(scale, planes(output.z_q) * (scale < kept)[:, None, None, None])
        fixed = fixed + brought(scale, planes(output.z_q).detach())
        commitment = network.commitment_cost * F.mse_loss(feature, fixed.detach())
        wanted = wanted + (output.loss + commitment + F.mse_loss(fixed, feature.detach())) / 4
    wanted = wanted + (seen * weights).sum()
    learned = [feature, *network.convolutions.parameters()]
    for one, other in zip(*(torch.autograd.grad(each, learned) for each in (loss, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)


def test_a_training_step_computes_one_convolution_a_scale(build, monkeypatch) -> None:
    calls, plain = [], scales.convolved
    monkeypatch.setattr(scales, "convolved", lambda *given: (calls.append(1), plain(*given))[1])
    model = initialised(build(dropout=0.5))
    calls.clear()
    model.train()(images(), torch.arange(6))
    assert len(calls) == len(GRIDS)


@torch.no_grad()
def test_dropout_leaves_out_the_finest_scales_of_some_images_whatever_their_batch(build) -> None:
    model = initialised(build(dropout=0.5))
    assert model.stochastic and not build().stochastic
    pixels, seeds = images(64), torch.arange(64)
    outputs, (decoded,) = model.quantize_for_decoder(pixels, seeds)
    quantized, left_out = [planes(output.z_q) for output in outputs], model.network.left_out
    first = [quantized[:count] + list(map(left_out, quantized[count:])) for count in range(1, 5)]
    sums = torch.stack([model.network.decoder_inputs(some)[0] for some in first])
    same = (decoded - sums).abs().amax((2, 3, 4)) < 1e-5  # each image is decoded from its first scales
    assert (same.sum(0) == 1).all()
    counts = 1 + same.int().argmax(0)
    assert set(counts.tolist()) == {1, 2, 3, 4} and 20 < int((counts == 4).sum()) < 44
    _, (alone,) = model.quantize_for_decoder(pixels[9:11], seeds[9:11])
    torch.testing.assert_close(alone, decoded[9:11])
    model.eval()
    _, (decoded,) = model.quantize_for_decoder(pixels, seeds)
    torch.testing.assert_close(decoded, sums[-1])


@pytest.mark.parametrize("case", ["vq", "vq cosine", "fsq", "bsq", "simvq", "residual"])
def test_every_scale_has_figures_of_its_own_and_starts_at_its_own_vectors(build, case) -> None:
    model = initialised(build(case))
    model.quantize(images(64))
    found = model.update(0, seed=0)
    assert {f"perplexity_level_{scale}" for scale in range(4)} < set(found)
    if case == "vq":  # as many codes as k-means found apart, even where a scale has one vector an image
        assert all(found[f"perplexity_level_{scale}"] > 4 for scale in range(4))


@torch.no_grad()
def test_a_code_that_a_scale_never_uses_is_revived_at_that_scale(build) -> None:
    model = initialised(build(quantizer={"revival_threshold": 0.5, "ema_decay": 0.0}))
    model.train()
    far = model.quantizers[0].codebook[3].fill_(1e3).clone()
    model.quantizers[0].ema_sum[3] = 1e3
    model.quantize(images(64))
    model.update(0, seed=0)
    assert not torch.equal(model.quantizers[0].codebook[3], far)
    # Without revival its count and sum would be 0, and so would the code.
    assert 0 < model.quantizers[0].codebook[3].abs().max() < 100


@torch.no_grad()
def test_pictures_show_the_scales_up_to_each(build) -> None:
    model = initialised(build()).eval()
    pixels = to_uint8(images(3))
    rows = reconstructions(model, pixels)
    codes = model.encode(to_float(pixels))
    assert len(rows) == 5
    for count, row in enumerate(rows[1:], start=1):
        assert torch.equal(row, to_uint8(model.decode(codes, list(range(count)))))


def test_a_published_model_has_its_scales_and_one_without_does_not_speak_of_them(build, params, tmp_path: Path) -> None:
    model = initialised(build(dropout=0.2)).eval()
    save_model(tmp_path / "vqvae", "vqvae", model.config, model.state_dict(), {})
    loaded, _ = load_vqvae(tmp_path / "vqvae")
    assert loaded.layout == model.layout and [(v.height, v.width) for v in loaded.layout.levels] == GRIDS
    with torch.no_grad():
        for one, other in zip(model.encode(images()), loaded.encode(images()), strict=True):
            assert torch.equal(one, other)
    assert "scales" not in params({SECTION + "scales.sides": None}).stage1_vqvae.model()


def test_scales_may_have_codebooks_of_different_sizes(build) -> None:
    layout = build(quantizer={"codebook_size": [2, 3, 5, 8]}).layout
    assert [level.codebook_size for level in layout.levels] == [2, 3, 5, 8]
