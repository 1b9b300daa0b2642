"""Train the classifier that judges conditional samples, on real images, and publish it in models/classifier.

    python -m evaluation.train_classifier

An interrupted run goes on from its last saved state. Leaves curves and a summary in results/train_classifier. Without
labels it publishes a folder that says so, and `evaluate` reports "unavailable".
"""

from __future__ import annotations

import argparse

from tessera import entry, paths
from tessera.parameters import Params

USES = ("classifier",)  # the sections of params.yaml that change what this stage makes

RESULTS = paths.RESULTS / "train_classifier"


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Train on the training split, keep the best by validation cross-entropy, publish."""
    import torch

    from evaluation.task import JudgeTask
    from tessera.artifacts.models import save_model
    from tessera.features.classifier import Judge
    from tessera.images.prepared import open_prepared
    from tessera.launch.devices import accelerator
    from tessera.randomness import seed_of
    from tessera.training.loop import train
    from tessera.training.tracking import write_results

    prepared = open_prepared(paths.PREPARED)
    parents, section = {"prepared": prepared.manifest.identity}, params.classifier
    device = accelerator(params.runtime)
    if not prepared.stats.num_classes:
        if device.is_main_process:
            config = {"available": False, "reason": "the images have no labels"}
            save_model(paths.CLASSIFIER, "classifier", config, {}, parents)
            write_results(RESULTS, {"train": [{"step": 0}], "validation": [{"step": 0}]}, {"validation": "unavailable"})
            print(f"{paths.CLASSIFIER}: the images have no labels, so there is no classifier")
        return
    config = {
        "image_shape": list(prepared.stats.image_shape),
        "num_classes": prepared.stats.num_classes,
        "channels": section.channels,
        "dropout": section.dropout,
    }
    torch.manual_seed(seed_of("initialise", section.training.seed))
    task = JudgeTask(Judge(config), prepared["train"], prepared["validation"], section)
    whole = {"judge": config, **section.values()}
    metrics = train("train_classifier", task, section.training, params.runtime, device, whole, parents)
    if device.is_main_process:
        config = {"available": True, "judge": config}
        save_model(paths.CLASSIFIER, "classifier", config, task.model.state_dict(), parents)
        print(f"{paths.CLASSIFIER}: validation " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    device.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
