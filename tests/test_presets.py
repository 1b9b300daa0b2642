"""Each preset builds the model it describes, of the size its network has on paper, and takes a training step."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from stage1_vqvae.likelihoods.laplace import Laplace
from stage1_vqvae.model import VQVAE
from stage1_vqvae.task import VQVAETask
from stage2_prior.priors.build import build_prior
from tessera.cli.preset import PRESETS, apply
from tessera.images.prepared import ImageSplit
from tessera.parameters import Params, load, read_yaml
from tessera.training.optimizer import build_optimizer

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != "digits")  # which is params.yaml itself
LARGE = [name for name in NAMES if read_yaml(PRESETS / f"{name}.yaml")["data"]["height"] > 64]


def conv(kernel: int, inputs: int, outputs: int, bias: bool = True) -> int:
    return kernel * kernel * inputs * outputs + outputs * bias


def stack(width: int, hidden: int) -> int:
    return 2 * (conv(3, width, hidden, False) + conv(1, hidden, width, False))


def notebook(width: int, stem: int, hidden: int, dim: int, outputs: int, colours: int = 3) -> int:
    """Parameters of the 2017 network of factor 4: two strided convolutions, 3x3, two residual blocks, 1x1; mirrored."""
    encoder = conv(4, colours, stem) + conv(4, stem, width) + conv(3, width, width) + stack(width, hidden)
    decoder = conv(3, dim, width) + stack(width, hidden) + conv(4, width, stem) + conv(4, stem, outputs)
    return encoder + conv(1, width, dim) + decoder


def block(inputs: int, outputs: int) -> int:
    """A residual block: two norms, two 3x3 convolutions, and a 1x1 convolution where the widths differ."""
    skip = conv(1, inputs, outputs) if inputs != outputs else 0
    return 2 * (inputs + outputs) + conv(3, inputs, outputs) + conv(3, outputs, outputs) + skip


def attention(width: int) -> int:
    return 2 * width + conv(1, width, 3 * width) + conv(1, width, width)


def vqgan(widths: list[int], blocks: int, z: int, dim: int, colours: int = 3) -> int:
    """Parameters of VQGAN's encoder and decoder with attention at the lowest resolution, and both 1x1 convolutions."""
    low, total = widths[-1], conv(3, colours, widths[0]) + conv(1, z, dim) + conv(1, dim, z) + conv(3, z, widths[-1])
    for side, count in (("encoder", blocks), ("decoder", blocks + 1)):
        inputs = widths[0] if side == "encoder" else low
        for width in widths if side == "encoder" else reversed(widths):
            total += block(inputs, width) + (count - 1) * block(width, width)
            inputs = width
        total += count * attention(low) + 2 * block(low, low) + attention(low)
    samplers = sum(conv(3, width, width) for width in [*widths[:-1], *widths[1:]])
    return total + samplers + 2 * low + conv(3, low, z) + 2 * widths[0] + conv(3, widths[0], colours)


# Code grids (height, width, depth, codebook size), coarsest first; parameters of the network, codebooks aside.
EXPECTED: dict[str, tuple[list[tuple[int, int, int, int]], int]] = {
    "cifar10": ([(8, 8, 1, 512)], notebook(128, 64, 32, 64, 3)),
    "fashion_mnist": ([(7, 7, 1, 256)], notebook(128, 64, 32, 64, 1, 1)),
    "zalando_cifar10": ([(8, 8, 1, 512)], notebook(128, 64, 32, 64, 3)),
    "vqvae2017_cifar10": ([(8, 8, 10, 512)], notebook(256, 256, 256, 160, 50)),
    "vqvae2017_imagenet128": ([(32, 32, 1, 512)], notebook(128, 64, 32, 64, 3)),
    "vqvae2_ffhq256": (
        [(32, 32, 1, 512), (64, 64, 1, 512)],
        1_388_867 - 1_280,
    ),  # rosinality's, whose residual blocks have biases, 1,280 in all
    "vqvae2_photographs64": ([(8, 8, 1, 512), (16, 16, 1, 512)], 1_388_867 - 1_280),
    "nakosung_celeba64": ([(16, 16, 1, 256)], notebook(192, 128, 64, 256, 3)),
    "rotation_vqvae_16x16": ([(16, 16, 1, 1024)], 71_764_643),  # the sizes that test_resnet.py counts
    "rotation_vqvae_64x64": ([(64, 64, 1, 8192)], 55_298_206),
    "vqgan_imagenet256": ([(16, 16, 1, 1024)], vqgan([128, 128, 256, 256, 512], 2, 256, 256)),
    "vqgan_photographs64": ([(16, 16, 1, 512)], vqgan([32, 32, 64], 1, 64, 32)),
    "var_imagenet256": (
        [(side, side, 1, 4096) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)],
        vqgan([160, 160, 320, 320, 640], 2, 32, 32) + 4 * conv(3, 32, 32, False),
    ),
    "next_scale_cifar10": (
        [(side, side, 1, 512) for side in (1, 2, 3, 4, 6, 8)],
        notebook(128, 64, 32, 64, 3) + 4 * conv(3, 64, 64, False),
    ),
    "next_scale_photographs64": (
        [(side, side, 1, 512) for side in (1, 2, 3, 4, 6, 8, 11, 16)],
        notebook(128, 64, 32, 64, 3) + 4 * conv(3, 64, 64, False),
    ),
    "roy2018_cifar10": ([(8, 8, 1, 512)], notebook(256, 256, 256, 64, 3)),
}


