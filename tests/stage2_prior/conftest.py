"""Every prior on every kind of tiny layout, with weights far from their start."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from stage2_prior.priors.build import build_prior
from tessera.codes.layout import CodeLayout, Level

LAYOUTS = {
    "one_level": CodeLayout((1, 8, 8), (Level(2, 2, 1, 4),)),
    "two_levels": CodeLayout((3, 8, 4), (Level(1, 1, 1, 4), Level(2, 1, 1, 2))),
    "deep": CodeLayout((1, 4, 8), (Level(1, 1, 2, 4), Level(1, 2, 1, 2))),
    "depth_4": CodeLayout((1, 4, 8), (Level(1, 2, 4, 2),)),
    "rectangle": CodeLayout((1, 8, 12), (Level(2, 3, 1, 2),)),
}
FAMILIES = {
    "uniform": ("uniform", {}),
    "counts": ("counts", {}),
    "pixelcnn": ("pixelcnn", {"layers": 2, "channels": 6, "kernel_size": 3, "dropout": 0.1}),
    "pixelsnail": (
        "pixelsnail",
        {
            "channels": 8,
            "hidden_channels": 6,
            "kernel_size": 3,
            "blocks": 2,
            "residuals": 2,
            "heads": 2,
            "conditioning_blocks": 1,
            "dropout": 0.1,
        },
    ),
    "rq_transformer": (
        "rq_transformer",
        {"layers": 2, "depth_layers": 2, "width": 8, "heads": 2, "dropout": 0.1},
    ),
    "gpt2": ("transformer", {"architecture": "gpt2", "layers": 2, "width": 8, "heads": 2, "dropout": 0.1, "extra": {}}),
    "llama": (
        "transformer",
        {"architecture": "llama", "layers": 2, "width": 8, "heads": 2, "dropout": 0.1, "extra": {}},
    ),
}
OTHERS: dict[str, tuple[str, dict]] = {
    "masked": ("masked", {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "bound_draws": 2}),
    "sub-tokens": (
        "pixelcnn",
        {"layers": 1, "channels": 8, "kernel_size": 3, "dropout": 0.0, "largest_softmax": 2},
    ),
    "chain": ("chain", {}),
}
LEARNED = [name for name in FAMILIES if name not in ("uniform", "counts")]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_tokens(layout: CodeLayout, count: int) -> torch.Tensor:
    return (torch.rand(count, layout.num_tokens) * layout.codebook_sizes).long()


def fresh(family: str, layout: CodeLayout, num_classes: int, **changes: object) -> nn.Module:
    name, params = FAMILIES[family]
    return build_prior(
        {"name": name, "params": {**params, **changes}, "layout": layout.to_json(), "num_classes": num_classes}
    )


def trainable(family: str, layout: CodeLayout, num_classes: int) -> nn.Module:
    """A family that learns, or one of those that are made of others, without dropout."""
    if family in FAMILIES:
        return fresh(family, layout, num_classes, dropout=0.0)
    name, params = OTHERS[family]
    if name == "chain":
        kinds = itertools.cycle([FAMILIES["pixelsnail"], FAMILIES["gpt2"]])
        kinds = [next(kinds) for _ in layout.levels]
        params = {"links": [{"name": name, "params": params | {"dropout": 0.0}} for name, params in kinds]}
    return build_prior({"name": name, "params": params, "layout": layout.to_json(), "num_classes": num_classes})


def stirred(family: str, layout: CodeLayout, num_classes: int) -> nn.Module:
    """A prior in evaluation mode whose weights (or counts) are random and large."""
    prior = fresh(family, layout, num_classes).eval()
    if not prior.trained:
        labels = torch.randint(num_classes, (40,)) if num_classes else None
        prior.fit([(random_tokens(layout, 40), labels)])
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0, 0.5)
    return prior


@pytest.fixture
def make_tokens() -> Callable[[CodeLayout, int], torch.Tensor]:
    return random_tokens


@pytest.fixture
def make_fresh() -> Callable[..., nn.Module]:
    return fresh


@pytest.fixture
def make_stirred() -> Callable[..., nn.Module]:
    return stirred


@pytest.fixture
def make_trainable() -> Callable[..., nn.Module]:
    return trainable


@pytest.fixture(name="trainable", params=[*LEARNED, *OTHERS])
def trainable_family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layout(request: pytest.FixtureRequest) -> CodeLayout:
    return request.param


@pytest.fixture(params=LEARNED)
def learned(request: pytest.FixtureRequest) -> str:
    return request.param


CASES = list(itertools.product(FAMILIES, LAYOUTS, (0, 2)))


@pytest.fixture(params=CASES, ids=[f"{f}-{name}-{c or 'no'}_classes" for f, name, c in CASES])
def prior(request: pytest.FixtureRequest) -> nn.Module:
    family, name, num_classes = request.param
    return stirred(family, LAYOUTS[name], num_classes)


def positions_seen_from(grid: nn.Module, row: int, column: int) -> torch.Tensor:
    """bool (h, w): the positions whose embeddings have a gradient from the logits at one position."""
    level, channels = grid.level, 4
    embeddings = torch.randn(1, level.height, level.width, 1, channels, dtype=torch.float64, requires_grad=True)
    place = torch.randn(1, channels, level.height, level.width, dtype=torch.float64)
    logits = grid(embeddings, place, torch.randn(1, channels, dtype=torch.float64))
    logits[0, row * level.width + column].square().sum().backward()
    return embeddings.grad.abs().sum((0, 3, 4)) > 0


@pytest.fixture
def seen_from() -> Callable[..., torch.Tensor]:
    return positions_seen_from
