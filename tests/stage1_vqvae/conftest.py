"""The cases that tests go over: every quantizer and network, found as options, and variants; a tiny trained VQ-VAE."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from stage1_vqvae import train
from stage1_vqvae.networks.build import PACKAGE as NETWORK_PACKAGE
from stage1_vqvae.quantizers import grouped, residual
from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.build import build_quantizer
from stage1_vqvae.quantizers.gradients import GRADIENT_ESTIMATORS
from stage1_vqvae.quantizers.sections import PACKAGE, WrapperParams
from stage1_vqvae.quantizers.vq import VectorQuantizer
from tessera.parameters import Params
from tessera.parameters.parts import options, parameters_of

Write = Callable[..., None]
Case = tuple[str, dict[str, Any]]  # an option's name, and changes of its section in params.yaml

SMALL: dict[str, dict[str, Any]] = {  # changes that make an option small, where it does not use the shared sizes
    "fsq": {"levels": [4, 3]},
    "lfq": {"bits": 4, "entropy_group_bits": 3},
    "bsq": {"bits": 4, "entropy_group_bits": 3},
    "residual": {"depth": 2, "quantizer": {"name": "vq"}},
    "grouped": {"groups": 3, "quantizer": {"name": "vq"}},
}


def wraps(name: str) -> bool:
    """Whether an option has another quantizer inside."""
    return issubclass(parameters_of(PACKAGE, name), WrapperParams)


def fits_residual(name: str) -> bool:
    """Whether a residual quantizer may have this option inside, with the values of params.yaml."""
    return name not in residual.REFUSED and not isinstance(parameters_of(PACKAGE, name).no_residual, str)


def all_cases() -> dict[str, Case]:
    """Every option alone, every option inside the two wrappers that take it, and variants of single options."""
    names = list(options(PACKAGE))
    found: dict[str, Case] = {name: (name, {}) for name in names}
    found |= {f"residual {n}": ("residual", {"quantizer": {"name": n}}) for n in names if fits_residual(n)}
    found |= {f"grouped {n}": ("grouped", {"quantizer": {"name": n}}) for n in names if n not in grouped.REFUSED}
    del found["residual vq"], found["grouped vq"]  # the same as the wrapper alone
    return found | {
        "vq gradient": ("vq", {"codebook_update": "gradient"}),
        "vq cosine": ("vq", {"distance": "cosine"}),
        "vq projected, entropy": ("vq", {"projection_dim": 2, "entropy_bonus": 0.1}),
        "residual, shared": ("residual", {"share_codebook": True}),
        "grouped, shared": ("grouped", {"share_codebook": True}),
        "gumbel hard": ("gumbel", {"hard": True}),
    }


CASES = all_cases()


def innermost(case: str) -> str:
    """The name of the option that makes the codes."""
    name, changes = CASES[case]
    while wraps(name):
        changes = SMALL[name] | changes
        name, changes = changes["quantizer"]["name"], {}
    return name


def takes_estimator(case: str) -> bool:
    """Whether `gradient_estimator` is a parameter of the quantizer that makes the codes."""
    return "gradient_estimator" in parameters_of(PACKAGE, innermost(case)).model_fields


def approximates(case: str) -> bool:
    """Whether the codes of a case approximate vectors, so that they can be those of scales."""
    return parameters_of(PACKAGE, innermost(case)).approximates


CONV = {"channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4}
SMALL_NETWORKS: dict[str, dict[str, Any]] = {  # changes that make a network small; every shape below must suit it
    "conv": CONV | {"strides": [4]},
    "resnet": {
        "channels": 8,
        "multipliers": [1, 2],
        "residual_blocks": 1,
        "attention_factors": [2],
        "z_channels": 8,
        "groups": 4,
    },
    "vit": {"patch": 4, "width": 16, "layers": 1, "heads": 2},
}
NETWORKS: dict[str, Case] = {name: (name, SMALL_NETWORKS.get(name, {})) for name in options(NETWORK_PACKAGE)}
SCALED = "scales"  # a network of one level, whose codes have scales of 1x1 and of its own grid
NETWORKS |= {"two levels": ("conv", CONV | {"strides": [2, 2], "shortcut": True})}
SHAPES = [(1, 8, 12), (3, 12, 8)]
ESTIMATED = [case for case in CASES if takes_estimator(case)]
OTHERS = [case for case in CASES if case not in ESTIMATED]
TrainingCase = tuple[str, str | None, str, tuple[int, int, int]]  # a case of CASES, an estimator, a network, a shape


def training_cases() -> list[TrainingCase]:
    """Every quantizer at least once, every estimator with every network, and every network with both shapes."""
    found: list[TrainingCase] = []
    combinations = list(product(GRADIENT_ESTIMATORS, NETWORKS))
    for i in range(max(len(ESTIMATED), len(combinations))):
        estimator, network = combinations[i % len(combinations)]
        found.append((ESTIMATED[i % len(ESTIMATED)], estimator, network, SHAPES[(i + i // len(NETWORKS)) % 2]))
    networks = list(NETWORKS)
    for i, case in enumerate(OTHERS):
        found.append((case, None, networks[i % len(networks)], SHAPES[(i + i // len(networks)) % 2]))
    for i, case in enumerate(filter(approximates, CASES)):
        estimator = list(GRADIENT_ESTIMATORS)[i % len(GRADIENT_ESTIMATORS)] if case in ESTIMATED else None
        found.append((case, estimator, SCALED, SHAPES[i % 2]))
    return found


def every_training_case() -> list[TrainingCase]:
    """Every quantizer with every estimator that it takes, every network and both shapes."""
    estimated = list(product(ESTIMATED, GRADIENT_ESTIMATORS, NETWORKS, SHAPES))
    every = estimated + list(product(OTHERS, [None], NETWORKS, SHAPES))
    return every + [(c, e, SCALED, shape) for c, e, n, shape in every if n == "conv" and approximates(c)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with one of these arguments runs for each of its cases."""
    if "quantizer_case" in metafunc.fixturenames:
        metafunc.parametrize("quantizer_case", list(CASES))
    for argument, cases in (("training_case", training_cases), ("every_training_case", every_training_case)):
        if argument in metafunc.fixturenames:
            found = cases()
            metafunc.parametrize(argument, found, ids=[", ".join(map(str, case)) for case in found])


