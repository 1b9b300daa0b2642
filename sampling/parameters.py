"""Parameters of sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tessera.parameters.sections import Count, NonNegative, Positive, Section


def each(kind: Any) -> Any:
    """One value for every level, or one per level, coarsest first."""
    return kind | Annotated[tuple[kind, ...], Field(min_length=1)]


TopK = Positive | None
TopP = Annotated[float, Field(gt=0, le=1)] | None
MinP = Annotated[float, Field(ge=0, lt=1)] | None
MOST_GUIDANCE = 1000  # far above any useful scale; guided logits stay finite in float32
Guidance = Annotated[float, Field(ge=0, le=MOST_GUIDANCE)]


Decoder = Literal["likelihood", "refined"]


class SamplingParams(Section):
    """The default sampling parameters; null switches a filter off. What they mean: `sampling.settings.Settings`;
    `precision`: of the prior while it draws codes; `batch_size`: images drawn at once, null for what memory holds;
    `decoder`: which one turns codes into images here, in `reconstruct` and in `evaluate`: the likelihood's, or the one
    that `refine_decoder` trains."""

    seed: Count
    images: Positive
    decoder: Decoder
    grid_columns: Positive
    temperature: each(NonNegative)
    top_k: each(TopK)
    top_p: each(TopP)
    min_p: each(MinP)
    guidance_scale: each(Guidance)
    guidance_schedule: Literal["constant", "linear"]
    decoding_steps: Positive
    choice_temperature: NonNegative
    order: Literal["layout", "random", "parallel"]
    precision: Literal["fp32", "bf16"]
    batch_size: Positive | None

    @model_validator(mode="after")
    def rounding_is_repeatable(self) -> SamplingParams:
        if self.precision == "bf16" and self.batch_size is None:
            raise ValueError(
                "batch_size: with precision bf16 samples depend on it, by rounding; give a number, say 256"
            )
        return self

    def used_with(self, params: Any) -> dict[str, Any]:
        """The values without those that the chosen prior does not use when it draws."""
        used = params.stage2_prior.chosen.draws_by()
        if "order" in used and self.order == "parallel":
            used |= {"decoding_steps"}
        unused = {"decoding_steps", "choice_temperature", "order"} - used
        return {name: value for name, value in self.values().items() if name not in unused}
