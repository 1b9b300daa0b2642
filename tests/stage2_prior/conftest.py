"""Every prior on every kind of tiny layout, with weights far from their start; and codes on disk to train them with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import written_parts
from tiny_codes import LAYOUT
from torch import nn

from stage2_prior.priors.autoregressive import Autoregressive
from stage2_prior.priors.build import build_prior, prior_class
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.publishing import publishing
from tessera.codes.layout import CodeLayout, Level
from tessera.parameters.parts import options

LAYOUTS = {
    "one_level": CodeLayout((1, 8, 8), (Level(2, 2, 1, 4),)),
    "two_levels": CodeLayout((3, 8, 4), (Level(1, 1, 1, 4), Level(2, 1, 1, 2))),
    "deep": CodeLayout((1, 4, 8), (Level(1, 1, 2, 4), Level(1, 2, 1, 2))),
    "depth_4": CodeLayout((1, 4, 8), (Level(1, 2, 4, 2),)),
    "rectangle": CodeLayout((1, 8, 12), (Level(2, 3, 1, 2),)),
    "scales": CodeLayout((1, 4, 8), (Level(1, 1, 1, 2), Level(1, 2, 1, 2), Level(1, 4, 1, 2))),
}
PACKAGE = "stage2_prior.priors"
SIZE = {"layers": 2, "width": 8, "heads": 2, "dropout": 0.1}
# Changes of an option's arguments, by the label of a test case. Every other option has one case, without changes.
CASES_OF: dict[str, dict[str, dict]] = {
    "pixelsnail": {"pixelsnail": {"channels": 1.0, "hidden": 0.75, "residuals": 2, "conditioning_blocks": 1}},
    "rq_transformer": {"rq_transformer": {"depth_layers": 2}},
    "transformer": {name: {"architecture": name} for name in ("gpt2", "llama")},
    "masked": {"masked": {"layers": 1, "width": 16, "bound_draws": 2}},
}
EVERY = {
    label: (name, changes) for name in options(PACKAGE) for label, changes in CASES_OF.get(name, {name: {}}).items()
}
FAMILIES = {label: case for label, case in EVERY.items() if issubclass(prior_class(case[0]), Autoregressive)}
OTHERS: dict[str, tuple[str, dict]] = {label: case for label, case in EVERY.items() if label not in FAMILIES}
OTHERS["sub-tokens"] = ("pixelcnn", {"layers": 1, "largest_softmax": 2})
LEARNED = [label for label, (name, _) in FAMILIES.items() if prior_class(name).trained]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_tokens(layout: CodeLayout, count: int) -> torch.Tensor:
    return (torch.rand(count, layout.num_tokens) * layout.codebook_sizes).long()


class Priors:
    """Builds the priors of the cases above, newly initialised."""

    def __init__(self, prior_arguments: Callable[..., dict[str, Any]]) -> None:
        self.prior_arguments = prior_arguments

    def arguments(self, label: str, **changes: object) -> dict[str, Any]:
        """The arguments of a case's prior. Only arguments that the prior has are changed by SIZE."""
        name, own = EVERY.get(label) or OTHERS[label]
        shared = {key: value for key, value in SIZE.items() if key in self.prior_arguments(name)}
        return self.prior_arguments(name, **{**shared, **own, **changes})

    def fresh(self, label: str, layout: CodeLayout, num_classes: int, **changes: object) -> nn.Module:
        name = (EVERY.get(label) or OTHERS[label])[0]
        params = self.arguments(label, **changes)
        return build_prior({"name": name, "params": params, "layout": layout.to_json(), "num_classes": num_classes})

    def trainable(self, label: str, layout: CodeLayout, num_classes: int, **changes: object) -> nn.Module:
        """A prior that learns, without dropout. A chain has a convolutional link, then a transformer, in turn.

        Args:
            label: of the case.
            layout: of the codes.
            num_classes: number of classes.
            changes: of the prior's arguments, or of those of a chain's links. A prior without an argument ignores it.
        """
        if label != "chain":
            return self.fresh(label, layout, num_classes, dropout=0.0, **self._of(label, changes))
        kinds = itertools.islice(itertools.cycle(["pixelsnail", "gpt2"]), len(layout.levels))
        links = [
            {"name": EVERY[kind][0], "params": self.arguments(kind, dropout=0.0, **self._of(kind, changes))}
            for kind in kinds
        ]
        return self.fresh("chain", layout, num_classes, links=links)

    def _of(self, label: str, changes: dict[str, object]) -> dict[str, object]:
        """Those of `changes` whose names are arguments of a case's prior."""
        return {key: value for key, value in changes.items() if key in self.arguments(label)}

    def stirred(self, label: str, layout: CodeLayout, num_classes: int) -> nn.Module:
        """A prior in evaluation mode whose weights (or counts) are random and large."""
        prior = self.fresh(label, layout, num_classes).eval()
        if not prior.trained:
            labels = torch.randint(num_classes, (40,)) if num_classes else None
            prior.fit([(random_tokens(layout, 40), labels)])
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.normal_(0, 0.5)
        return prior


@pytest.fixture
def priors(prior_arguments: Callable[..., dict[str, Any]]) -> Priors:
    return Priors(prior_arguments)


@pytest.fixture
def make_tokens() -> Callable[[CodeLayout, int], torch.Tensor]:
    return random_tokens


@pytest.fixture
def make_fresh(priors: Priors) -> Callable[..., nn.Module]:
    return priors.fresh


@pytest.fixture
def make_stirred(priors: Priors) -> Callable[..., nn.Module]:
    return priors.stirred


@pytest.fixture
def make_trainable(priors: Priors) -> Callable[..., nn.Module]:
    return priors.trainable


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
def prior(request: pytest.FixtureRequest, priors: Priors) -> nn.Module:
    label, name, num_classes = request.param
    return priors.stirred(label, LAYOUTS[name], num_classes)


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


@pytest.fixture
def write_codes(in_tmp: Path) -> Callable[..., None]:
    """`write_codes(classes=3)`: data/codes of two levels with three passes, and a stand-in for its VQ-VAE."""

    def write(classes: int = 3, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        with publishing(paths.VQVAE, "vqvae", {}) as folder:
            (folder / "config.json").write_text(f"{seed}", encoding="utf-8")
        parents = {"vqvae": read_manifest(paths.VQVAE, "vqvae").identity, "prepared": "p"}
        splits = {"train": [3, 40], "validation": [1, 13], "test": [1, 7]}
        tokens, labels = {}, {}
        for name, (passes, count) in splits.items():
            labels[name] = np.arange(count) % max(1, classes)
            noise = random.integers(0, 2, (passes, count, LAYOUT.num_tokens))
            numbers = np.arange(passes)[:, None, None]
            tokens[name] = (labels[name][:, None] + noise + numbers) % LAYOUT.codebook_sizes.numpy()
        names = tuple(f"class {i}" for i in range(classes)) or None
        with publishing(paths.CODES, "codes", parents) as folder:
            written_parts.write_codes(folder, LAYOUT, names, tokens, labels if classes else {})

    return write
