"""Refinement: no image's codes get worse, images do not touch each other, and codes come close to the best of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stage1_vqvae import extract
from stage1_vqvae.codebooks import initialise_codebooks
from stage1_vqvae.extract import Pass
from stage1_vqvae.likelihoods.build import PACKAGE
from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizers.vq import VectorQuantizer
from stage1_vqvae.refined_codes import NoGradient, refine, refined_together
from tessera import footprint
from tessera.errors import UserError
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit
from tessera.parameters.parts import options

SHAPE = (3, 8, 12)
AS_IT_IS = Pass()
Build = Callable[..., VQVAE]


@pytest.fixture
def build(params: Callable, raw_params: dict[str, Any], choose_quantizer: Callable, choose_network: Callable) -> Build:
    """`build("residual fsq", "two levels", likelihood="laplace")`: a small model whose decoder depends on its codes."""

    def make(
        case: str = "vq", network: str = "conv", shape: tuple[int, int, int] = SHAPE, likelihood: str = "gaussian"
    ) -> VQVAE:
        choose_quantizer(case)
        choose_network(network)
        raw_params["stage1_vqvae"]["likelihood"]["name"] = likelihood
        section = params().stage1_vqvae
        torch.manual_seed(0)
        model = VQVAE({"image_shape": list(shape), "data_variance": 0.3, **section.model()})
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter *= 1.5  # or z and the decoded images would hardly differ from image to image
            initialise_codebooks(model, lambda: [to_float(pixels(40, shape))], seed=0)
        return model.eval()

    return make


def pixels(count: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check(model: VQVAE, images: torch.Tensor, steps: int = 12, rate: float = 0.1) -> None:
    """Refined codes must be codes of the model, with the distortion that is told, and better ones for some images."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, codes = refine(model, images, steps, rate), model.encode(to_float(images))
    own = model.likelihood.nll(model.decode_parameters(codes), images)
    assert torch.equal(found.before, own)
    assert torch.equal(found.after, model.likelihood.nll(model.decode_parameters(found.codes), images))
    assert (found.after <= found.before).all() and (found.after < found.before).any()
    different = model.layout.flatten(found.codes) != model.layout.flatten(codes)
    assert torch.equal(found.changed, different.sum(1)) and found.changed.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_codes_of_every_quantizer_are_improved_and_never_made_worse(build: Build, quantizer_case: str) -> None:
    check(build(quantizer_case), pixels(6))


@pytest.mark.parametrize("network", ["resnet", "vit", "two levels"])
def test_codes_of_every_network_and_of_all_levels_are_improved(build: Build, network: str) -> None:
    model = build("vq", network)
    check(model, pixels(6))
    found = refine(model, pixels(6), 12, 0.1).codes
    with torch.no_grad():
        codes = model.encode(to_float(pixels(6)))
    assert all((new != old).any() for new, old in zip(found, codes, strict=True))


@pytest.mark.parametrize("likelihood", list(options(PACKAGE)))
def test_codes_are_improved_under_every_likelihood(build: Build, likelihood: str) -> None:
    images = pixels(6)
    images[:, :, :2], images[:, :, 2:4] = 0, 255  # whose intervals are infinite
    check(build("fsq", likelihood=likelihood), images)


def test_no_steps_are_the_encoders_codes(build: Build) -> None:
    model, images = build("vq", "two levels"), pixels(4)
    found = refine(model, images, 0)
    with torch.no_grad():
        codes = model.encode(to_float(images))
    assert all(torch.equal(new, old) for new, old in zip(found.codes, codes, strict=True))
    assert torch.equal(found.before, found.after) and not found.changed.any()


@pytest.mark.parametrize("case", ["vq", "fsq", "lfq", "gumbel"])
def test_refined_codes_come_close_to_the_best_of_all_codes(build: Build, case: str) -> None:
    """An image of a single code: every code can be tried."""
    shape = (1, 4, 4)
    model, images = build(case, shape=shape), pixels(40, shape)
    found, size = refine(model, images, 60, 0.1), model.layout.levels[0].codebook_size
    with torch.no_grad():
        grids = torch.arange(size).view(size, 1, 1, 1)
        parameters = model.decode_parameters([grids])
        every = [model.likelihood.nll(parameters, image.expand(size, *shape)) for image in images]
    best = torch.stack(every).amin(1)
    assert (found.after >= best - 1e-6 * best.abs()).all()
    assert (found.after - best).mean() < 0.6 * (found.before - best).mean()


def test_other_images_of_the_batch_change_nothing(build: Build) -> None:
    model, images = build("residual", "two levels"), pixels(5)
    found = refine(model, images, 8)
    others = 255 - images
    others[2] = images[2]
    again = refine(model, others, 8)
    assert all(torch.equal(new[2], old[2]) for new, old in zip(again.codes, found.codes, strict=True))
    assert again.after[2] == found.after[2] and (again.after[:2] != found.after[:2]).all()


@torch.no_grad()
def extracted(model: VQVAE, count: int, steps: int, change: Pass = AS_IT_IS) -> torch.Tensor:
    """The tokens of the first `count` images as extraction writes them, in batches of 8."""
    split = ImageSplit(pixels(10).numpy()[:count], None)
    return torch.cat(list(extract.encode(model, split, change, slice(0, count), 8, torch.device("cpu"), steps)))


def test_an_image_has_the_same_refined_codes_alone_as_among_others(build: Build) -> None:
    model = build("residual", "two levels")
    ten = extracted(model, 10, 8)
    assert len(ten) == 10 and not torch.equal(ten, extracted(model, 10, 0))
    assert all(torch.equal(extracted(model, count, 8), ten[:count]) for count in (1, 5, 9))


def test_drawn_codes_are_not_refined(build: Build) -> None:
    model = build("soft_em")
    for change, same in ((Pass(draw=1), True), (AS_IT_IS, False)):
        assert torch.equal(extracted(model, 9, 0, change), extracted(model, 9, 8, change)) == same


def test_a_quantizer_without_a_gradient_for_z_is_refused_in_one_line(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("vq gradient")
    monkeypatch.setattr(VectorQuantizer, "apply_estimator", lambda self, target, code, seeds: code)
    with pytest.raises(NoGradient, match="passes no gradient to z"):
        refine(model, pixels(2), 1)
    expected = (
        "extract_codes.refine: 2, but stage1_vqvae.quantizer vq passes no gradient to z in evaluation, so its codes "
        "cannot be refined; set it to 0"
    )
    with pytest.raises(UserError) as error:
        extract.images_at_once(model, 64, 2)
    assert str(error.value) == expected
    assert extract.images_at_once(model, 64, 0) == 64


def test_what_a_step_keeps_in_memory_bounds_the_batch(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    assert refined_together(model, 64) == 64 and refined_together(model, 20) == 16
    blank = torch.zeros(1, *SHAPE)
    monkeypatch.setattr(footprint, "BATCH_BYTES", 2**20)
    encoded = footprint.images_together(model, lambda: model.encode(blank), 64)
    assert refined_together(model, 64) < encoded
