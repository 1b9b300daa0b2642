"""Train a classifier on the training images and publish it in models/classifier.

    python -m evaluation.train_classifier

`evaluate` asks the classifier whether a sample shows the class that was asked for. An interrupted training goes on from
its last saved state. Curves and a summary are written to results/train_classifier. If there is no classifier, because
`classifier.name` is none, or the images have no labels or are too small, the published folder says so in config.json,
and `evaluate` leaves out the figures that need one.
"""

from __future__ import annotations

import argparse

from tessera import entry, paths
from tessera.parameters import Params

USES = ("classifier",)  # the sections of params.yaml that change what this stage makes
MEMORY = "runtime.micro_batch, or classifier.training.batch_size"  # by which it takes less memory

RESULTS = paths.RESULTS / "train_classifier"


def _publish_none(parents: dict[str, str], reason: str) -> None:
    """Publish a folder that says why there is no classifier, with curves of one row."""
    from tessera.artifacts.models import save_model
    from tessera.training.tracking import write_results

    save_model(paths.CLASSIFIER, "classifier", {"available": False, "reason": reason}, {}, parents)
    write_results(RESULTS, {"train": [{"step": 0}], "validation": [{"step": 0}]}, {"unavailable": reason})
    print(f"{paths.CLASSIFIER}: there is no classifier, since {reason}")


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Build the classifier, train it, publish it."""
    import torch

    from evaluation.task import ClassifierTask
    from tessera.artifacts.edited import tell_if_edited
    from tessera.artifacts.models import save_model
    from tessera.features.classifiers.build import build_classifier
    from tessera.images.prepared import open_prepared
    from tessera.launch import devices
    from tessera.randomness import seed_of
    from tessera.training.loop import train
    from tessera.training.saving import Artifact
    from tessera.training.tracking import line

    prepared = open_prepared(paths.PREPARED)
    tell_if_edited(
        paths.PREPARED, "prepared", {"data": prepared.stats.preparation}, {"data": params.data.preparation()}
    )
    parents, chosen = {"prepared": prepared.manifest.identity}, params.classifier.chosen
    accelerator = devices.accelerator(params.runtime)
    if reason := chosen.unavailable(prepared.stats.image_shape, prepared.stats.num_classes):
        if accelerator.is_main_process:
            _publish_none(parents, reason)
        accelerator.wait_for_everyone()
        return
    images = {"image_shape": list(prepared.stats.image_shape), "num_classes": prepared.stats.num_classes}
    config = {"name": params.classifier.name, **images, **chosen.arguments()}
    training = chosen.training
    torch.manual_seed(seed_of("initialise", training.seed))
    task = ClassifierTask(build_classifier(config), prepared["train"], prepared["validation"], chosen.shift, training)
    whole = {"classifier": config, **chosen.values()}
    published = {"available": True, "classifier": config}
    artifact = Artifact("classifier", published, parents)
    metrics = train("train_classifier", task, training, params.runtime, accelerator, whole, artifact)
    if accelerator.is_main_process:
        steps = training.after(metrics["steps"])
        save_model(paths.CLASSIFIER, "classifier", published, task.model.state_dict(), parents, steps)
        print(f"{paths.CLASSIFIER}: validation {line(metrics)}")
    accelerator.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
