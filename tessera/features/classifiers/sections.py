"""What the parameters of classifiers have in common. Imports no torch, because parameters are checked without it."""

from __future__ import annotations

from typing import Any, ClassVar

from tessera.parameters.sections import Section

PACKAGE = "tessera.features.classifiers"


class ClassifierParams(Section):
    """The base class of the parameters of each classifier. A new classifier adds its own."""

    trained: ClassVar[bool] = True  # False: there is no classifier
    smallest_side: ClassVar[int] = 1  # pixels; smaller images cannot be classified

    def unavailable(self, image_shape: tuple[int, int, int], num_classes: int) -> str | None:
        """Why there is no classifier of these images, or None if there is one."""
        side = self.smallest_side
        if not self.trained:
            return "classifier.name is none"
        if not num_classes:
            return "the images have no labels"
        if min(image_shape[1:]) < side:
            height, width = image_shape[1:]
            return f"images of {height} x {width} pixels are smaller than {side} x {side}, which the classifier needs"
        return None

    def arguments(self) -> dict[str, Any]:
        """What the classifier is built from besides the images' shape and classes, as JSON values."""
        return {}
