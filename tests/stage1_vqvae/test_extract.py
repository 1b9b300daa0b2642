"""Extraction: every image once, in order, in each of its passes; and the figures of the codes."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from stage1_vqvae import extract
from stage1_vqvae.code_figures import histogram
from stage1_vqvae.model import VQVAE, load_vqvae
from stage1_vqvae.parameters import ExtractParams
from stage1_vqvae.quantizers.output import planes
from tessera import paths
from tessera.codes.store import open_codes
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit, open_prepared

pytestmark = pytest.mark.usefixtures("on_the_cpu")
Write = Callable[..., None]


@torch.no_grad()
def encoded(model: VQVAE, split: ImageSplit, change: extract.Pass) -> torch.Tensor:
    """The tokens of a whole split."""
    return torch.cat(list(extract.encode(model, split, change, slice(0, len(split)), 64, torch.device("cpu"))))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("distance", [0, 1, 2])
def test_passes_are_every_shift_mirrored_or_not_with_the_image_as_it_is_first(flip: bool, distance: int) -> None:
    found = extract.passes(ExtractParams(refine=0, horizontal_flip=flip, shift=distance, draws=2))
    assert found[0] == extract.Pass()
    offsets, flips = range(-distance, distance + 1), (False, True)[: 1 + flip]
    expected = {extract.Pass(mirrored, d, r) for mirrored in flips for d in offsets for r in offsets}
    assert set(found[:-2]) == expected and len(found[:-2]) == (2 * distance + 1) ** 2 * (1 + flip)
    assert found[-2:] == [extract.Pass(draw=1), extract.Pass(draw=2)]


def changed(pixels: np.ndarray, change: extract.Pass) -> np.ndarray:
    """The mirrored and shifted images, by padding with the edge and cutting."""
    down, right = change.down, change.right
    pixels = pixels[..., ::-1] if change.flip else pixels
    padded = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    height, width = pixels.shape[-2:]
    return padded[:, :, 2 - down : 2 - down + height, 2 - right : 2 - right + width]


@pytest.mark.parametrize(("sizes", "strides"), [([20], [4]), ([8, 20], [4, 2])])
def test_the_codes_are_the_models_own_image_by_image(trained: Callable, sizes: list[int], strides: list[int]) -> None:
    trained(sizes, strides)
    assert extract.main([]) == 0
    codes, prepared = open_codes(paths.CODES), open_prepared(paths.PREPARED)
    model, manifest = load_vqvae(paths.VQVAE)
    assert codes.layout == model.layout and codes.classes == ("class 0", "class 1", "class 2")
    assert codes.manifest.parents == {"vqvae": manifest.identity, "prepared": prepared.manifest.identity}
    changes = extract.passes(ExtractParams(refine=0, horizontal_flip=True, shift=1, draws=0))
    for name, split in prepared.splits.items():
        expected_changes = changes if name == "train" else [extract.Pass()]
        assert (codes[name].passes, len(codes[name])) == (len(expected_changes), len(split))
        np.testing.assert_array_equal(codes[name].labels, split.labels)
        for index, change in enumerate(expected_changes):
            pixels = torch.from_numpy(changed(np.array(split.images), change).copy())
            with torch.no_grad():
                expected = model.layout.flatten(model.encode(to_float(pixels)))
            different = codes[name].rows(slice(None), index) != expected  # in a batch of this size: all but exact ties
            assert different.sum() <= 0.01 * different.numel()


@pytest.mark.parametrize(("size", "dtype"), [(8, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_codes_take_the_smallest_type_that_holds_them(trained: Callable, size: int, dtype: type) -> None:
    trained([size], [4])
    assert extract.main([]) == 0
    assert open_codes(paths.CODES)["train"].tokens.dtype == dtype


def test_drawn_passes_are_each_images_own_and_differ_from_the_best_codes(trained: Callable) -> None:
    soft = {f"stage1_vqvae.quantizer.soft_em.{k}": v for k, v in {"codebook_size": 20, "codebook_dim": 4}.items()}
    changes = {"stage1_vqvae.quantizer.name": "soft_em", "extract_codes.draws": 2, **soft}
    trained([20], [4], changes=changes)
    assert extract.main([]) == 0
    codes, split = open_codes(paths.CODES), open_prepared(paths.PREPARED)["train"]
    passes = codes["train"].tokens[-2:]
    assert codes["validation"].passes == 1
    assert (passes[0] != codes["train"].tokens[0]).any() and (passes[0] != passes[1]).any()
    alone = encoded(load_vqvae(paths.VQVAE)[0], ImageSplit(split.images[:7], None), extract.Pass(draw=2))
    np.testing.assert_array_equal(alone.numpy(), passes[1][:7])


def test_an_images_codes_do_not_depend_on_the_images_after_it(trained: Callable, write_prepared: Write) -> None:
    trained([8, 20], [4, 2])
    model = load_vqvae(paths.VQVAE)[0]
    split, found = open_prepared(paths.PREPARED)["train"], []
    for count in (50, 23, 1):
        tokens = encoded(model, ImageSplit(split.images[:count], None), extract.Pass(True, 1, 0))
        assert len(tokens) == count
        found.append(tokens)
    assert torch.equal(found[0][:23], found[1]) and torch.equal(found[0][:1], found[2])


def test_unlabelled_images_give_unlabelled_codes(trained: Callable) -> None:
    trained([8], [4], classes=0)
    assert extract.main([]) == 0
    codes = open_codes(paths.CODES)
    assert codes.classes is None and codes["train"].labels is None and codes.num_classes == 0


def test_codes_drawn_on_two_levels_are_the_finer_ones_for_the_drawn_coarser_ones(
    trained: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = {f"stage1_vqvae.quantizer.soft_em.{k}": v for k, v in {"codebook_size": 9, "codebook_dim": 4}.items()}
    trained([9], [4, 2], changes={"stage1_vqvae.quantizer.name": "soft_em", **soft})
    model, split = load_vqvae(paths.VQVAE)[0], open_prepared(paths.PREPARED)["train"]
    images, seeds = to_float(split.pixels(slice(0, 40))), torch.arange(40)
    coarse_quantizer, fine_quantizer = model.quantizers
    coarse_quantizer.hard.codebook.mul_(20)  # codes that matter to the finer level
    random = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        coarse_quantizer, "draw_indices", lambda z, _: torch.randint(9, (*z.shape[:-1], 1), generator=random)
    )
    monkeypatch.setattr(fine_quantizer, "draw_indices", lambda z, _: fine_quantizer.hard.quantize(z).indices)

    def finest(codes: torch.Tensor) -> torch.Tensor:
        """The nearest fine codes for coarse ones."""
        context = model.network.context(0, planes(coarse_quantizer.lookup(codes)), None)
        z = model.network.latent(1, model.network.encode(images)[1], context)
        return fine_quantizer(z.permute(0, 2, 3, 1)).indices

    with torch.no_grad():
        coarse, fine = model.draw(images, seeds)
        assert torch.equal(fine, finest(coarse))
        assert not torch.equal(fine, finest(model.encode(images)[0]))


@pytest.mark.parametrize("size", [3, 1000])
def test_the_histogram_has_shares_from_the_most_used_code_to_the_least(size: int) -> None:
    counts = torch.zeros(2, size, dtype=torch.int64)
    counts[0, 0], counts[0, 2], counts[1, 1] = 6, 2, 5
    rows = histogram([torch.ones(1, 4, dtype=torch.int64), counts])
    assert [row["share"] for row in rows[:4]] == [1.0] * 4 and [row["rank"] for row in rows[:4]] == [0.25, 0.5, 0.75, 1]
    first, second = ([row for row in rows if (row["level"], row["depth"]) == (1, depth)] for depth in (0, 1))
    assert len(first) == len(second) == min(size, 512)
    assert first[0]["share"] == pytest.approx(0.75 * size) and second[0]["share"] == pytest.approx(size)
    assert second[1]["share"] == 0 and [first[-1]["rank"], second[-1]["rank"]] == [1, 1]
    if size == 3:
        assert [row["share"] for row in first] == pytest.approx([2.25, 0.75, 0])


def test_figures_are_of_the_images_as_they_are(trained: Callable) -> None:
    trained([8, 20], [4, 2])
    assert extract.main([]) == 0
    codes = open_codes(paths.CODES)
    figures = json.loads((extract.RESULTS / "metrics.json").read_text())
    assert set(figures) == {"train", "validation"}  # test is measured by `evaluate`, once
    for name in figures:
        for level, grid in enumerate(codes.layout.unflatten(codes[name].rows(slice(None)))):
            shares = torch.bincount(grid.flatten(), minlength=[8, 20][level]) / grid.numel()
            entropy = -sum(p * np.log(p) for p in shares.tolist() if p)
            assert figures[name]["codebook_usage"][level] == pytest.approx((shares > 0).float().mean().item())
            assert figures[name]["perplexity"][level] == pytest.approx(np.exp(entropy), rel=1e-5)


def test_refined_codes_are_no_worse_in_any_pass_and_the_figures_say_by_how_much(trained: Callable) -> None:
    trained([8, 20], [4, 2], changes={"extract_codes.refine": 6, "extract_codes.shift": 0})
    assert extract.main([]) == 0
    codes, prepared, (model, _) = open_codes(paths.CODES), open_prepared(paths.PREPARED), load_vqvae(paths.VQVAE)
    figures = json.loads((extract.RESULTS / "metrics.json").read_text())
    changes = extract.passes(ExtractParams(refine=6, horizontal_flip=True, shift=0, draws=0))
    for name, split in prepared.splits.items():
        for index in range(codes[name].passes):
            pixels = torch.from_numpy(changed(np.array(split.images), changes[index]).copy())
            tokens, own = codes[name].rows(slice(None), index), encoded(model, split, changes[index])
            grids = (model.layout.unflatten(each) for each in (tokens, own))
            with torch.no_grad():
                after, before = (model.likelihood.nll(model.decode_parameters(grid), pixels) for grid in grids)
            assert (after <= before * (1 + 1e-6)).all() and (after < before).any()
            if index == 0 and name != "test":
                told = {
                    "bits_per_dim_distortion": model.layout.bits_per_dim(after.mean().item()),
                    "bits_per_dim_distortion_of_the_encoder": model.layout.bits_per_dim(before.mean().item()),
                    "tokens_changed": (tokens != own).float().mean().item(),
                }
                assert {figure: figures[name][figure] for figure in told} == pytest.approx(told, rel=1e-6)
    assert set(figures) == {"train", "validation"} and not list(paths.CODES.rglob("gains*"))
