"""The card of a saved pipeline: README.md as the Hub shows it, and the figures in the form of its leaderboards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sampling.describe import grid, rows
from sampling.provenance import Provenance
from sampling.settings import Settings
from tessera import paths

if TYPE_CHECKING:
    from sampling.pipeline import TwoStagePipeline

TAGS = ["tessera", "vq-vae", "discrete-latents", "image-generation"]
TASK = "unconditional-image-generation"
INCEPTION = "inception"  # the features in which a Fréchet distance is called FID
LISTED = 50  # classes
NO_LICENSE = (
    "## Licence\n\nNone is given yet. Whoever publishes this model chooses one: `license:` in the first lines of this "
    "file. The licence of the data may limit the choice."
)
RECORDED = "Every value that the run used, as params.yaml has them:"
UNRECORDED = (
    "These are the values of params.yaml in the run's folder. The run kept no record of its own values. The sizes of "
    "the models and their numbers of training steps agree with params.yaml. No other value could be compared:"
)

# The figures that a card shows, by their dotted path in metrics.json: what each is, which way is better, and on which
# images it is measured.
FIGURES = {
    "bits_per_dim.total_prior": ("bound of -log2 p(x), bits per dimension", "lower", "test"),
    "bits_per_dim.distortion": ("of these, distortion -log2 p(x given codes)", "lower", "test"),
    "bits_per_dim.rate_prior": ("of these, rate -log2 p(codes) of the prior", "lower", "test"),
    "bits_per_dim.rate_counts": ("the rate if codes were only counted", "lower", "test"),
    "bits_per_dim.rate_uniform": ("the rate if all codes were equally likely", "-", "test"),
    "nats_per_token.prior": ("nats per token of the prior", "lower", "test"),
    "reconstruction.psnr": ("PSNR of reconstructions, dB", "higher", "test"),
    "reconstruction.ssim": ("SSIM of reconstructions", "higher", "test"),
    "reconstruction.nmse": ("squared error of reconstructions / variance", "lower", "test"),
    "codebook.usage": ("part of the codes that is used", "higher", "test"),
    "classifier.real_accuracy": ("a classifier's accuracy on real images", "-", "test"),
    "classifier.sample_agreement": ("its agreement with the class that was asked for", "higher", "samples"),
    "classifier.unguided_agreement": ("the same without guidance, at temperature 1", "higher", "samples"),
    "distribution.default.frechet_distance": ("Fréchet distance of samples", "lower", "samples"),
    "distribution.floor.frechet_distance": ("the same of real training images", "-", "samples"),
    "distribution.default.kid": ("KID of samples", "lower", "samples"),
    "distribution.default.precision": ("precision of samples", "higher", "samples"),
    "distribution.default.recall": ("recall of samples", "higher", "samples"),
}
# The figures for leaderboards, with the names of their tasks.
RESULTS = ("bits_per_dim.total_prior", "reconstruction.psnr", "distribution.default.frechet_distance")


def card(
    pipeline: TwoStagePipeline,
    told: Provenance,
    name: str,
    license: str | None = None,
    dataset: str | None = None,
    picture: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        told: parameters, figures and numbers of images of the run that made the models.
        name: what the card calls the pipeline, and loads it by.
        license: a licence as the Hub names it; None leaves it to the reader.
        dataset: the data's id on the Hub, where they have one.
        picture: the name of the picture of samples beside the card; None: there is none.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=license, library_name="tessera", tags=TAGS, pipeline_tag=TASK, datasets=[dataset] if dataset else None
    )
    parts = [
        f"# {name.rpartition('/')[2]}",
        _summary(pipeline),
        f"![Samples]({picture})" if picture else "",
        _use(pipeline, told, name),
        _data(pipeline, told, dataset),
        _recipe(pipeline, told),
        _figures(told),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(pipeline, told)),
        "" if license else NO_LICENSE,
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n").content


def eval_results(told: Provenance, dataset: str | None) -> str | None:
    """The text of a file in .eval_results, which the Hub's leaderboards read; None without figures or dataset.

    Args:
        dataset: the data's id on the Hub.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    revision = told.recipe["data"]["revision"] if dataset and dataset == told.hub_id else None
    entries = [
        EvalResultEntry(dataset, name, value, dataset_revision=revision, notes=f"{what}; {_images(told, kind)}; {how}")
        for name, value, (what, _, kind), how in _measured(told)
        if name in RESULTS and dataset
    ]
    return yaml_dump(eval_result_entries_to_yaml(entries)) if entries else None


def _summary(pipeline: TwoStagePipeline) -> str:
    channels, height, width = pipeline.layout.image_shape
    levels = pipeline.layout.levels
    grids = f"{'grids' if len(levels) > 1 else 'a grid'} of {' and '.join(map(grid, levels))}"
    asked = " of a class that you name" if pipeline.num_classes else ""
    return (
        f"Draws {height}x{width} {'grey' if channels == 1 else 'RGB'} images{asked}. A VQ-VAE turns an image into "
        f"{grids} discrete codes and back; a prior draws such codes. Made with Tessera."
    )


