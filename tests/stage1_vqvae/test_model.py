"""The VQVAE: encoding, decoding, the loss, computing codebooks from images, and reading a published model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import parameters

from stage1_vqvae.codebooks import initialise_codebooks, re_estimate_codebooks
from stage1_vqvae.model import VQVAE, load_vqvae
from tessera.artifacts.models import save_model
from tessera.errors import UserError
from tessera.parameters.parts import options

SHAPES = [((1, 8, 8), [2], 6), ((3, 8, 16), [4, 2], [3, 7]), ((3, 16, 8), [2, 2, 2], 5)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def config(
    shape: tuple[int, int, int] = (3, 8, 16),
    strides: list[int] | None = None,
    sizes: Any = (3, 7),
    likelihood: str = "gaussian",
    **vq: Any,
) -> dict[str, Any]:
    conv = {
        "strides": strides or [4, 2],
        "channels": 8,
        "stem_channels": 4,
        "residual_blocks": 1,
        "residual_channels": 4,
    }
    size = sizes if isinstance(sizes, int) else list(sizes)
    changes = {"codebook_size": size, "codebook_dim": 4, "ema_decay": 0.9, "diveq_variance": 0.0, "kmeans_rounds": 3}
    values = parameters("stage1_vqvae.quantizer.vq", **changes)
    likelihoods = {"gaussian": {"fit_images": 4}, "discretized_logistic": {"min_log_scale": -7.0}}
    return {
        "image_shape": list(shape),
        "data_variance": 0.25,
        "network": {"name": "conv", "conv": conv},
        "quantizer": {"name": "vq", "vq": values | vq},
        "likelihood": {"name": likelihood, likelihood: likelihoods[likelihood]},
    }


def pixels(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8)


def floats(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return pixels(count, shape).float() / 127.5 - 1


@pytest.mark.parametrize(("shape", "strides", "sizes"), SHAPES)
@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_logistic"])
def test_codes_and_images_have_the_layouts_shapes(shape: Any, strides: Any, sizes: Any, likelihood: str) -> None:
    model = VQVAE(config(shape, strides, sizes, likelihood)).eval()
    images = floats(3, shape)
    codes = model.encode(images)
    assert [tuple(c.shape[1:]) for c in codes] == [(v.height, v.width, v.depth) for v in model.layout.levels]
    assert all(c.dtype == torch.int64 for c in codes)
    tokens = model.layout.flatten(codes)
    assert (tokens < model.layout.codebook_sizes).all()
    assert model.decode_parameters(codes).dtype == torch.float32
    decoded = model.decode(model.layout.unflatten(tokens))
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    nll = model.likelihood.nll(model.decode_parameters(codes), pixels(3, shape))
    assert nll.shape == (3,) and nll.isfinite().all()


@pytest.mark.parametrize(("shape", "strides", "sizes"), SHAPES)
def test_the_loss_is_of_the_very_image_that_the_codes_decode_to(shape: Any, strides: Any, sizes: Any) -> None:
    model = VQVAE(config(shape, strides, sizes))
    initialise_codebooks(model, lambda: [floats(8, shape)], seed=0)
    images = floats(4, shape)
    _, training = model(images)
    model.eval()
    _, evaluation = model(images)
    decoded = model.decode_parameters(model.encode(images))
    expected = (decoded - images).square().mean() / 0.25
    torch.testing.assert_close(evaluation["distortion"], expected)
    torch.testing.assert_close(training["distortion"], expected)


def test_uint8_pixels_and_their_floats_give_the_same_loss() -> None:
    model = VQVAE(config()).eval()
    images = pixels(2, (3, 8, 16))
    assert torch.equal(model(images)[0], model(images.float() / 127.5 - 1)[0])


def test_the_loss_is_distortion_plus_the_commitment_of_every_level() -> None:
    model = VQVAE(config())
    images = floats(2, (3, 8, 16))
    outputs = model.quantize(images)
    loss, parts = model(images)
    torch.testing.assert_close(parts["quantizer_loss"], outputs[0].loss + outputs[1].loss)
    torch.testing.assert_close(loss, parts["distortion"] + parts["quantizer_loss"])


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_every_parameter_is_trained(update: str) -> None:
    model = VQVAE(config(sizes=2, codebook_update=update))
    images = floats(8, (3, 8, 16))
    initialise_codebooks(model, lambda: [images], seed=0)
    model(images)[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    found = {"quantizers.0.codebook", "quantizers.1.codebook"} if update == "gradient" else set()
    assert model.re_estimated_parameters == found


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images \(3, 8, 16\), got \(3, 16, 8\)"):
        VQVAE(config()).encode(torch.zeros(1, 3, 16, 8))


def test_codes_of_another_layout_and_levels_that_are_none_are_refused() -> None:
    model = VQVAE(config()).eval()
    codes = model.encode(floats(2, (3, 8, 16)))
    with pytest.raises(ValueError, match=r"expected code grids \[\(1, 2, 1\), \(2, 4, 1\)\]"):
        model.decode(codes[::-1])
    with pytest.raises(ValueError, match=r"expected levels from 0 to 1, got \[2\]"):
        model.decode(codes, levels=[2])
    with pytest.raises(ValueError, match="expected images"):
        model.draw(torch.zeros(1, 3, 16, 8), torch.zeros(1, dtype=torch.int64))


def test_a_quantizer_of_several_parts_is_re_estimated_from_vectors_that_were_encoded_once() -> None:
    inner = {"name": "vq", "vq": config()["quantizer"]["vq"] | {"codebook_size": 3, "codebook_dim": 4}}
    part = {"groups": 3, "share_codebook": False, "quantizer": inner}
    model = VQVAE(config(strides=[4]) | {"quantizer": {"name": "grouped", "grouped": part}})
    images, asked = floats(6, (3, 8, 16)), []
    initialise_codebooks(model, lambda: [images], seed=0)
    re_estimate_codebooks(model.eval(), lambda: asked.append(1) or images.split(4))
    assert asked == [1]


def test_initialisation_clusters_each_level_with_the_coarser_ones_quantized() -> None:
    model = VQVAE(config())
    images = floats(16, (3, 8, 16))
    initialise_codebooks(model, lambda: images.split(5), seed=0)
    assert model.training
    for level, quantizer in enumerate(model.quantizers):
        vectors = model.vectors(range(level, level + 1), images)
        counts = torch.bincount(quantizer.eval()(vectors).indices.flatten(), minlength=quantizer.codebook_size)
        expected = counts * quantizer.codebook_size / len(vectors)
        torch.testing.assert_close(quantizer.ema_count, expected, atol=0.1, rtol=0.1)


def test_re_estimation_puts_every_code_at_the_mean_of_its_vectors() -> None:
    model = VQVAE(config())
    images = floats(12, (3, 8, 16))
    initialise_codebooks(model, lambda: [images], seed=0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.05)
    model.eval()
    vectors = model.vectors(range(1), images)
    own = model.quantizers[0](vectors).indices.flatten()
    re_estimate_codebooks(model, lambda: images.split(5))
    for code in own.unique():
        torch.testing.assert_close(model.quantizers[0].codebook[code], vectors[own == code].mean(0))
    assert all(not quantizer.gathered for quantizer in model.quantizers)


def test_update_names_each_levels_perplexity_and_their_mean() -> None:
    model = VQVAE(config())
    model(floats(4, (3, 8, 16)))
    found = model.update(0, seed=0)
    assert set(found) == {"perplexity", "perplexity_level_0", "perplexity_level_1"}
    torch.testing.assert_close(found["perplexity"], (found["perplexity_level_0"] + found["perplexity_level_1"]) / 2)
    single = VQVAE(config((1, 8, 8), [2], 6))
    single(floats(4, (1, 8, 8)))
    assert set(single.update(0, seed=0)) == {"perplexity"}


def test_discard_reaches_every_level() -> None:
    model = VQVAE(config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(floats(4, (3, 8, 16)))
    model.discard()
    assert all(not quantizer.gathered for quantizer in model.quantizers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_logistic"])
def test_bf16_autocast_trains_with_a_float32_loss(likelihood: str) -> None:
    model = VQVAE(config(likelihood=likelihood))
    images = floats(4, (3, 8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model(images)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 16), (3, 8, 16)])
@pytest.mark.parametrize("likelihood", options("stage1_vqvae.likelihoods"))
def test_every_likelihood_trains_and_brings_the_image_nearer(params, likelihood: str, shape: tuple) -> None:
    chosen = params({"stage1_vqvae.likelihood.name": likelihood}).stage1_vqvae.likelihood.values()
    model = VQVAE(config(shape) | {"likelihood": chosen})
    images = torch.full((4, *shape), 0.4)  # images of one grey: three steps are enough to lower the loss
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    distortions = []
    for step in range(3):
        loss, parts = model(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update(step, seed=0)
        distortions.append(parts["distortion"].item())
    assert distortions[2] < distortions[0]
    decoded = model.eval().decode(model.encode(images))
    assert decoded.shape == images.shape and decoded.abs().max() <= 1


def test_a_published_model_reads_back_from_its_own_files(tmp_path: Path) -> None:
    shape = (3, 8, 16)
    model = VQVAE(config())
    initialise_codebooks(model, lambda: [floats(8, shape)], seed=0)
    model.likelihood.log_scale.fill_(math.log(0.07))
    model.eval()
    save_model(tmp_path / "vqvae", "vqvae", model.config, model.state_dict(), {"prepared": "p"})
    loaded, manifest = load_vqvae(tmp_path / "vqvae")
    assert not loaded.training and manifest.parents == {"prepared": "p"} and loaded.layout == model.layout
    images = pixels(5, shape)
    codes = model.encode(images.float() / 127.5 - 1)
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(images.float() / 127.5 - 1), codes, strict=True))
    for each in (model, loaded):
        assert torch.equal(each.decode(codes), model.decode(codes))
    nll = [each.likelihood.nll(each.decode_parameters(codes), images) for each in (model, loaded)]
    assert torch.equal(*nll)


def test_a_pickle_in_a_models_place_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "vqvae"
    save_model(folder, "vqvae", config(), VQVAE(config()).state_dict(), {})
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: .*; make it anew with `python -m stage1_vqvae.train"):
        load_vqvae(folder)
