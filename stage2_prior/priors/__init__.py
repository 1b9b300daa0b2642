"""The priors by name, and how one is built, described and loaded (what each is: `base.Prior`)."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from common.artifacts import Manifest, load_module
from common.codes import CodeLayout
from common.errors import UserError
from stage2_prior.priors.base import Prior
from stage2_prior.priors.chain import Chain
from stage2_prior.priors.masked import Masked
from stage2_prior.priors.pixelcnn import PixelCNN
from stage2_prior.priors.pixelsnail import PixelSNAIL
from stage2_prior.priors.rq_transformer import RQTransformer
from stage2_prior.priors.subtokens import SubTokens, split_layout
from stage2_prior.priors.tables import Counts, Uniform
from stage2_prior.priors.transformer import Transformer

PRIORS: dict[str, type[Prior]] = {
    "uniform": Uniform,
    "counts": Counts,
    "pixelcnn": PixelCNN,
    "pixelsnail": PixelSNAIL,
    "transformer": Transformer,
    "rq_transformer": RQTransformer,
    "masked": Masked,
    "chain": Chain,
}


def build_prior(config: dict[str, Any], first: int = 0) -> Prior:
    """A prior, newly initialised.

    Args:
        config: {"name": key of PRIORS, "params": its keyword arguments, "layout": CodeLayout.to_json(), "num_classes"};
            and "null_label": False for a prior that does not know the null label. `largest_softmax` among the
            arguments: codes of larger codebooks are modelled as sub-tokens.
        first: the first level that it is over, given the coarser ones.

    Raises:
        UserError: an unknown name, or parameters that the prior refuses.
    """
    name = config["name"]
    if name not in PRIORS:
        close = difflib.get_close_matches(str(name), PRIORS, n=1, cutoff=0.0)[0]
        raise UserError(f"stage2_prior.name: unknown prior {name!r}; have {', '.join(PRIORS)}; did you mean `{close}`?")
    layout, params = CodeLayout.from_json(config["layout"]), dict(config["params"])
    largest = params.pop("largest_softmax", None)
    inner_layout = split_layout(layout, largest) if largest else layout
    inner = PRIORS[name](inner_layout, config["num_classes"], first=first, **params)
    prior = inner if inner_layout == layout else SubTokens(layout, inner)
    prior.params = {**config["params"], **inner.settled}
    prior.null_label = config.get("null_label", True)
    return prior


def prior_config(prior: Prior) -> dict[str, Any]:
    """What `build_prior` rebuilds a prior from, as JSON values."""
    family = type(prior.inner if isinstance(prior, SubTokens) else prior)
    name = next(name for name, known in PRIORS.items() if known is family)
    return {
        "name": name,
        "params": prior.params,
        "layout": prior.layout.to_json(),
        "num_classes": prior.num_classes,
        "null_label": prior.null_label,
    }


def load_prior(folder: Path) -> tuple[Prior, Manifest]:
    """A published prior, on the CPU, in evaluation mode, and its manifest.

    Raises:
        UserError: missing or damaged, or its weights do not fit its configuration.
    """
    return load_module(folder, "prior", build_prior)