def preset(name: str, **changes: Any) -> Params:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(shutil.copy(PRESETS / "digits.yaml", folder))
        apply(file, name, changes)
        return load(file)


def config(params: Params) -> dict[str, Any]:
    section = params.stage1_vqvae
    parts = {name: values for name, values in section.model().items() if name != "objective"}
    shape = [params.data.channels, params.data.height, params.data.width]
    return {"image_shape": shape, "data_variance": 0.25, **parts}


def test_the_count_of_vqgan_is_that_of_the_rotation_presets_which_another_test_counts() -> None:
    assert vqgan([128, 128, 256, 256, 512], 2, 256, 32) == EXPECTED["rotation_vqvae_16x16"][1]


def test_vqgans_objective_is_the_published_one() -> None:
    objective = preset("vqgan_imagenet256").stage1_vqvae.objective
    assert set(objective.on) == {"adversarial", "perceptual"} and objective.perceptual.features.name == "vgg16"
    term = objective.adversarial
    assert (term.weight, term.adaptive, term.start_step, term.regulariser.name) == (0.8, True, 250001, "none")
    assert term.discriminator.chosen.values() == {"channels": 64, "layers": 3, "norm": "batch"}


@pytest.mark.parametrize(
    ("name", "commitment", "codebook"), [("vqgan_imagenet256", 1.0, 0.25), ("var_imagenet256", 0.25, 1.0)]
)
def test_a_published_weight_is_one_of_the_absolute_error(name: str, commitment: float, codebook: float) -> None:
    """The pixel loss is divided by the data's standard deviation, 0.5: all weights are, but for the adaptive one."""
    section, images = preset(name).stage1_vqvae, torch.zeros(1, 3, 2, 2)
    assert section.likelihood.name == "laplace"
    factor = Laplace.error(images + 1, images, 0.5**2).item()
    chosen = section.quantizer.chosen
    assert chosen.commitment_cost == commitment * factor and chosen.codebook_cost == codebook * factor
    assert section.objective.perceptual.weight == 1.0 * factor


def test_every_preset_is_expected() -> None:
    assert set(EXPECTED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_grids_and_size_are_those_on_paper(name: str) -> None:
    grids, size = EXPECTED[name]
    with torch.device("meta"):
        model = VQVAE(config(preset(name)))
    assert [(v.height, v.width, v.depth, v.codebook_size) for v in model.layout.levels] == grids
    assert sum(p.numel() for p in model.network.parameters()) == size


@pytest.mark.parametrize("name", NAMES)
def test_the_prior_fits_the_codes(name: str) -> None:
    params = preset(name)
    with torch.device("meta"):
        layout = VQVAE(config(params)).layout
    prior = build_prior({**params.stage2_prior.config(), "layout": layout.to_json(), "num_classes": 10})
    assert prior.trained and prior.layout == layout


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGE])
def test_a_training_step_moves_network_and_codebook(name: str) -> None:
    train_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_training_step_of_a_large_one_moves_network_and_codebook(name: str) -> None:
    """Network and codebook have the published sizes. Images have a quarter of the side, or a step takes a minute."""
    params = preset(name)
    changes: dict[str, Any] = {"data.height": params.data.height // 4, "data.width": params.data.width // 4}
    sides = params.stage1_vqvae.scales.sides
    if sides:
        changes["stage1_vqvae.scales.sides"] = [side for side in sides if side <= sides[-1] // 4]
    train_step(name, **changes)


def train_step(name: str, **changes: Any) -> None:
    """One optimizer step on two images, eager; codes start at one of them, or none would have a reason to move.

    Args:
        name: of the preset.
        changes: of its parameters, by their dotted names.
    """
    training = "stage1_vqvae.training."
    changes |= {training + "batch_size": 2, training + "codebook_images": 1, training + "compile": False}
    params = preset(name, **changes)
    torch.manual_seed(0)
    shape = (params.data.channels, params.data.height, params.data.width)
    images = ImageSplit(torch.randint(256, (2, *shape), dtype=torch.uint8).numpy(), None)
    section = params.stage1_vqvae
    task = VQVAETask(VQVAE(config(params)), images, images, section.training, section.augmentation)
    optimizer = build_optimizer(dict(task.model.named_parameters()), section.training, task.re_estimated)
    task.model.train()
    task.initialise()
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    loss, _ = task.model(**task.batch(0, slice(None)))
    loss.backward()
    optimizer.step()
    task.update(0)
    after = task.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    codebooks = {key for key in before if key.endswith((".codebook", ".embedding"))}
    networks = {key for key in before if key.startswith("network.")}
    assert loss.isfinite() and codebooks <= moved and len(networks & moved) > len(networks) / 2
