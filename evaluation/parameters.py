"""Parameters of the classifier."""

from __future__ import annotations

from tessera.parameters.sections import Count, Dropout, Positive, Section
from tessera.parameters.training import TrainingParams


class ClassifierParams(Section):
    """The classifier that tells which class a sample shows.

    `channels`: of its first block. `shift`: training images are shifted at random by up to so many pixels each way.
    """

    channels: Positive
    dropout: Dropout
    shift: Count
    training: TrainingParams
