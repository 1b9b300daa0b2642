"""What parameters of feature networks have in common. Imports no torch, because parameters are checked without it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, create_model

from tessera.parameters.parts import parameters_of
from tessera.parameters.sections import Choice, Section

PACKAGE = "tessera.features.networks"

Side = Annotated[int, Field(ge=8, le=1024)]


class FeatureParams(Section):
    """Parameters of every feature network.

    Attributes:
        is_network: False for the option that there is no network.
        needs_labels: whether there is such a network only where images have labels.
    """

    is_network: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    @classmethod
    def at_hand(cls) -> bool:
        """Whether the weights are installed, so that they need neither a file nor a download. Default: they are not."""
        return False


class PretrainedParams(FeatureParams):
    """Parameters of a network whose weights were trained elsewhere.

    Attributes:
        file: its weights, a safetensors file or a .pth file of tensors; None: see the option's own docstring.
        side: the shorter side, in pixels, to which smaller images are enlarged before the network sees them. Images
            with a longer one keep their size.
    """

    file: str | None
    side: Side


class FeaturesChoice(Choice):
    """The choice of a feature network by its name. An option's own section may be left out.

    `file` and `side` are shared: see `PretrainedParams`.
    """

    package: ClassVar[str] = PACKAGE
    optional: ClassVar[bool] = True
    published: ClassVar[bool] = False  # no published model is built from a feature network

    file: str | None
    side: Side


def features_choice(refused: dict[str, str] | None = None) -> type[Any]:
    """The choice of a feature network, as a field's type in a section of params.yaml.

    Args:
        refused: options that cannot be chosen there, and why.
    """
    base = type("Features", (FeaturesChoice,), {"__module__": __name__, "__annotations__": {}})
    base.refused = refused or {}
    names = base.option_names()
    fields: dict[str, Any] = {name: (parameters_of(PACKAGE, name) | None, None) for name in names}
    return create_model("Features", __base__=base, __module__=__name__, name=(Literal[*names], ...), **fields)
