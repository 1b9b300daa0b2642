"""What a pipeline is, in a few lines: its `repr`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.errors import printable

if TYPE_CHECKING:
    from sampling.pipeline import TwoStagePipeline
    from tessera.codes.layout import Level

SHOWN = 30  # class names


def description(pipeline: TwoStagePipeline) -> str:
    """Where the models are from, and a line for each row of `rows`."""
    precision = "bf16" if pipeline.drawing is not pipeline.prior else "fp32"
    where = f" of {pipeline.source}" if pipeline.source else ""
    head = f"TwoStagePipeline{where}, on {pipeline.device}, draws in {precision}"
    return "\n".join([head, *(f"  {name:<8} {text}" for name, text in rows(pipeline).items())])


def rows(pipeline: TwoStagePipeline) -> dict[str, str]:
    """A description of a pipeline, by topic: images, classes, codes, VQ-VAE, prior, the refined decoder if it is used.

    The lines of both models name their architectures and the numbers of their weights and training steps. Each text is
    one printable line.
    """
    channels, height, width = pipeline.layout.image_shape
    config, prior = pipeline.vqvae.config, pipeline.prior
    parts = [f"{kind} {config[kind]['name']}" for kind in ("network", "quantizer", "likelihood")]
    found = {
        "images": f"{height}x{width} {'grey' if channels == 1 else 'RGB'}",
        "classes": _classes(pipeline),
        "codes": ", ".join(_level(level) for level in pipeline.layout.levels),
        "vqvae": ", ".join([*parts, *_size(pipeline, "vqvae")]),
        "prior": ", ".join([_prior(prior), *_size(pipeline, "prior")]),
    }
    if pipeline.decoder is not pipeline.vqvae:
        found["decoder"] = "refined; likelihoods are of the VQ-VAE's own"
    if prior.num_classes and not prior.null_label:
        found["classes"] += "; no images without a class"
    return {name: printable(text) for name, text in found.items()}


def _classes(pipeline: TwoStagePipeline) -> str:
    classes = pipeline.classes
    if not classes.count:
        return "none"
    names = [(i, classes.name(i)) for i in range(min(classes.count, SHOWN))]
    numbered = ", ".join(name if name == str(i) else f"{i} = {name}" for i, name in names)
    text = f"{classes.count}: {numbered}{', ...' if classes.count > SHOWN else ''}"
    untrained = classes.count - len(classes.trained)
    return text + (f"; {untrained} without training images" if untrained else "")


def grid(level: Level) -> str:
    """The shape of a level's codes: 4x4, or 4x4x2 with 2 codes a position."""
    return "x".join(map(str, (level.height, level.width, *([level.depth] if level.depth > 1 else []))))


def _level(level: Any) -> str:
    depth = f" of {level.depth}" if level.depth > 1 else ""
    return f"{level.height}x{level.width}{depth}, each one of {level.codebook_size}"


def _prior(prior: Any) -> str:
    """The prior's name, and those of the links of a chain."""
    links = [link.name for link in prior.chained()]
    return f"{prior.name} of {', '.join(links)}" if links else prior.name


def _size(pipeline: TwoStagePipeline, name: str) -> list[str]:
    """The number of parameters of a model, and of the steps that trained it where its manifest says it."""
    count = sum(parameter.numel() for parameter in getattr(pipeline, name).parameters())
    steps = pipeline.manifests[name].training.get("steps") if name in pipeline.manifests else None
    return [f"{count:,} parameters"] + ([f"{steps:,} steps"] if steps else [])
