"""Parameters of stage 1: the VQ-VAE, its training, and the extraction of codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_serializer

from stage1_vqvae.objectives.sections import ObjectiveTerms
from stage1_vqvae.quantizers.sections import EstimatorName, Sizes, Threshold
from tessera.parameters.sections import (
    Choice,
    Count,
    Decay,
    Dropout,
    Fraction,
    Misfit,
    NonNegative,
    Positive,
    Section,
    choice,
    terms,
)
from tessera.parameters.training import TrainingParams

if TYPE_CHECKING:
    from tessera.images.prepared import Stats


class NetworkChoice(Choice):
    """The choice of the network."""

    package: ClassVar[str] = "stage1_vqvae.networks"


class QuantizerChoice(Choice):
    """The choice of the quantizer, and the values that quantizers share.

    `shared_by_levels` belongs to the choice itself: True lets one quantizer serve all levels of the network.
    """

    package: ClassVar[str] = "stage1_vqvae.quantizers"

    shared_by_levels: bool
    codebook_size: Sizes
    codebook_dim: Positive
    commitment_cost: NonNegative
    gradient_estimator: EstimatorName
    diveq_variance: NonNegative
    ema_decay: Decay
    ema_epsilon: NonNegative
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Threshold

    @model_serializer
    def chosen_alone(self) -> dict[str, Any]:
        """The name and the parameters of the chosen option, and `shared_by_levels` where it is True.

        False is left out, so that a model's config.json is the same as before this parameter existed.
        """
        found = {"name": self.name, self.name: self.chosen}
        return found | ({"shared_by_levels": True} if self.shared_by_levels else {})

    def fits_together(self) -> None:
        super().fits_together()
        if self.shared_by_levels and len(set(self.chosen.sizes)) > 1:
            raise Misfit(
                f"shared_by_levels: one quantizer cannot have the codebook sizes {list(self.chosen.sizes)}; give one "
                "number, or set shared_by_levels to false"
            )


class LikelihoodChoice(Choice):
    """The choice of the likelihood."""

    package: ClassVar[str] = "stage1_vqvae.likelihoods"


Side = Positive | tuple[Positive, Positive]


class ScalesParams(Section):
    """The scales at which the network's one feature map is quantized, see `stage1_vqvae.scales`.

    Attributes:
        sides: the grids, each a side or [height, width], which grow to the network's grid; None: there are no scales,
            and the other values count nowhere.
        convolutions: how many convolutions the scales share.
        strength: the part of each that a scale's codes pass through; the rest passes by it.
        dropout: the chance that an image of a training batch is decoded from its first few scales alone.
    """

    sides: Annotated[tuple[Side, ...], Field(min_length=1)] | None
    convolutions: Positive
    strength: Fraction
    dropout: Dropout

    @property
    def grids(self) -> list[tuple[int, int]]:
        """The (height, width) of each scale, coarsest first; [] if there are none."""
        return [(side, side) if isinstance(side, int) else side for side in self.sides or ()]

    @model_serializer
    def those_on(self) -> dict[str, Any]:
        """The arguments of `Scales`, or nothing."""
        others = {"convolutions": self.convolutions, "strength": self.strength, "dropout": self.dropout}
        return {"grids": [list(grid) for grid in self.grids]} | others if self.sides else {}

    def fit_grid(self, grid: tuple[int, int]) -> None:
        """Refuse scales that do not grow to the network's grid (height, width), by a `Misfit`."""
        for before, after in zip(self.grids, self.grids[1:], strict=False):
            if before == after or before[0] > after[0] or before[1] > after[1]:
                raise Misfit(
                    f"{list(before)} before {list(after)}, but each scale must be larger than the last", "sides"
                )
        if self.grids[-1] != grid:
            raise Misfit(
                f"the last is {list(self.grids[-1])}, but the network's grid is {list(grid)}; end there", "sides"
            )


class AugmentationParams(Section):
    """Random changes of training images.

    Attributes:
        horizontal_flip: whether half of the images are mirrored.
        shift: the largest shift in each direction, in pixels.
    """

    horizontal_flip: bool
    shift: Count


class Stage1TrainingParams(TrainingParams):
    """The training of the VQ-VAE.

    Attributes:
        codebook_images: the number of training images from which codebooks are initialised, and re-estimated for
            averaged weights.
        initialise_from: a folder with a published VQ-VAE, whose weights and codebooks begin the training; None: random
            weights.
    """

    codebook_images: Positive
    initialise_from: str | None


