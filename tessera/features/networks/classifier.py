"""The run's own published classifier as a feature network: the features from which it tells the classes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tessera import paths
from tessera.errors import UserError
from tessera.features.classifiers.build import load_classifier
from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.sections import FeatureParams


class Parameters(FeatureParams):
    """The section `classifier` of params.yaml."""

    needs_labels: ClassVar[bool] = True


class ClassifierFeatures(FeatureNetwork):
    """The outputs of the classifier's blocks. Images have the size and the channels that it was trained on."""

    def __init__(self) -> None:
        """Load models/classifier.

        Raises:
            UserError: it is missing or damaged, or the folder says that there is none.
        """
        super().__init__()
        classifier, manifest = load_classifier(paths.CLASSIFIER)
        if classifier is None:
            reason = manifest.read_json("config.json")["reason"]
            raise UserError(f"there is no classifier whose features could be used: {reason}")
        self.classifier, self.widths = classifier, classifier.widths
        self.channels = classifier.config["image_shape"][0]
        self.weights = manifest.files["model.safetensors"].sha256

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return self.classifier.maps(images)
