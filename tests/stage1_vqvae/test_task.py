"""The task that a VQ-VAE brings to the training loop: its batches, its validation figures, the fitted likelihood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.task import Spread, VQVAETask
from tessera import paths
from tessera.images.augment import augment
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit, open_prepared
from tessera.parameters import Params
from tessera.randomness import generator

pytestmark = pytest.mark.usefixtures("on_the_cpu")
Write = Callable[..., None]


def make_task(params: Params) -> VQVAETask:
    prepared, section = open_prepared(paths.PREPARED), params.stage1_vqvae
    config = section.config(prepared.stats)
    torch.manual_seed(0)
    model = VQVAE(config)
    return VQVAETask(model, prepared["train"], prepared["validation"], section.training, section.augmentation)


@pytest.fixture
def vqvae_task(write_params: Write, write_prepared: Write) -> VQVAETask:
    from tessera.parameters import load

    write_prepared()
    write_params({"stage1_vqvae.augmentation.horizontal_flip": True})
    return make_task(load(Path("params.yaml")))


def test_a_batch_is_the_same_however_it_is_shared(vqvae_task: VQVAETask) -> None:
    for step in (0, 5, 6):
        whole = vqvae_task.batch(step, slice(0, 8))["images"]
        halves = [vqvae_task.batch(step, rows)["images"] for rows in (slice(0, 4), slice(4, 8))]
        assert whole.dtype == torch.uint8 and torch.equal(torch.cat(halves), whole)
        pixels = vqvae_task.train.pixels(vqvae_task.order.batch(step))
        assert torch.equal(augment(pixels, True, 1, generator("augment", 0, step), len(pixels)), whole)


def test_a_process_reads_no_rows_but_its_own(vqvae_task: VQVAETask, monkeypatch: pytest.MonkeyPatch) -> None:
    read, pixels = [], ImageSplit.pixels
    monkeypatch.setattr(ImageSplit, "pixels", lambda self, rows: read.extend(rows.tolist()) or pixels(self, rows))
    vqvae_task.batch(2, slice(4, 6))
    assert read == vqvae_task.order.batch(2)[4:6].tolist()


def test_one_batch_is_learned_by_heart(vqvae_task: VQVAETask) -> None:
    model = vqvae_task.model
    vqvae_task.initialise()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    images = vqvae_task.batch(0, slice(0, 8))["images"]
    losses = []
    for step in range(150):
        loss, _ = model(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        vqvae_task.update(step)
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0] and losses[-1] < 0.1


def test_validation_figures_are_those_of_the_whole_split(vqvae_task: VQVAETask) -> None:
    vqvae_task.initialise()
    model = vqvae_task.model.eval()
    found = vqvae_task.validate()
    images = to_float(vqvae_task.validation.pixels(slice(None)))
    with torch.no_grad():
        codes = model.encode(images)
        decoded = model.decode_parameters(codes)
    distortion = (decoded - images).square().mean().item() / 0.3
    shares = torch.bincount(codes[0].flatten(), minlength=8).double() / codes[0].numel()
    entropy = -sum(p * np.log(p) for p in shares.tolist() if p)
    assert found["distortion"] == pytest.approx(distortion, rel=1e-5)
    assert found["nmse"] == pytest.approx((decoded.clamp(-1, 1) - images).square().mean().item() / 0.3, rel=1e-5)
    target, code = model.quantize(images)[0][3:]
    error = (target - code).square().mean().item()
    variance = target.flatten(0, -2).var(0, correction=0).mean().item()
    assert found["quantization_error"] == pytest.approx(error, rel=1e-5) and error > 0
    assert found["quantization_error_relative"] == pytest.approx(error / variance, rel=1e-4)
    assert found["codebook_usage"] == (shares > 0).double().mean().item()
    assert found["perplexity"] == pytest.approx(np.exp(entropy))


@pytest.mark.parametrize(("spread", "expected"), [(0.0, 1.0), (2**-6, 0.25)])
def test_the_relative_error_is_exact_far_from_the_origin_and_finite_without_variance(spread, expected) -> None:
    target = 1000 + torch.tensor([[1.0], [-1.0]]).repeat(50, 1) * spread
    sums = Spread(1)
    indices = torch.zeros(100, 1, dtype=torch.int64)
    sums.add(QuantizerOutput(target, indices, torch.zeros(()), target, target - spread / 2))
    assert sums.figures(torch.device("cpu"))["quantization_error_relative"] == pytest.approx(expected, rel=1e-5)


def test_validation_fits_the_likelihood_and_leaves_the_rest_as_it_was(vqvae_task: VQVAETask) -> None:
    vqvae_task.initialise()
    model = vqvae_task.model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = vqvae_task.validate()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"likelihood.log_scale"}
    pixels = vqvae_task.validation.pixels(slice(None))
    with torch.no_grad():
        parameters = model.decode_parameters(model.encode(to_float(pixels)))
    bits = model.likelihood.log_prob(parameters, pixels).mean().item() / -np.log(2)
    assert found["bits_per_dim_distortion"] == pytest.approx(bits, rel=1e-6)


def test_the_fitted_scale_is_the_best_for_training_images(vqvae_task: VQVAETask) -> None:
    vqvae_task.initialise()
    model = vqvae_task.model.eval()
    vqvae_task.fit_likelihood()
    pixels = vqvae_task.train.pixels(slice(None))
    with torch.no_grad():
        parameters = model.decode_parameters(model.encode(to_float(pixels)))
        best = model.likelihood.log_scale.clone()
        nll = []
        for delta in (-0.05, 0.0, 0.05):
            model.likelihood.log_scale.copy_(best + delta)
            nll.append(model.likelihood.nll(parameters, pixels).sum().item())
    assert nll[1] == min(nll)
