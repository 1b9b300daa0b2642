"""Parameters of the classifier."""

from __future__ import annotations

from tessera.parameters.sections import Count, Dropout, Positive, Section
from tessera.parameters.training import TrainingParams


class ClassifierParams(Section):
    """The classifier that tells whether a sample shows the class that was asked for. `shift`: pixels, at random."""

    channels: Positive
    dropout: Dropout
    shift: Count
    training: TrainingParams
