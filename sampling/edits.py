"""Says which of a run's models were made with other parameters than params.yaml has now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1_vqvae.decoder import REFINED
from tessera import paths
from tessera.artifacts.edited import tell_if_edited
from tessera.parameters import Params

if TYPE_CHECKING:
    from sampling.pipeline import TwoStagePipeline


def made_and_now(
    pipeline: TwoStagePipeline, params: Params
) -> Iterator[tuple[Path, str, dict[str, Any], dict[str, Any]]]:
    """Of each of a run's models its folder and kind, what it was made with, and what `params` says for it."""
    prior, choice = pipeline.prior, params.stage2_prior
    made, now = ({"scales": None} | config for config in (pipeline.vqvae.config, params.stage1_vqvae.model()))
    yield paths.VQVAE, "vqvae", {"stage1_vqvae": made}, {"stage1_vqvae": now}
    if pipeline.decoder is not pipeline.vqvae:
        used, wanted = pipeline.decoder.config["objective"], params.refine_decoder.objective.values()
        made, now = ({"refine_decoder": {"objective": each}} for each in (used, wanted))
        yield paths.DECODERS / REFINED, "decoder", made, now
    made = {"name": prior.name, prior.name: prior.params}
    now = {"name": choice.name, choice.name: choice.config()["params"]}
    yield paths.PRIOR, "prior", {"stage2_prior": made}, {"stage2_prior": now}


def tell_of_edits(pipeline: TwoStagePipeline, params: Params) -> None:
    """Print a line for each of the run's models that `params` would make in another way."""
    for folder, kind, made, now in made_and_now(pipeline, params):
        tell_if_edited(folder, kind, made, now)
