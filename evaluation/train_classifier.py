"""Train a classifier on the training images and publish it in models/classifier.

    python -m evaluation.train_classifier

`evaluate` asks the classifier whether a sample shows the class that was asked for. An interrupted training goes on from
its last saved state. Curves and a summary are written to results/train_classifier. If the images have no labels, the
published folder says so, and `evaluate` reports "unavailable".
"""

from __future__ import annotations

import argparse

from tessera import entry, paths
from tessera.parameters import Params

USES = ("classifier",)  # the sections of params.yaml that change what this stage makes

RESULTS = paths.RESULTS / "train_classifier"


def _publish_none(parents: dict[str, str]) -> None:
    """Publish a folder that says that there is no classifier, with curves of one row."""
    from tessera.artifacts.models import save_model
    from tessera.training.tracking import write_results

    config = {"available": False, "reason": "the images have no labels"}
    save_model(paths.CLASSIFIER, "classifier", config, {}, parents)
    write_results(RESULTS, {"train": [{"step": 0}], "validation": [{"step": 0}]}, {"validation": "unavailable"})
    print(f"{paths.CLASSIFIER}: the images have no labels, so there is no classifier")


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Build the classifier, train it, publish it."""
    import torch

    from evaluation.task import ClassifierTask
    from tessera.artifacts.models import save_model
    from tessera.features.classifier import Classifier
    from tessera.images.prepared import open_prepared
    from tessera.launch import devices
    from tessera.randomness import seed_of
    from tessera.training.loop import train
    from tessera.training.tracking import line

    prepared = open_prepared(paths.PREPARED)
    parents, section = {"prepared": prepared.manifest.identity}, params.classifier
    accelerator = devices.accelerator(params.runtime)
    if not prepared.stats.num_classes:
        if accelerator.is_main_process:
            _publish_none(parents)
        accelerator.wait_for_everyone()
        return
    config = {
        "image_shape": list(prepared.stats.image_shape),
        "num_classes": prepared.stats.num_classes,
        "channels": section.channels,
        "dropout": section.dropout,
    }
    torch.manual_seed(seed_of("initialise", section.training.seed))
    task = ClassifierTask(Classifier(config), prepared["train"], prepared["validation"], section)
    whole = {"classifier": config, **section.values()}
    metrics = train("train_classifier", task, section.training, params.runtime, accelerator, whole, parents)
    if accelerator.is_main_process:
        config = {"available": True, "classifier": config}
        steps = section.training.after(metrics["steps"])
        save_model(paths.CLASSIFIER, "classifier", config, task.model.state_dict(), parents, steps)
        print(f"{paths.CLASSIFIER}: validation {line(metrics)}")
    accelerator.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
