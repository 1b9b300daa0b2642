"""The priors by name, and how one is built, described and loaded.

A prior is built from a `CodeLayout` and a number of classes; the null label is num_classes. It has `forward(tokens,
labels)` (the training loss), `nll(tokens, labels)` (nats a token) and `logits(tokens, labels)` (teacher-forced), and it
decodes by `start(labels)` and `step(state, tokens)`. Where `trained` is False, `fit(batches)` takes training's place.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import nn

from common.artifacts import Manifest, load_module
from common.codes import CodeLayout
from common.errors import UserError
from stage2_prior.priors.pixelcnn import PixelCNN
from stage2_prior.priors.tables import Counts, Uniform
from stage2_prior.priors.transformer import Transformer

PRIORS: dict[str, type[nn.Module]] = {
    "uniform": Uniform,
    "counts": Counts,
    "pixelcnn": PixelCNN,
    "transformer": Transformer,
}


def build_prior(config: dict[str, Any]) -> nn.Module:
    """A prior, newly initialised.

    Args:
        config: {"name": key of PRIORS, "params": its keyword arguments, "layout": CodeLayout.to_json(), "num_classes"}.

    Raises:
        UserError: an unknown name, or parameters that the prior refuses.
    """
    name = config["name"]
    if name not in PRIORS:
        close = difflib.get_close_matches(str(name), PRIORS, n=1, cutoff=0.0)[0]
        raise UserError(f"stage2_prior.name: unknown prior {name!r}; have {', '.join(PRIORS)}; did you mean `{close}`?")
    return PRIORS[name](CodeLayout.from_json(config["layout"]), config["num_classes"], **config["params"])


def prior_config(prior: nn.Module) -> dict[str, Any]:
    """What `build_prior` rebuilds a prior from, as JSON values."""
    name = next(name for name, family in PRIORS.items() if type(prior) is family)
    layout = prior.layout.to_json()
    return {"name": name, "params": prior.params, "layout": layout, "num_classes": prior.num_classes}


def load_prior(folder: Path) -> tuple[nn.Module, Manifest]:
    """A published prior, on the CPU, in evaluation mode, and its manifest.

    Raises:
        UserError: missing or damaged, or its weights do not fit its configuration.
    """
    return load_module(folder, "prior", build_prior)
