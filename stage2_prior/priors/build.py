"""Builds priors by the names of their options, and loads published ones."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from stage2_prior.priors.base import Prior
from stage2_prior.priors.sections import PACKAGE
from stage2_prior.priors.subtokens import SubTokens, split_layout
from tessera.artifacts.manifests import Manifest
from tessera.artifacts.models import load_module, refuse_others
from tessera.codes.layout import CodeLayout
from tessera.errors import UserError
from tessera.parameters.parts import class_of, options

DESCRIBED = ("null_label", "class_names", "class_images")  # see `Prior.describe`


def prior_class(name: str) -> type[Prior]:
    """The class of the prior that an option's file defines.

    Raises:
        UserError: no option has this name. The message lists those there are.
    """
    names = options(PACKAGE)
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
        raise UserError(f"stage2_prior.name: unknown prior {name!r}; have {', '.join(names)}; did you mean `{close}`?")
    return class_of(PACKAGE, name, Prior)


def build_prior(config: dict[str, Any], first: int = 0) -> Prior:
    """Builds a prior with newly initialised weights.

    Args:
        config: a dictionary with these keys. "name": an option of this package. "params": its arguments; codes of
            codebooks larger than the argument `largest_softmax` are modelled as sub-tokens. "layout": from
            `CodeLayout.to_json`. "num_classes". "null_label": False for a prior that was never shown the null label
            (default True). "class_names" and "class_images": see `Prior.describe` (default None).
        first: the first level that the prior covers. It is conditioned on the levels before.

    Raises:
        UserError: the name is unknown, or the prior refuses its arguments.
    """
    refuse_others(config, ("name", "params", "layout", "num_classes", *DESCRIBED), "the prior's configuration")
    family = prior_class(config["name"])
    layout, params = CodeLayout.from_json(config["layout"]), dict(config["params"])
    largest = params.pop("largest_softmax", None)
    inner_layout = split_layout(layout, largest) if largest else layout
    inner = family(inner_layout, config["num_classes"], first=first, **params)
    prior = inner if inner_layout == layout else SubTokens(layout, inner)
    known = {name: config[name] for name in DESCRIBED if name in config}
    prior.describe(config["name"], config["params"], **known)
    return prior


def prior_config(prior: Prior) -> dict[str, Any]:
    """The configuration from which `build_prior` builds the same prior again, as JSON values."""
    return {
        "name": prior.name,
        "params": prior.params,
        "layout": prior.layout.to_json(),
        "num_classes": prior.num_classes,
        "null_label": prior.null_label,
        "class_names": prior.class_names and list(prior.class_names),
        "class_images": prior.class_images and list(prior.class_images),
    }


def load_prior(folder: Path) -> tuple[Prior, Manifest]:
    """A published prior, on the CPU and in evaluation mode, and its manifest.

    Raises:
        UserError: the folder is missing or damaged, or the weights do not fit the configuration.
    """
    return load_module(folder, "prior", build_prior)
