"""Says which of a run's models were made with other parameters than params.yaml has now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stage1_vqvae.decoder import REFINED
from tessera import paths
from tessera.artifacts.edited import tell_if_edited
from tessera.parameters import Params

if TYPE_CHECKING:
    from sampling.pipeline import TwoStagePipeline


def tell_of_edits(pipeline: TwoStagePipeline, params: Params) -> None:
    """Print a line for each of the run's models that `params` would make in another way."""
    prior, choice = pipeline.prior, params.stage2_prior
    made = {"name": prior.name, prior.name: prior.params}
    now = {"name": choice.name, choice.name: choice.config()["params"]}
    model = pipeline.vqvae.config
    tell_if_edited(paths.VQVAE, "vqvae", {"stage1_vqvae": model}, {"stage1_vqvae": params.stage1_vqvae.model()})
    if pipeline.decoder is not pipeline.vqvae:
        used, wanted = pipeline.decoder.config["objective"], params.refine_decoder.objective.values()
        made_with, now_with = ({"refine_decoder": {"objective": each}} for each in (used, wanted))
        tell_if_edited(paths.DECODERS / REFINED, "decoder", made_with, now_with)
    tell_if_edited(paths.PRIOR, "prior", {"stage2_prior": made}, {"stage2_prior": now})
