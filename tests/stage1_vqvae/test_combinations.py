"""Every quantizer with every gradient estimator and network: built from params, trained, evaluated, loaded again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from stage1_vqvae.model import VQVAE, load_vqvae, planes
from stage1_vqvae.quantizers.build import build_quantizers
from stage1_vqvae.task import VQVAETask
from tessera.artifacts.models import save_model
from tessera.errors import UserError
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit
from tessera.parameters import Params
from tessera.training.optimizer import build_optimizer

NETWORKS = {
    "conv": {"strides": [4], "channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4},
    "two levels": {
        **{"strides": [2, 2], "channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4},
        "shortcut": True,
    },
    "resnet": {
        "channels": 8,
        "multipliers": [1, 1, 2],
        "residual_blocks": 1,
        "attention_factors": [4],
        "z_channels": 8,
        "groups": 4,
    },
    "vit": {"patch": 4, "width": 16, "layers": 1, "heads": 2},
}
VQ = {"codebook_size": 8, "codebook_dim": 4}
BITS = {"bits": 4, "entropy_group_bits": 3}


def inner(base: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    """A section for a quantizer inside another: the outer section of that name with changes."""
    return {"name": name, name: {**base[name], **changes}}


def quantizers(base: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any], bool]]:
    """Label -> (name, changes of its section, whether it takes a gradient estimator)."""
    vq = inner(base, "vq", **VQ)
    return {
        "vq": ("vq", VQ, True),
        "vq gradient": ("vq", {**VQ, "codebook_update": "gradient"}, True),
        "vq cosine": ("vq", {**VQ, "distance": "cosine"}, True),
        "vq projected, entropy": ("vq", {**VQ, "projection_dim": 2, "entropy_bonus": 0.1}, True),
        "residual vq": ("residual", {"depth": 2, "quantizer": vq}, True),
        "residual vq, shared": ("residual", {"depth": 2, "share_codebook": True, "quantizer": vq}, True),
        "residual fsq": ("residual", {"depth": 2, "quantizer": inner(base, "fsq", levels=[4, 3])}, False),
        "residual lfq": ("residual", {"depth": 2, "quantizer": inner(base, "lfq", **BITS)}, False),
        "residual soft_em": ("residual", {"depth": 2, "quantizer": inner(base, "soft_em", **VQ)}, False),
        "residual simvq": ("residual", {"depth": 2, "quantizer": inner(base, "simvq", **VQ)}, True),
        "grouped vq": ("grouped", {"groups": 3, "quantizer": vq}, True),
        "grouped vq, shared": ("grouped", {"groups": 2, "share_codebook": True, "quantizer": vq}, True),
        "grouped gumbel": ("grouped", {"groups": 2, "quantizer": inner(base, "gumbel", **VQ)}, False),
        "grouped ibq": ("grouped", {"groups": 2, "quantizer": inner(base, "ibq", **VQ)}, False),
        "grouped bsq": ("grouped", {"groups": 2, "quantizer": inner(base, "bsq", **BITS)}, False),
        "grouped residual": (
            "grouped",
            {"groups": 2, "quantizer": inner(base, "residual", depth=2, quantizer=vq)},
            True,
        ),
        "soft_em": ("soft_em", VQ, False),
        "gumbel": ("gumbel", VQ, False),
        "gumbel hard": ("gumbel", {**VQ, "hard": True}, False),
        "fsq": ("fsq", {"levels": [4, 3]}, False),
        "lfq": ("lfq", BITS, False),
        "bsq": ("bsq", BITS, False),
        "simvq": ("simvq", VQ, True),
        "ibq": ("ibq", VQ, False),
    }


LABELS = [
    "vq",
    "vq gradient",
    "vq cosine",
    "vq projected, entropy",
    "residual vq",
    "residual vq, shared",
    "residual fsq",
    "residual lfq",
    "residual soft_em",
    "residual simvq",
    "grouped vq",
    "grouped vq, shared",
    "grouped gumbel",
    "grouped ibq",
    "grouped bsq",
    "grouped residual",
    "soft_em",
    "gumbel",
    "gumbel hard",
    "fsq",
    "lfq",
    "bsq",
    "simvq",
    "ibq",
]
ESTIMATED = [label for label in LABELS if "vq" in label or "grouped residual" in label]
ESTIMATORS = ["straight_through", "rotation", "diveq"]
SHAPES = [(1, 8, 12), (3, 12, 8)]


def set_estimator(section: dict[str, Any], estimator: str) -> None:
    """Set the estimator of a section, or of the innermost quantizer in it."""
    while "quantizer" in section:
        section = section["quantizer"][section["quantizer"]["name"]]
    section["gradient_estimator"] = estimator


@pytest.fixture
def build(params: Callable, raw_params: dict[str, Any]) -> Callable[..., tuple[VQVAETask, Params]]:
    """A task on random images, through validated parameters."""

    def make(label: str, estimator: str | None, network: str, shape: tuple[int, int, int], **training: Any):
        stage1 = raw_params["stage1_vqvae"]
        name, changes, _ = quantizers(stage1["quantizer"])[label]
        stage1["quantizer"]["name"] = name
        stage1["quantizer"][name] |= changes
        if estimator:
            set_estimator(stage1["quantizer"][name], estimator)
        kind = "conv" if network == "two levels" else network
        stage1["network"]["name"] = kind
        stage1["network"][kind] |= NETWORKS[network]
        stage1["training"] |= {"batch_size": 8, "codebook_images": 24, "learning_rate": 1e-3, **training}
        raw_params["data"] |= dict(zip(("channels", "height", "width"), shape, strict=True))
        found = params()
        section = found.stage1_vqvae
        torch.manual_seed(0)
        images = torch.randint(256, (24, *shape), dtype=torch.uint8).numpy()
        config = {
            "image_shape": list(shape),
            "data_variance": 0.3,
            "network": section.network.values(),
            "quantizer": section.quantizer.values(),
            "likelihood": section.likelihood.values(),
        }
        split = ImageSplit(images, None)
        return VQVAETask(VQVAE(config), split, split, section.training, section.augmentation), found

    return make


def steps(task: VQVAETask, params: Params, count: int = 3) -> None:
    """Training steps as the trainer takes them."""
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
    """It trains; then its codes are in range and decode to what its forward pass decodes to, to the bit."""
    learned = {name for name, _ in task.model.named_parameters()}
    learned |= {name for name in task.model.state_dict() if name.endswith("codebook")}
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    steps(task, params)
    after = task.model.state_dict()
    still = [name for name in learned if torch.equal(after[name], before[name])]
    assert not [name for name in still if name.startswith("quantizers.")]
    assert len(still) < len(learned) / 4  # FSQ may start with z_q = 0 everywhere, of which some layers learn nothing
    model = task.model.eval()
    images = to_float(task.train.pixels(slice(0, 6)))
    with torch.no_grad():
        outputs = model.quantize(images)
        codes = model.encode(images)
        direct = model.network.decode([planes(output.z_q) for output in outputs])
        assert torch.equal(model.decode_parameters(codes), direct)
        decoded = model.likelihood.loss(direct, images, model.config["data_variance"])
        assert torch.equal(model(images)[1]["distortion"], decoded)
    for level, grid in zip(model.layout.levels, codes, strict=True):
        assert grid.shape[1:] == (level.height, level.width, level.depth)
        assert grid.min() >= 0 and grid.max() < level.codebook_size
    figures = task.validate()
    assert all(isinstance(value, float) and value == value for value in figures.values())
    assert ("quantization_error" in figures) == (model.quantizers[0].code_dim is not None)


@pytest.fixture
def alone(params: Callable, raw_params: dict[str, Any]) -> Callable[[str], torch.nn.Module]:
    """A quantizer without a network."""

    def make(label: str) -> torch.nn.Module:
        section = raw_params["stage1_vqvae"]["quantizer"]
        name, changes, _ = quantizers(section)[label]
        section["name"] = name
        section[name] |= changes
        torch.manual_seed(0)
        return build_quantizers(params().stage1_vqvae.quantizer.values(), 1)[0]

    return make


@pytest.mark.parametrize("label", LABELS)
def test_codes_are_looked_up_as_they_were_found_under_autocast_too(alone, label) -> None:
    quantizer = alone(label).eval()
    z = torch.randn(5, 7, quantizer.dim)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(z)
        found = quantizer.lookup(output.indices)
        drawn = quantizer.draw(z, torch.arange(5)) if quantizer.draws else None
    assert output.z_q.dtype == found.dtype == torch.float32
    assert torch.equal(found, output.z_q) and torch.equal(found, plain.z_q)
    assert torch.equal(found, quantizer.lookup(plain.indices))
    assert drawn is None or torch.equal(drawn, quantizer.draw(z, torch.arange(5)))


@pytest.mark.parametrize("label", LABELS)
def test_one_vector_is_quantized_in_training(alone, label) -> None:
    quantizer = alone(label)
    output = (
        quantizer(torch.randn(quantizer.dim)) if not quantizer.stochastic else quantizer(torch.randn(1, quantizer.dim))
    )
    assert output.loss.shape == () and output.indices.shape[-1] == quantizer.depth
    assert output.z_q.numel() == quantizer.dim


@pytest.mark.parametrize("label", LABELS)
def test_vectors_and_indices_of_another_model_are_refused(alone, label) -> None:
    quantizer = alone(label)
    for width in (1, quantizer.dim + 1):
        with pytest.raises(ValueError, match=rf"expected vectors of width {quantizer.dim}, got \(3, {width}\)"):
            quantizer(torch.randn(3, width))
    indices = torch.zeros(3, quantizer.depth, dtype=torch.int64)
    assert quantizer.lookup(indices).shape == (3, quantizer.dim)
    for wrong in (-1, quantizer.codebook_size):
        indices[1, -1] = wrong
        with pytest.raises(ValueError, match=rf"expected indices below {quantizer.codebook_size}, got .*{wrong}"):
            quantizer.lookup(indices)
    with pytest.raises(ValueError, match=f"expected {quantizer.depth} codes a position"):
        quantizer.lookup(torch.zeros(3, quantizer.depth + 1, dtype=torch.int64))


# Every quantizer, every estimator, every network and both shapes, each with each other at least once.
KINDS = list(NETWORKS)
PAIRS = [
    (label, ESTIMATORS[i % 3], KINDS[i // 3 % 4], SHAPES[i % 2]) for i, label in enumerate([*ESTIMATED, "vq gradient"])
]
PAIRS += [
    (label, None, KINDS[i % 4], SHAPES[(i + i // 4) % 2])
    for i, label in enumerate(label for label in LABELS if label not in ESTIMATED)
]


@pytest.mark.parametrize(("label", "estimator", "network", "shape"), PAIRS)
def test_it_trains_and_its_codes_decode_to_its_forward_pass(build, label, estimator, network, shape) -> None:
    check(*build(label, estimator, network, shape))


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_all_combinations_train_and_decode(build, label) -> None:
    estimators = ESTIMATORS if label in ESTIMATED else [None]
    for estimator, network, shape in product(estimators, NETWORKS, SHAPES):
        check(*build(label, estimator, network, shape))


def test_the_pairs_hold_every_estimator_with_every_network() -> None:
    seen = {(estimator, network) for _, estimator, network, _ in PAIRS if estimator}
    assert seen == set(product(ESTIMATORS, NETWORKS)) and {label for label, *_ in PAIRS} == set(LABELS)
    assert {(network, shape) for _, _, network, shape in PAIRS} == set(product(NETWORKS, SHAPES))


def test_the_list_is_whole(raw_params: dict[str, Any]) -> None:
    known = quantizers(raw_params["stage1_vqvae"]["quantizer"])
    assert list(known) == LABELS and [label for label in LABELS if known[label][2]] == ESTIMATED
    from stage1_vqvae.quantizers import QUANTIZERS, WRAPPERS

    assert {name for name, _, _ in known.values()} == set(QUANTIZERS) | set(WRAPPERS)


@pytest.mark.parametrize("label", ["vq gradient", "residual vq", "grouped gumbel", "lfq", "simvq", "soft_em"])
def test_a_published_model_gives_the_same_codes(build, label: str, tmp_path: Path) -> None:
    task, params = build(label, None, "conv", (3, 12, 8))
    steps(task, params, 2)
    model, images = task.model.eval(), to_float(task.train.pixels(slice(None)))
    save_model(tmp_path / "vqvae", "vqvae", model.config, model.state_dict(), {})
    loaded, _ = load_vqvae(tmp_path / "vqvae")
    with torch.no_grad():
        assert torch.equal(model.encode(images)[0], loaded.encode(images)[0])
        assert torch.equal(model.decode(model.encode(images)), loaded.decode(loaded.encode(images)))


@pytest.mark.parametrize("label", ["vq", "vq cosine", "residual vq", "residual vq, shared", "grouped vq", "soft_em"])
def test_settling_after_the_weights_have_moved_lowers_the_quantization_error(build, label: str) -> None:
    task, params = build(label, None, "conv", (3, 12, 8))
    steps(task, params)
    with torch.no_grad():
        for parameter in task.model.network.parameters():
            parameter *= 1.3
    task.model.eval()
    before = task.validate()["quantization_error_relative"]
    task.re_estimate()
    assert task.validate()["quantization_error_relative"] < before


REFUSED = {
    ("fsq", "gradient_estimator"): ("fsq.gradient_estimator: does not apply, since rounding passes the gradient"),
    ("lfq", "gradient_estimator"): "lfq.gradient_estimator: does not apply, since a sign passes the gradient",
    ("bsq", "gradient_estimator"): "bsq.gradient_estimator: does not apply, since a sign passes the gradient",
    ("gumbel", "gradient_estimator"): "gumbel.gradient_estimator: does not apply, since the gradient goes through",
    ("ibq", "gradient_estimator"): "ibq.gradient_estimator: does not apply, since the gradient goes through",
    ("soft_em", "gradient_estimator"): "soft_em.gradient_estimator: does not apply, since the decoder gets the mean",
}


@pytest.mark.parametrize(("place", "message"), REFUSED.items())
def test_an_estimator_that_does_not_apply_is_refused_with_the_reason(params, place, message) -> None:
    with pytest.raises(UserError, match=message):
        params({f"stage1_vqvae.quantizer.{place[0]}.{place[1]}": "rotation"})


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gumbel", {}, "its codes approximate no vector"),
        ("ibq", {}, "not the nearest"),
        ("bsq", {}, "the residual of a unit vector is no unit vector"),
        ("vq", {"distance": "cosine"}, "the residual of a unit vector is no unit vector"),
        ("vq", {"projection_dim": 2}, "the residual would leave the projection"),
    ],
)
def test_a_residual_that_makes_no_sense_is_refused_with_the_reason(params, raw_params, name, changes, reason) -> None:
    quantizer = inner(raw_params["stage1_vqvae"]["quantizer"], name, **changes)
    with pytest.raises(UserError, match=rf"stage1_vqvae.quantizer.residual: .* quantizer {name}: .*{reason}"):
        params({"stage1_vqvae.quantizer.residual.quantizer": quantizer})


def test_a_codebook_that_nothing_would_train_is_refused(params) -> None:
    vq = "stage1_vqvae.quantizer.vq."
    learned = {vq + "codebook_update": "gradient", vq + "codebook_cost": 0.0}
    with pytest.raises(
        UserError, match=r"quantizer.vq: nothing would train the codes: rotation passes them no gradient"
    ):
        params({**learned, vq + "gradient_estimator": "rotation"})
    params({**learned, vq + "gradient_estimator": "diveq"})
    params({**learned, vq + "entropy_bonus": 0.1})


@pytest.mark.parametrize(
    ("outer", "name", "remedy"),
    [
        ("residual", "residual", "raise depth"),
        ("residual", "grouped", "inside the groups"),
        ("grouped", "grouped", "raise groups"),
    ],
)
def test_a_nesting_that_another_says_better_is_refused_with_that_other(params, outer, name, remedy) -> None:
    with pytest.raises(UserError, match=rf"stage1_vqvae.quantizer.{outer}.quantizer.name: {name} cannot .*{remedy}"):
        params({f"stage1_vqvae.quantizer.{outer}.quantizer.name": name})


def test_the_section_of_the_chosen_inner_quantizer_must_be_there(params) -> None:
    with pytest.raises(UserError, match=r"residual.quantizer: name is fsq, but there is no section `fsq`"):
        params({"stage1_vqvae.quantizer.residual.quantizer.name": "fsq"})


def test_draws_from_a_quantizer_that_draws_nothing_are_refused(params) -> None:
    with pytest.raises(UserError, match=r"extract_codes.draws: 2, .* vq draws no codes"):
        params({"extract_codes.draws": 2})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of dynamo's own making
@pytest.mark.parametrize(
    ("network", "likelihood"), [("conv", "mixture_of_logistics"), ("resnet", "gaussian"), ("vit", "laplace")]
)
def test_a_compiled_step_has_the_loss_and_gradients_of_an_eager_one(build, raw_params, network, likelihood) -> None:
    raw_params["stage1_vqvae"]["likelihood"]["name"] = likelihood
    task, _ = build("vq", None, network, (3, 12, 8))
    task.model.train()
    task.initialise()
    found = []
    for compiled in (False, True):
        if compiled:
            task.compile()
        task.model.zero_grad()
        loss, _ = task.model(**task.batch(0, slice(None)))
        loss.backward()
        task.discard()
        found.append((loss.detach(), [p.grad.clone() for p in task.model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
