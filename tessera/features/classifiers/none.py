"""No classifier. The figures that need one are left out."""

from __future__ import annotations

from typing import ClassVar

from tessera.features.classifiers.sections import ClassifierParams


class Parameters(ClassifierParams):
    """The option `none`, which has no values of its own."""

    trained: ClassVar[bool] = False
