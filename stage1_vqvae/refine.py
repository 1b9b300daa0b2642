"""Train a copy of the VQ-VAE's decoder on, for the eye, and publish it in models/decoders.

    python -m stage1_vqvae.refine

The encoder and the codebooks stay as they are, and so do the codes, the prior, and every figure in bits. The terms of
`refine_decoder.objective` in params.yaml say what the decoder learns besides the distortion. If `refine_decoder.name`
is none, the published folder says in a second that there is no such decoder. `sampling.decoder` chooses the decoder of
the stages that follow. An interrupted training goes on from its last saved state. Curves and a summary are written to
results/refine_decoder.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tessera import entry, paths
from tessera.parameters import Params

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stage1_vqvae.model import VQVAE
    from tessera.images.prepared import PreparedImages

USES = ("refine_decoder",)  # the sections of params.yaml that change what this stage makes
MEMORY = "runtime.micro_batch, or refine_decoder.training.batch_size"  # by which it takes less memory

RESULTS = paths.RESULTS / "refine_decoder"


def _publish_none(parents: dict[str, str], reason: str) -> None:
    """Publish a folder that says why there is no refined decoder, with curves of one row."""
    from stage1_vqvae.decoder import REFINED
    from tessera.artifacts.models import save_model
    from tessera.training.tracking import write_results

    folder = paths.DECODERS / REFINED
    save_model(folder, "decoder", {"available": False, "reason": reason}, {}, parents)
    write_results(RESULTS, {"train": [{"step": 0}], "validation": [{"step": 0}]}, {"unavailable": reason})
    print(f"{folder}: there is no refined decoder, since {reason}")


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Load the VQ-VAE, train a copy of its decoder, publish it."""
    from stage1_vqvae.decoder import LIKELIHOOD, publish_likelihood
    from stage1_vqvae.edits import tell_of_edits
    from stage1_vqvae.model import load_vqvae
    from tessera.images.prepared import open_prepared
    from tessera.launch import devices

    prepared = open_prepared(paths.PREPARED)
    source, manifest = load_vqvae(paths.VQVAE)
    manifest.require_parent("prepared", prepared.manifest.identity, paths.VQVAE)
    parents = {"prepared": prepared.manifest.identity, "vqvae": manifest.identity}
    accelerator = devices.accelerator(params.runtime)
    if accelerator.is_main_process:
        publish_likelihood(paths.DECODERS / LIKELIHOOD)
    if params.refine_decoder.name != "none":
        tell_of_edits(prepared, source, params)
        _train(params, prepared, source, parents, accelerator)
    elif accelerator.is_main_process:
        _publish_none(parents, "refine_decoder.name is none")
    accelerator.wait_for_everyone()


def _train(
    params: Params, prepared: PreparedImages, source: VQVAE, parents: dict[str, str], accelerator: Accelerator
) -> None:
    """Train a copy of the decoder and publish it.

    Args:
        source: the VQ-VAE, which stays as it is.
        parents: the identities of the images and of the VQ-VAE.
    """
    import torch

    from stage1_vqvae.decoder import REFINED
    from stage1_vqvae.objective import Objective
    from stage1_vqvae.sharpening import DecoderTask, decoder_copy
    from tessera.artifacts.models import save_model
    from tessera.randomness import seed_of
    from tessera.training.loop import train
    from tessera.training.saving import Artifact
    from tessera.training.tracking import line

    section, training = params.refine_decoder, params.refine_decoder.training
    objective: dict[str, Any] = section.objective.values()
    torch.manual_seed(seed_of("initialise", training.seed, "added_blocks"))
    model = decoder_copy(source, section.added_blocks, {"objective": objective})
    config = {"available": True, "vqvae": model.config}
    torch.manual_seed(seed_of("initialise", training.seed))
    task = DecoderTask(
        Objective(model, objective), prepared["train"], prepared["validation"], training, section.augmentation
    )
    values = {"vqvae": config["vqvae"], **section.values(), "inputs": dict(task.inputs_used)}
    artifact = Artifact("decoder", config, parents)
    metrics = train("refine_decoder", task, training, params.runtime, accelerator, values, artifact)
    if accelerator.is_main_process:
        steps = training.after(metrics["steps"])
        save_model(paths.DECODERS / REFINED, "decoder", config, task.vqvae.state_dict(), parents, steps)
        print(f"{paths.DECODERS / REFINED}: validation {line(metrics)}")


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
