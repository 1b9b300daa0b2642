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
        config, section = pipeline.decoder.config, params.refine_decoder
        network = config["network"]
        blocks = network[network["name"]].get("added_blocks", 0)
        made = {"added_blocks": blocks, "objective": config["objective"]}
        now = {"added_blocks": section.added_blocks, "objective": section.objective.values()}
        yield paths.DECODERS / REFINED, "decoder", {"refine_decoder": made}, {"refine_decoder": now}
    made = {"name": prior.name, prior.name: prior.params}
    now = {"name": choice.name, choice.name: choice.config()["params"]}
    yield paths.PRIOR, "prior", {"stage2_prior": made}, {"stage2_prior": now}


def tell_of_edits(pipeline: TwoStagePipeline, params: Params) -> None:
    """Print a line for each of the run's models that `params` would make in another way."""
    for folder, kind, made, now in made_and_now(pipeline, params):
        tell_if_edited(folder, kind, made, now)
