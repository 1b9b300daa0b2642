"""No feature network. The figures that need one are left out."""

from __future__ import annotations

from typing import ClassVar

from tessera.features.networks.sections import FeatureParams


class Parameters(FeatureParams):
    """The option `none`, which has no values of its own."""

    is_network: ClassVar[bool] = False
