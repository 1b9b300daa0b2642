"""The whole of params.yaml, with the checks that span sections."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import create_model, model_validator

from tessera.parameters.sections import Misfit, Section

# Where each section's class is. Named, not imported: the ground floor imports no stage, and what one stage's parameters
# look like is no part of another stage's code.
SECTIONS = {
    "data": "stage0_images.parameters:DataParams",
    "stage1_vqvae": "stage1_vqvae.parameters:Stage1Params",
    "refine_decoder": "stage1_vqvae.parameters:RefineParams",
    "extract_codes": "stage1_vqvae.parameters:ExtractParams",
    "stage2_prior": "stage2_prior.parameters:Stage2Params",
    "classifier": "evaluation.parameters:ClassifierParams",
    "sampling": "sampling.parameters:SamplingParams",
    "evaluation": "evaluation.parameters:EvaluationParams",
    "runtime": "tessera.parameters.training:RuntimeParams",
}


class Params(Section):
    """params.yaml, frozen and validated; its sections are attributes (`SECTIONS`)."""

    @model_validator(mode="after")
    def sections_fit_together(self) -> Params:
        for name, section in self:
            try:
                section.fits_together()
            except Misfit as error:
                raise ValueError(str(Misfit(error.reason, name, *error.path))) from None
        self._levels_fit()
        self._images_fit()
        self._training_fits()
        self._sampling_fits()
        self._judge_is_apart()
        self._objectives_fit()
        return self

    def _levels_fit(self) -> None:
        """Image size, codebooks and links against the network's levels."""
        network, quantizer = self.stage1_vqvae.network, self.stage1_vqvae.quantizer
        factor, levels, scales = network.chosen.factor, self.stage1_vqvae.levels, self.stage1_vqvae.scales
        for side in ("height", "width"):
            if getattr(self.data, side) % factor:
                raise ValueError(
                    f"data.{side}: {getattr(self.data, side)} is not divisible by {factor}, by which "
                    f"stage1_vqvae.network.{network.name} downsamples; choose a multiple of {factor}"
                )
        if scales.sides:
            try:
                scales.fit_grid((self.data.height // factor, self.data.width // factor))
            except Misfit as error:
                raise ValueError(str(Misfit(error.reason, "stage1_vqvae", "scales", *error.path))) from None
        sizes = quantizer.chosen.sizes
        if len(sizes) not in (1, levels):
            raise ValueError(
                f"stage1_vqvae.quantizer.{quantizer.name}: {len(sizes)} codebook sizes for {levels} levels of "
                "stage1_vqvae; give one number, or one per level, coarsest first"
            )
        links = getattr(self.stage2_prior.chosen, "links", None)
        if links is not None and len(links) != levels:
            raise ValueError(
                f"stage2_prior.chain.links: {len(links)} priors for {levels} levels of stage1_vqvae; give one "
                "per level, coarsest first"
            )
        try:
            self.stage2_prior.chosen.check_codebooks(sizes * levels if len(sizes) == 1 else sizes)
        except Misfit as error:
            raise ValueError(str(Misfit(error.reason, "stage2_prior", *error.path))) from None

    def _images_fit(self) -> None:
        """Shifts against the image size."""
        side = min(self.data.height, self.data.width)
        size = f"{self.data.height}x{self.data.width}"
        shift = self.stage1_vqvae.augmentation.shift
        if shift >= side:
            raise ValueError(
                f"stage1_vqvae.augmentation.shift: {shift} pixels would move an image of {size} out of sight; give "
                "less than its shorter side"
            )
        extra = self.extract_codes.shift
        if extra > side // 4:
            raise ValueError(
                f"extract_codes.shift: {extra} pixels on images of {size} are {(2 * extra + 1) ** 2} passes over the "
                f"training images, many of them mostly empty; give at most {side // 4}, a quarter of the shorter side"
            )

    def _training_fits(self) -> None:
        """What training and extraction ask of the quantizer; warm-up and steps."""
        quantizer = self.stage1_vqvae.quantizer
        averaged = self.stage1_vqvae.training.weight_ema_decay > 0
        if averaged and quantizer.chosen.innermost.revives_learned_codes:
            raise ValueError(
                "stage1_vqvae.training.weight_ema_decay: codes that only the decoder trains are averaged like weights, "
                "and the average of a dead code and the code revived in its place is neither of them; set it to 0, or "
                "revival_threshold to 0, or codebook_cost above 0"
            )
        if self.extract_codes.draws and not quantizer.chosen.can_draw:
            raise ValueError(
                f"extract_codes.draws: {self.extract_codes.draws}, but stage1_vqvae.quantizer {quantizer.name} cannot "
                "draw codes; set it to 0, or choose soft_em or gumbel"
            )
        for path, training in self.trainings().items():
            name = "steps" if training.schedule_steps is None else "schedule_steps"
            if training.warmup_steps >= (end := getattr(training, name)):
                raise ValueError(f"{path}.warmup_steps: {training.warmup_steps} must be below {path}.{name}, {end}")

    def _sampling_fits(self) -> None:
        """Guidance, and the numbers of values, against the prior and the levels that are sampled."""
        sizes, levels = self.stage1_vqvae.quantizer.chosen.sizes, self.stage1_vqvae.levels
        training, scales = getattr(self.stage2_prior.chosen, "training", None), self.sampling.guidance_scale
        guided = any(scale != 1 for scale in (scales if isinstance(scales, tuple) else (scales,)))
        if self.data.use_labels and guided and training and not training.label_dropout:
            raise ValueError(
                f"sampling.guidance_scale: {scales}, but stage2_prior's training.label_dropout is 0, so the null "
                "label, against which guidance works, is never trained; set that above 0, or the scale to 1"
            )
        for name, value in self.sampling:
            if isinstance(value, tuple) and len(value) not in (1, levels):
                raise ValueError(
                    f"sampling.{name}: {len(value)} values for {levels} levels of stage1_vqvae; give one, or "
                    "one per level, coarsest first"
                )
        top_k = self.sampling.top_k
        by_level = isinstance(top_k, tuple) and len(top_k) == len(sizes)
        for index, value in enumerate(top_k if isinstance(top_k, tuple) else (top_k,)):
            largest = sizes[index] if by_level else max(sizes)
            if value is not None and value > largest:
                raise ValueError(
                    f"sampling.top_k: {value} is over the largest codebook_size, {largest}; "
                    "choose at most that, or null for no filter"
                )

    def _judge_is_apart(self) -> None:
        """What a decoder is trained against may not judge it: it learns to please that network in particular."""
        judge = self.evaluation.features.name
        for name in SECTIONS:
            if name in ("evaluation", "runtime"):
                continue
            for path, network in feature_networks(getattr(self, name).values(), name):
                if network == judge:
                    raise ValueError(
                        f"evaluation.features.name: {judge} is trained against in {path}, so it may not judge; choose "
                        "another network in one of the two places"
                    )

    def objectives(self) -> dict[str, Any]:
        """The objective of every decoder that is trained with further terms, by its dotted path."""
        found = {"stage1_vqvae.objective": self.stage1_vqvae.objective}
        if self.refine_decoder.name != "none":
            found["refine_decoder.objective"] = self.refine_decoder.objective
        return found

    def _objectives_fit(self) -> None:
        """The objectives' terms against the image size, and the decoder that is asked for."""
        for path, objective in self.objectives().items():
            try:
                objective.fits_images((self.data.channels, self.data.height, self.data.width))
            except Misfit as error:
                raise ValueError(str(Misfit(error.reason, *path.split("."), *error.path))) from None
        if self.extract_codes.refine and self.stage1_vqvae.objective.on:
            raise ValueError(
                f"extract_codes.refine: {self.extract_codes.refine}, but stage1_vqvae.objective has a term, so that no "
                "likelihood is fitted by which codes could be improved; set one of them to 0"
            )
        network = self.stage1_vqvae.network
        if (
            self.refine_decoder.name != "none"
            and self.refine_decoder.added_blocks
            and not getattr(network.chosen, "grows", False)
        ):
            raise ValueError(
                f"refine_decoder.added_blocks: {self.refine_decoder.added_blocks}, but stage1_vqvae.network "
                f"{network.name} takes no added blocks; set it to 0"
            )
        if self.sampling.decoder == "refined" and self.refine_decoder.name == "none":
            raise ValueError(
                "sampling.decoder: refined, but refine_decoder.name is none, so there is no such decoder; set that to "
                "objective, or sampling.decoder to likelihood"
            )

    def trainings(self) -> dict[str, Any]:
        """The training section of every stage that is trained, by its dotted path."""
        found = {"stage1_vqvae.training": self.stage1_vqvae.training}
        if self.refine_decoder.name != "none":
            found["refine_decoder.training"] = self.refine_decoder.training
        for name in ("stage2_prior", "classifier"):
            chosen = getattr(self, name).chosen
            if hasattr(chosen, "training"):
                found[f"{name}.training"] = chosen.training
        return found

    def used(self, path: str) -> Any:
        """What a stage uses of a section, as JSON values.

        Args:
            path: the dotted path of a section, of one option of a choice ("stage2_prior.counts"), or of one value
                ("sampling.decoder").
        """
        node: Any = self
        for key in path.split("."):
            node = getattr(node, key)
        return node.used_with(self) if isinstance(node, Section) else node


def feature_networks(values: Any, path: str) -> Iterator[tuple[str, str]]:
    """The name of every feature network that is chosen in a section, and its dotted path.

    Args:
        values: the section's values (`Section.values`), which hold only what is chosen.
    """
    for key, value in values.items() if isinstance(values, dict) else ():
        place = f"{path}.{key}"
        if key == "features" and isinstance(value, dict) and "name" in value:
            yield f"{place}.name", value["name"]
        else:
            yield from feature_networks(value, place)


@cache
def schema() -> type[Params]:
    """The class of the whole of params.yaml."""
    fields: dict[str, Any] = {}
    for name, place in SECTIONS.items():
        module, _, kind = place.partition(":")
        fields[name] = (getattr(import_module(module), kind), ...)
    return create_model("Params", __base__=Params, __module__=__name__, **fields)