def _literal(value: Any) -> str:
    """Python's notation of a setting, with double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _use(pipeline: TwoStagePipeline, told: Provenance, name: str) -> str:
    settings: dict[str, Any] = {"labels": "each"} if pipeline.num_classes else {}
    used, default = told.recipe.get("sampling", {}), asdict(Settings())
    settings |= {f.name: used[f.name] for f in fields(Settings) if used.get(f.name, default[f.name]) != default[f.name]}
    if not pipeline.prior.null_label:
        settings["guidance_scale"] = 1.0  # guidance needs the null label
    arguments = ", ".join(["16", *(f"{key}={_literal(value)}" for key, value in settings.items()), "seed=1"])
    decoder = ', decoder="refined"' if pipeline.decoder is not pipeline.vqvae else ""
    code = [
        "from tessera import TwoStagePipeline",
        "",
        f'pipeline = TwoStagePipeline.from_pretrained("{name}"{decoder})',
        f'pipeline.to_pil(pipeline.generate({arguments}))[0].save("sample.png")',
    ]
    return (
        "## Use\n\n```python\n" + "\n".join(code) + "\n```\n\nIt needs Tessera and nothing else: class names and the "
        "preparation of images are in the model. `from_pretrained` takes this folder's path too."
    )


def _data(pipeline: TwoStagePipeline, told: Provenance, dataset: str | None) -> str:
    lines = []
    source = told.recipe.get("data", {})
    if source or dataset:
        named = _plain(dataset or source["source"])
        revision = source.get("revision") if dataset in (None, told.hub_id) else None
        lines.append(f"{named} at revision `{revision}`." if revision else f"{named}.")
    if told.images:
        counts = ", ".join(f"{told.images[split]:,} {split}" for split in paths.SPLITS)
        lines.append(f"Images: {counts}.")
    if pipeline.num_classes:
        classes = pipeline.classes
        names = [_plain(classes.name(number)) for number in range(min(classes.count, LISTED))]
        more = ", ..." if classes.count > LISTED else ""
        lines.append(f"{classes.count} classes: {', '.join(names)}{more}.")
    else:
        lines.append("The images have no classes.")
    return "## Data\n\n" + " ".join(lines)


def _recipe(pipeline: TwoStagePipeline, told: Provenance) -> str:
    from huggingface_hub.utils import yaml_dump

    table = "\n".join(f"| {part} | {text} |" for part, text in rows(pipeline).items() if part != "classes")
    text = f"## Recipe\n\n| | |\n| --- | --- |\n{table}"
    if told.recipe:
        values = RECORDED if told.recorded else UNRECORDED
        text += f"\n\n{values}\n\n<details>\n\n```yaml\n{yaml_dump(told.recipe)}```\n\n</details>"
    return text


def _figures(told: Provenance) -> str:
    table = [
        f"| {what} | {value:.4g} | {better} | {_images(told, kind)} | {how} |"
        for _, value, (what, better, kind), how in _measured(told)
    ]
    if not table:
        return "## Figures\n\nNone is known: the run that made the models did not come with them."
    head = "| figure | value | better | measured on | measured by |\n| --- | --- | --- | --- | --- |\n"
    return (
        "## Figures\n\nMeasured once by `python -m evaluation.evaluate`, on the test split. Nothing was chosen by it.\n"
        f"\n{head}" + "\n".join(table)
    )


def _measured(told: Provenance) -> Iterator[tuple[str, float, tuple[str, str, str], str]]:
    """The path, the value, what `FIGURES` says, and the evaluator of each figure that is known."""
    judge = told.metrics.get("distribution", {})
    weights = f", weights {judge['weights'][:12]}" if judge.get("weights") else ""
    for path, said in FIGURES.items():
        value: Any = told.metrics
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            distance = path.startswith("distribution.")
            yield path, float(value), said, f"features `{judge['features']}`{weights}" if distance else "Tessera"


def _images(told: Provenance, kind: str) -> str:
    count = told.metrics["images"].get(kind)
    return f"{count:,} {'test images' if kind == 'test' else 'samples'}" if count else kind


def _limits(pipeline: TwoStagePipeline, told: Provenance) -> Iterator[str]:
    channels, height, width = pipeline.layout.image_shape
    kind = "grey" if channels == 1 else "RGB"
    yield f"It draws {height}x{width} {kind} images like those it was trained on, and no others."
    count = sum(pipeline.prior.class_images or ()) or told.images.get("train")
    learned = f"It has seen {count:,} training images. " if count else ""
    yield f"{learned}A sample may be close to one of them: compare before you publish samples."
    if untrained := pipeline.classes.count - len(pipeline.classes.trained):
        yield f"{untrained} of the classes had no training images and are never drawn."
    if not pipeline.vqvae.has_likelihood:
        yield "It has no likelihood, since its decoder was trained with further terms."
    else:
        exact = "" if pipeline.prior.exact else " The rate is itself an estimate of a bound."
        yield f"Its likelihood is a bound: of all codes that could stand for an image, one counts.{exact}"
    judge = told.metrics.get("distribution", {}).get("features")
    if judge and judge != INCEPTION:
        yield f"Distances are in the features of `{judge}`, so they are no FID, and compare only with such distances."


def _plain(text: str) -> str:
    """A name from outside, as Markdown shows it unchanged."""
    return "`" + "".join(c if c.isprintable() and c != "`" else "?" for c in text) + "`"