ObjectiveParams = terms(ObjectiveTerms)
PARTS = ("network", "quantizer", "likelihood")


class Stage1Params(Section):
    """The section `stage1_vqvae` of params.yaml: the parameters of the VQ-VAE and of its training."""

    network: choice(NetworkChoice)
    quantizer: choice(QuantizerChoice)
    scales: ScalesParams
    likelihood: choice(LikelihoodChoice)
    objective: ObjectiveParams
    augmentation: AugmentationParams
    training: Stage1TrainingParams

    @property
    def levels(self) -> int:
        """The number of levels of the codes."""
        return len(self.scales.grids) or self.network.chosen.levels

    def model(self) -> dict[str, Any]:
        """The sections of the model's parts, as JSON values, and those of scales and objective if they are on.

        With the images' shape they say how to build the model.
        """
        found = {name: getattr(self, name).values() for name in (*PARTS, "scales", "objective")}
        return {name: values for name, values in found.items() if values}

    def config(self, stats: Stats) -> dict[str, Any]:
        """The configuration from which a VQVAE is built, as JSON values.

        Args:
            stats: the description of the prepared images.
        """
        about = {"image_shape": list(stats.image_shape), "data_variance": stats.variance}
        return about | {"preparation": stats.preparation} | self.model()

    def fits_together(self) -> None:
        for name in (*PARTS, "objective"):
            try:
                getattr(self, name).fits_together()
            except Misfit as error:
                raise Misfit(error.reason, name, *error.path) from None
        self.objective.fits_training(self.training.patience)
        if self.scales.sides and self.network.chosen.levels > 1:
            raise Misfit(
                f"{self.network.name} has {self.network.chosen.levels} levels here, but scales are of one feature map; "
                "set sides to null, or choose a network of one level",
                "scales",
                "sides",
            )
        if self.scales.sides and not self.quantizer.chosen.approximates:
            raise Misfit(
                f"codes of {self.quantizer.name} do not approximate the vectors they stand for, so that nothing would "
                "be left for the next scale; choose another quantizer, or set sides to null",
                "scales",
                "sides",
            )


class RefineParams(Section):
    """Training a copy of the decoder on, with further terms in its objective.

    What is not given here is as in stage1_vqvae, from which the decoder comes.

    Attributes:
        name: none: there is no such decoder, and the other values count nowhere; objective: there is one.
        added_blocks: residual blocks that the copy has more at each resolution above that of the codes, see
            `networks.conv.ConvNetwork`.
        augmentation: see `AugmentationParams`.
    """

    takes: ClassVar[dict[str, tuple[str, str]]] = {
        name: ("stage1_vqvae", name) for name in ("objective", "augmentation", "training")
    }

    name: Literal["none", "objective"]
    added_blocks: Count
    objective: ObjectiveParams
    augmentation: AugmentationParams
    training: TrainingParams

    @model_serializer
    def chosen_alone(self) -> dict[str, Any]:
        """The name alone, or all values."""
        others = {"added_blocks": self.added_blocks, "objective": self.objective}
        others |= {"augmentation": self.augmentation, "training": self.training}
        return {"name": self.name} | (others if self.name == "objective" else {})

    def parts_used(self) -> Iterable[Any]:
        return () if self.name == "none" else (self.objective,)

    def fits_together(self) -> None:
        if self.name == "none":
            return
        if not self.objective.on:
            raise Misfit("every term has weight 0; raise one, or set refine_decoder.name to none", "objective")
        self.objective.fits_training(self.training.patience)
        try:
            self.objective.fits_together()
        except Misfit as error:
            raise Misfit(error.reason, "objective", *error.path) from None


class ExtractParams(Section):
    """How codes are found, and extra passes over the training images, from which the prior learns as well.

    Attributes:
        refine: the number of gradient steps by which each image's codes are improved (`stage1_vqvae.refined_codes`); 0:
            the codes are the encoder's. Codes drawn at random stay as they were drawn.
        horizontal_flip: whether there are passes over mirrored images.
        shift: the largest shift in each direction, in pixels; there is a pass for each combination of shifts.
        draws: the number of passes whose codes are drawn at random.
    """

    refine: Count
    horizontal_flip: bool
    shift: Count
    draws: Count
