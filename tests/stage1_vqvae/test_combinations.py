"""Every quantizer with every estimator and network: built from params.yaml, trained, evaluated and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stage1_vqvae.model import VQVAE, load_vqvae
from stage1_vqvae.quantizers.output import planes
from stage1_vqvae.sharpening import task_of
from stage1_vqvae.task import VQVAETask
from tessera.artifacts.models import save_model
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit
from tessera.parameters import Params
from tessera.training.optimizer import build_optimizer


@pytest.fixture
def build(
    params: Callable, raw_params: dict[str, Any], choose_quantizer: Callable, choose_network: Callable
) -> Callable[..., Any]:
    """A task on random images, through validated parameters."""

    def make(case: str, estimator: str | None, network: str, shape: tuple[int, int, int], **training: Any):
        choose_quantizer(case, estimator)
        choose_network(network)
        raw_params["stage1_vqvae"]["training"] |= {
            "batch_size": 8,
            "codebook_images": 24,
            "learning_rate": 1e-3,
            **training,
        }
        if network == "scales":
            raw_params["stage1_vqvae"]["scales"] |= {"sides": [1, [shape[1] // 4, shape[2] // 4]], "dropout": 0.2}
        raw_params["data"] |= dict(zip(("channels", "height", "width"), shape, strict=True))
        found = params()
        section = found.stage1_vqvae
        torch.manual_seed(0)
        images = torch.randint(256, (24, *shape), dtype=torch.uint8).numpy()
        config = {"image_shape": list(shape), "data_variance": 0.3, **section.model()}
        split = ImageSplit(images, None)
        return VQVAETask(VQVAE(config), split, split, section.training, section.augmentation), found

    return make


def steps(task: VQVAETask, params: Params, count: int = 3) -> None:
    """Takes training steps as the training loop does."""
    optimizer = build_optimizer(dict(task.model.named_parameters()), params.stage1_vqvae.training, task.re_estimated)
    task.model.train()
    task.initialise()
    for step in range(count):
        loss, parts = task.model(**task.batch(step, slice(None)))
        loss.backward()
        assert loss.isfinite(), parts
        without = [name for name, p in task.model.named_parameters() if p.grad is None]
        assert not without, f"no gradient reaches {without}"
        optimizer.step()
        optimizer.zero_grad()
        assert all(value.isfinite() for value in task.update(step).values())


def check(task: VQVAETask, params: Params) -> None:
    """Trains a model. Then its codes must be in range and decode bit for bit to the image of the forward pass."""
    learned = {name for name, _ in task.model.named_parameters()}
    learned |= {name for name in task.model.state_dict() if name.endswith("codebook")}
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    steps(task, params)
    after = task.model.state_dict()
    still = [name for name in learned if torch.equal(after[name], before[name])]
    assert not [name for name in still if name.startswith("quantizers.")]
    assert len(still) < len(learned) / 4  # FSQ may start with z_q = 0 everywhere, and some layers then learn nothing
    model = task.model.eval()
    images = to_float(task.train.pixels(slice(0, 6)))
    with torch.no_grad():
        outputs = model.quantize(images)
        codes = model.encode(images)
        direct = model.network.decode(model.network.decoder_inputs([planes(output.z_q) for output in outputs]))
        assert torch.equal(model.decode_parameters(codes), direct)
        decoded = model.likelihood.loss(direct, images, model.config["data_variance"])
        assert torch.equal(model(images)[1]["distortion"], decoded)
    for level, grid in zip(model.layout.levels, codes, strict=True):
        assert grid.shape[1:] == (level.height, level.width, level.depth)
        assert grid.min() >= 0 and grid.max() < level.codebook_size
    figures = task.validate()
    assert all(isinstance(value, float) and value == value for value in figures.values())
    assert ("quantization_error" in figures) == (model.quantizers[0].code_dim is not None)


def test_it_trains_and_its_codes_decode_to_its_forward_pass(build, training_case) -> None:
    check(*build(*training_case))


@pytest.mark.slow
def test_all_combinations_train_and_decode(build, every_training_case) -> None:
    check(*build(*every_training_case))


@pytest.mark.parametrize("label", ["vq gradient", "residual", "grouped gumbel", "lfq", "simvq", "soft_em"])
def test_a_published_model_gives_the_same_codes(build, label: str, tmp_path: Path) -> None:
    task, params = build(label, None, "conv", (3, 12, 8))
    steps(task, params, 2)
    model, images = task.model.eval(), to_float(task.train.pixels(slice(None)))
    save_model(tmp_path / "vqvae", "vqvae", model.config, model.state_dict(), {})
    loaded, _ = load_vqvae(tmp_path / "vqvae")
    with torch.no_grad():
        assert torch.equal(model.encode(images)[0], loaded.encode(images)[0])
        assert torch.equal(model.decode(model.encode(images)), loaded.decode(loaded.encode(images)))


@pytest.mark.parametrize("label", ["vq", "vq cosine", "residual", "residual, shared", "grouped", "soft_em"])
def test_re_estimation_after_the_weights_have_moved_lowers_the_quantization_error(build, label: str) -> None:
    task, params = build(label, None, "conv", (3, 12, 8))
    steps(task, params)
    with torch.no_grad():
        for parameter in task.model.network.parameters():
            parameter *= 1.3
    task.model.eval()
    before = task.validate()["quantization_error_relative"]
    task.re_estimate()
    assert task.validate()["quantization_error_relative"] < before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which dynamo itself causes
@pytest.mark.parametrize(
    ("network", "likelihood"),
    [
        ("conv", "mixture_of_logistics"),
        ("resnet", "gaussian"),
        ("vit", "laplace"),
        ("scales", "gaussian"),
        ("adaptive conv", "gaussian"),  # with a discriminator whose weight is adaptive
        ("adaptive resnet", "laplace"),
        ("adaptive vit", "gaussian"),
    ],
)
def test_a_compiled_step_has_the_loss_and_gradients_of_an_eager_one(build, raw_params, network, likelihood) -> None:
    raw_params["stage1_vqvae"]["likelihood"]["name"] = likelihood
    adaptive = network.startswith("adaptive ")
    raw_params["stage1_vqvae"]["objective"]["adversarial"] |= {"weight": 0.5 * adaptive, "adaptive": True}
    task, found = build("vq", None, network.removeprefix("adaptive "), (3, 12, 8))
    if adaptive:
        task = task_of(found.stage1_vqvae, task.model, task.train, task.validation)
    task.model.train()
    task.initialise()
    found = []
    for compiled in (False, True):
        if compiled:
            task.compile()
        task.model.zero_grad()
        task.begin(0)
        loss, _ = task.loss(next(iter(task.losses)), task.model, task.batch(0, slice(None)))
        loss.backward()
        task.discard()
        found.append((loss.detach(), [p.grad.clone() for p in task.vqvae.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
