"""The section of the report with the curves of every training."""

from __future__ import annotations

import math

from evaluation.report_charts import Series, line_chart
from evaluation.report_page import DIRECTIONS, Section
from evaluation.report_published import Curve, Published, count

WHO = {
    "train_vqvae": "The VQ-VAE",
    "refine_decoder": "The refined decoder",
    "train_prior": "The prior",
    "train_classifier": "The classifier",
}
NO_CURVES = ("step", "learning_rate", "grad_norm", "best_step")  # and columns whose names begin so
# Columns of a kind have a chart of their own; what no beginning fits is a part of the loss.
CHARTS = {
    "bits_per_dim": ("bits per dimension", "lower", "The pixels' bits given their codes, -log p(x | z)."),
    "perplexity": (
        "perplexity",
        None,
        "How many codes are in use, if they were used alike. A fall towards 1 is a collapse.",
    ),
    "codebook_usage": (
        "share of the codes",
        "higher",
        "The share of the codes that occur. A fall means that codes die.",
    ),
    "nmse": ("squared error over the variance", "lower", "How far reconstructions are from the images; 0 is perfect."),
    "accuracy": ("share", "higher", "The share of images that are given their true class."),
    "quantization_error": ("squared error", "lower", "How far vectors are from their codes."),
    "": (
        "loss",
        "lower",
        "What is minimised, and its parts. Both fall: it learns. Validation rises while training falls: it overfits.",
    ),
}


def curves(run: Published) -> Section:
    """The curves of every training."""
    section = Section("curves", "Curves of the trainings")
    section.notes.append(
        "Training values are each of one batch, so they jump; validation values are over the whole validation split."
    )
    images = count(run.prepared.stats.images["validation"], "validation image")
    for stage in WHO:
        train, validation = run.curve(stage, "train"), run.curve(stage, "validation")
        if reason := run.metrics(stage).get("unavailable"):
            section.notes.append(f"{WHO[stage]} was not trained: {reason}.")
        elif not train:
            section.notes.append(f"{WHO[stage]} has no curves here.")
        elif len(train["step"]) < 2 and len(validation.get("step", [])) < 2:
            section.notes.append(f"{WHO[stage]} has no curves: it learns nothing by gradients, or took one step.")
        else:
            for beginning in sorted(CHARTS, key=bool):
                unit, way, what = CHARTS[beginning]
                series = _series(beginning, train, validation)
                chart = line_chart(series, "step", unit)
                batches = any(one.name.startswith("training") for one in series)
                over = f"{'Training: one batch a point. Validation: ' if batches else ''}{images}."
                name = beginning.replace("_", " ") or "loss"
                section.add(f"{WHO[stage]}: {name}", [chart], what, DIRECTIONS[way], over)
    return section


def _series(beginning: str, train: Curve, validation: Curve) -> list[Series]:
    """The curves of a chart: all columns whose names begin so, training before validation."""
    found = []
    for where, columns in (("training", train), ("validation", validation)):
        for name, values in columns.items():
            kind = next(kind for kind in CHARTS if name.startswith(kind))
            if kind == beginning and not name.startswith(NO_CURVES):
                found.append(Series(f"{where}: {name.replace('_', ' ')}", *finite(columns["step"], values)))
    return [series for series in found if series.xs]


def finite(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Steps and values where there is a value."""
    kept = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]
