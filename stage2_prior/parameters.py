"""Parameters of stage 2: the prior and its training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, create_model

from stage2_prior.priors.sections import PACKAGE, PriorParams
from tessera.parameters.parts import options, parameters_of
from tessera.parameters.sections import LARGEST, Choice, Count, Dropout, Fraction, Positive, choice
from tessera.parameters.training import TrainingParams


class PriorTrainingParams(TrainingParams):
    """What only the training of a prior has.

    `label_dropout`: chance that a label is replaced by the null label. `extra_pass_fraction`: chance that an image's
    codes come from an extra (flipped or shifted) pass. `gradient_checkpointing`: blocks are computed again in the
    backward pass, which takes less memory and more time. `initialise_from`: a folder with a published prior, whose
    weights begin the training; None: random weights.
    """

    label_dropout: Fraction
    extra_pass_fraction: Fraction
    gradient_checkpointing: bool
    initialise_from: str | None


class PriorChoice(Choice):
    """The choice of the prior, and the values that priors share.

    heads: 0 is allowed for a prior that needs no attention.
    """

    package: ClassVar[str] = PACKAGE

    largest_softmax: Annotated[int, Field(ge=2, le=LARGEST)]
    layers: Positive
    width: Positive
    heads: Count
    dropout: Dropout
    training: PriorTrainingParams

    def config(self) -> dict[str, Any]:
        """What the chosen prior is built from, as JSON values: `name`, and `params`, its arguments without training."""
        return {"name": self.name, "params": self.chosen.arguments()}


def _with_training(name: str) -> type[PriorParams]:
    """The parameters of a prior that is chosen for the whole sequence: with its training, where it is trained."""
    found = parameters_of(PACKAGE, name)
    if not found.trained:
        return found
    return create_model(found.__name__, __base__=found, __module__=__name__, training=(PriorTrainingParams, ...))


Stage2Params = choice(PriorChoice, **{name: _with_training(name) for name in options(PACKAGE)})
