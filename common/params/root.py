"""The whole of params.yaml, with the checks that span sections."""

from __future__ import annotations

from pydantic import model_validator

from common.params.base import Section
from common.params.data import DataParams, ExtractParams
from common.params.quantizers import VQParams
from common.params.sampling import ClassifierParams, SamplingParams
from common.params.stage1 import Stage1Params
from common.params.stage2 import Stage2Params
from common.params.training import RuntimeParams


class Params(Section):
    """params.yaml, frozen and validated."""

    data: DataParams
    stage1_vqvae: Stage1Params
    extract_codes: ExtractParams
    stage2_prior: Stage2Params
    classifier: ClassifierParams
    sampling: SamplingParams
    runtime: RuntimeParams

    @model_validator(mode="after")
    def sections_fit_together(self) -> Params:
        network = self.stage1_vqvae.network
        factor, levels = network.chosen.factor, network.chosen.levels
        for side in ("height", "width"):
            if getattr(self.data, side) % factor:
                raise ValueError(
                    f"data.{side}: {getattr(self.data, side)} is not divisible by {factor}, by which "
                    f"stage1_vqvae.network.{network.name} downsamples; choose a multiple of {factor}"
                )
        quantizer = self.stage1_vqvae.quantizer
        sizes = quantizer.chosen.sizes
        if len(sizes) not in (1, levels):
            raise ValueError(
                f"stage1_vqvae.quantizer.{quantizer.name}.{quantizer.chosen.sizes_path}: {len(sizes)} sizes for "
                f"{levels} levels of stage1_vqvae.network; give one number, or one per level, coarsest first"
            )
        inner, averaged = quantizer.chosen.innermost, self.stage1_vqvae.training.weight_ema_decay > 0
        if averaged and isinstance(inner, VQParams) and inner.decoder_learned and inner.revival_threshold:
            raise ValueError(
                "stage1_vqvae.training.weight_ema_decay: codes that the decoder alone trains are averaged like "
                "weights, and the average of a dead code and the one revived in its place is neither; set it to 0, or "
                "revival_threshold to 0, or codebook_cost above 0"
            )
        if self.extract_codes.draws and not quantizer.chosen.draws:
            raise ValueError(
                f"extract_codes.draws: {self.extract_codes.draws}, but stage1_vqvae.quantizer {quantizer.name} draws "
                "no codes; set it to 0, or choose soft_em or gumbel"
            )
        prior = self.stage2_prior
        if prior.name == "chain" and len(prior.chain.links) != levels:
            raise ValueError(
                f"stage2_prior.chain.links: {len(prior.chain.links)} priors for {levels} levels of "
                "stage1_vqvae.network; give one per level, coarsest first"
            )
        for path, training in self.trainings().items():
            if training.warmup_steps >= training.steps:
                raise ValueError(
                    f"{path}.warmup_steps: {training.warmup_steps} must be below {path}.steps, {training.steps}"
                )
        return self

    @model_validator(mode="after")
    def sampling_fits_what_is_sampled(self) -> Params:
        sizes, levels = self.stage1_vqvae.quantizer.chosen.sizes, self.stage1_vqvae.network.chosen.levels
        prior = self.stage2_prior
        training, scales = getattr(prior.chosen, "training", None), self.sampling.guidance_scale
        guided = any(scale != 1 for scale in (scales if isinstance(scales, tuple) else (scales,)))
        if self.data.use_labels and guided and training and not training.label_dropout:
            raise ValueError(
                f"sampling.guidance_scale: {scales}, but stage2_prior.{prior.name}.training.label_dropout is 0, so the "
                "null label, against which guidance works, is never trained; set that above 0, or the scale to 1"
            )
        for name, value in self.sampling:
            if isinstance(value, tuple) and len(value) not in (1, levels):
                raise ValueError(
                    f"sampling.{name}: {len(value)} values for {levels} levels of stage1_vqvae.network; give one, or "
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
        return self

    def trainings(self) -> dict:
        """Every training section by its dotted path."""
        return {
            "stage1_vqvae.training": self.stage1_vqvae.training,
            **{
                f"stage2_prior.{name}.training": section.training
                for name, section in self.stage2_prior
                if hasattr(section, "training")
            },
            "classifier.training": self.classifier.training,
        }
