"""Parameters of the classifier and of the evaluation."""

from __future__ import annotations

from typing import ClassVar

from tessera.features.classifiers.sections import PACKAGE
from tessera.features.networks.sections import features_choice
from tessera.parameters.sections import Choice, Count, Positive, Section, choice
from tessera.parameters.training import TrainingParams


class ClassifierChoice(Choice):
    """The choice of the classifier that tells which class a sample shows, and the parameters that all classifiers have.

    `shift`: the largest number of pixels by which training images are shifted at random, in each direction.
    """

    package: ClassVar[str] = PACKAGE

    shift: Count
    training: TrainingParams


ClassifierParams = choice(ClassifierChoice)


class EvaluationParams(Section):
    """What is measured on the test split.

    Attributes:
        images: the number of test images, a fixed random choice (`evaluation.choices.fixed_choice`); None: all.
        features: the frozen network in whose features distances of images are measured.
    """

    images: Positive | None
    features: features_choice()