@pytest.fixture
def choose_network(raw_params: dict[str, Any]) -> Callable[[str], None]:
    """`choose_network("two levels")` chooses a small network in the raw parameters."""

    def choose(network: str) -> None:
        name, changes = NETWORKS["conv" if network == SCALED else network]
        raw_params["stage1_vqvae"]["network"]["name"] = name
        raw_params["stage1_vqvae"]["network"][name] |= changes

    return choose


@pytest.fixture
def choose_quantizer(raw_params: dict[str, Any]) -> Callable[..., None]:
    """`choose_quantizer("residual fsq", "rotation")` chooses a small quantizer in the raw parameters."""

    def choose(case: str, estimator: str | None = None) -> None:
        name, changes = CASES[case]
        section = raw_params["stage1_vqvae"]["quantizer"]
        section |= {"name": name, "codebook_size": 8, "codebook_dim": 4}
        for option in options(PACKAGE):
            section[option] |= SMALL.get(option, {})
            if estimator:
                section[option].pop("gradient_estimator", None)
        section[name] |= changes
        if estimator:
            section["gradient_estimator"] = estimator

    return choose


@pytest.fixture
def build_alone(params: Callable[..., Params], choose_quantizer: Callable[..., None]) -> Callable[[str], Quantizer]:
    """`build_alone("vq cosine")`: a quantizer without a network."""

    def build(case: str) -> Quantizer:
        choose_quantizer(case)
        torch.manual_seed(0)
        return build_quantizer(params().stage1_vqvae.quantizer.values())

    return build


@pytest.fixture
def make_vq(params: Callable[..., Params]) -> Callable[..., VectorQuantizer]:
    """`make_vq(distance="cosine")`: a small vector quantizer with the other values of params.yaml, and no revival."""
    torch.manual_seed(0)
    values = params().stage1_vqvae.quantizer.vq.values()
    values |= {"codebook_size": 8, "codebook_dim": 4, "ema_decay": 0.9, "start": "normal"}
    values |= {"diveq_variance": 0.0, "revival_threshold": 0.0}
    return lambda **changes: VectorQuantizer(**values | changes)


@pytest.fixture
def trained(write_params: Write, write_prepared: Write) -> Callable[..., None]:
    """A tiny trained VQ-VAE with codebooks of the given sizes, its prepared images and params.yaml."""

    def make(
        sizes: list[int],
        strides: list[int],
        shape: tuple[int, int, int] = (3, 8, 16),
        classes: int = 3,
        changes: dict | None = None,
    ) -> None:
        write_prepared(shape, classes)
        write_params(
            {
                "data.channels": shape[0],
                "data.height": shape[1],
                "data.width": shape[2],
                "stage1_vqvae.network.conv.strides": strides,
                "stage1_vqvae.quantizer.vq.codebook_size": sizes,
                "stage1_vqvae.training.steps": 3,
                "extract_codes.horizontal_flip": True,
                "extract_codes.shift": 1,
                **(changes or {}),
            }
        )
        assert train.main([]) == 0

    return make
