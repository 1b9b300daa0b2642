"""The sections of the report that show what a run made: samples, reconstructions, bits, codes, prior, copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.figures import HIGHER, LOWER
from evaluation.report_charts import bars
from evaluation.report_page import DIRECTIONS, Section, Table
from evaluation.report_pictures import Picture, Strips, grid, picture_of
from evaluation.report_published import Published, count
from tessera import paths

RECONSTRUCT = paths.RESULTS / "reconstruct" / "images"

CLASSES = 30  # classes whose samples are shown, at most
A_CLASS, UNLABELLED = 10, 60  # samples that are shown of each class, and of images without labels
KINDS = {
    "default": "Samples at the parameters of `sampling`",
    "unguided": "Samples at temperature 1, without guidance",
}
TITLES = {"kid": "KID", "frechet_distance": "Fréchet distance"}
COMPARISONS = {
    "reconstructions": "reconstructions",
    "default": "samples",
    "unguided": "samples at temperature 1, without guidance",
    "floor": "training images: the floor",
}


def samples(run: Published) -> Section:
    """Sampled images, class by class where there are classes."""
    section, classes = Section("samples", "Samples"), run.prepared.stats.classes
    drawn = run.params.sampling
    meaning = {
        "default": (
            f"New images, which the prior drew and the decoder turned into pixels: temperature {drawn.temperature}"
            + (f", guidance {drawn.guidance_scale}. " if classes else ". ")
            + "Look whether shapes are whole, and whether images differ"
            + (" within each class, which the row must show." if classes else ".")
        ),
        "unguided": (
            "What the prior itself has learned, without help from the sampling parameters. Usually these images are "
            "more varied and less clear than the ones above."
        ),
    }
    for kind, title in KINDS.items():
        split = run.samples.get(kind)
        if split is None:
            continue
        labels = run.labels_of(kind)
        if classes and labels is not None:
            parts: list[Any] = [_of_classes(split, labels.numpy(), classes)]
            shown = f"Up to {A_CLASS} samples of each class are shown, of {count(len(split), 'sample')} in all."
        else:
            number = min(UNLABELLED, len(split))
            parts = [grid(split.pixels(slice(number)), A_CLASS, f"{number} samples")]
            shown = f"{number} of {count(len(split), 'sample')} are shown."
        section.add(title, parts, meaning[kind], "The nearer to real images, the better; no number says it.", shown)
    if classes is None:
        section.notes.append("The images have no labels, so samples are not sorted by class.")
    elif len(classes) > CLASSES:
        section.notes.append(f"There are {len(classes):,} classes; {CLASSES} of them, evenly spaced, are shown.")
    if drawn.decoder != "likelihood":
        section.notes.append(
            "The refined decoder drew the samples and reconstructions. Bits are always those of the decoder with a "
            "likelihood."
        )
    return section


def _of_classes(split: Any, labels: np.ndarray, classes: tuple[str, ...]) -> Strips:
    there = [number for number in range(len(classes)) if (labels == number).any()]
    chosen = [there[place * len(there) // min(CLASSES, len(there))] for place in range(min(CLASSES, len(there)))]
    strips: list[tuple[str, Picture]] = []
    for number in chosen:
        rows = np.flatnonzero(labels == number)[:A_CLASS]
        strips.append((classes[number], grid(split.pixels(rows), A_CLASS, f"Samples of the class {classes[number]}")))
    return Strips(strips)


def reconstructions(run: Published) -> Section:
    """Test, validation and training images, each above its reconstruction, and the mean errors over the test images.

    With several levels, validation and training images are also shown as decoded from one level alone, or from the
    scales up to each scale.
    """
    section = Section("reconstructions", "Reconstructions")
    found = run.evaluated.get("reconstruction", {})
    names = {"nmse": "NMSE {:.4f}", "psnr": "PSNR {:.1f} dB", "ssim": "SSIM {:.3f}"}
    told = ", ".join(text.format(found[name]) for name, text in names.items() if name in found)
    file = paths.RESULTS / "evaluate" / "images" / "reconstructions.png"
    section.add(
        "Test images above their reconstructions",
        [picture_of(file, "Rows of test images, each above its reconstruction")],
        f"What the codes keep of an image. No sample can be better than this. Over the test images: {told}.",
        "The more alike, the better: a lower NMSE (0 is perfect), a higher PSNR and SSIM.",
        f"32 images are shown at most; the numbers are over {_test_images(run)}.",
    )
    levels = run.codes.layout.levels
    sizes = ", ".join(f"{level.height} x {level.width}" for level in levels)
    meaning = "As above. If training images look much better than validation images, stage 1 has overfitted."
    if len(levels) > 1:
        holds = (
            f"the scales up to each hold ({sizes} codes)."
            if run.params.stage1_vqvae.scales.sides
            else f"each level alone holds, coarsest first ({sizes} codes); the other levels are replaced by their mean."
        )
        meaning = (
            "The first row of each band shows images, the last one their reconstructions. The rows between show what "
            + holds
        )
    else:
        section.notes.append("The model has one level of codes, so there is nothing to show level by level.")
    for split, name in (("validation", "validation images"), ("train", "training images")):
        section.add(
            f"{name.capitalize()}, from each level" if len(levels) > 1 else f"{name.capitalize()}",
            [picture_of(RECONSTRUCT / f"{split}.png", f"Rows of {name}, each above its reconstruction")],
            meaning,
            "The more alike, the better.",
            f"32 {name} at most.",
        )
    if not RECONSTRUCT.is_dir():
        section.notes.append(
            "Pictures of training and validation images are missing: run `python -m stage1_vqvae.reconstruct`."
        )
    if "reconstruction.ssim" in run.unavailable:
        section.notes.append(f"There is no SSIM: {run.unavailable['reconstruction.ssim']}.")
    return section


def _test_images(run: Published) -> str:
    return count(run.evaluated["images"]["test"], "test image")


def label_bits(run: Published) -> dict[str, float]:
    """The bits per dimension of an image's label inside the rates of counts and prior, which metrics.json adds up."""
    layout, found = run.codes.layout, run.evaluated
    bits = {}
    for name in ("counts", "prior"):
        codes = layout.bits_per_dim(found["nats_per_token"][name] * layout.num_tokens)
        bits[name] = max(0.0, found["bits_per_dim"][f"rate_{name}"] - codes)
    return {name: value if value > 1e-9 else 0.0 for name, value in bits.items()}


def account(run: Published) -> Section:
    """The bits of an image under each prior."""
    section, bits, labels = Section("bits", "The account in bits"), run.evaluated["bits_per_dim"], label_bits(run)
    rows, table = {}, []
    for name in ("uniform", "counts", "prior"):
        label = labels.get(name, 0.0)
        parts = {"distortion": bits["distortion"]} if "distortion" in bits else {}
        parts["codes"] = bits[f"rate_{name}"] - label
        if any(labels.values()):
            parts["label"] = label
        rows[name] = parts
        table.append([name, *(f"{value:.4f}" for value in parts.values()), f"{sum(parts.values()):.4f}"])
    of_codes = {name: {part: v for part, v in parts.items() if part != "distortion"} for name, parts in rows.items()}
    exact = "rate_prior_standard_error" not in bits
    section.add(
        "Bits per dimension of a test image",
        [
            bars(rows, "bits per dimension") if "distortion" in bits else None,
            bars(of_codes, "bits per dimension", "The codes alone"),
            Table("", ["prior", *rows["prior"], "total"], table),
        ],
        "An upper bound of what it takes to write an image down, for each of its values: first its codes, then the "
        "pixels given the codes (the distortion)"
        + (", and the label, which a conditional prior must be told" if any(labels.values()) else "")
        + ". `uniform` is the prior that the VQ-VAE was trained under, `counts` only counts how often each code occurs "
        "at each place, `prior` is the learned one. What the prior saves against counts is what it knows of how codes "
        "go together.",
        "Shorter is better. A rate compares only between priors of the same codes.",
        f"Mean over {_test_images(run)}."
        + (
            ""
            if exact
            else f" The prior's rate is itself a bound, estimated to ± {bits['rate_prior_standard_error']:.4f}."
        ),
    )
    if "bits_per_dim.distortion" in run.unavailable:
        reason = run.unavailable["bits_per_dim.distortion"]
        section.notes.append(f"There is no distortion in bits, and so no total: {reason}.")
    return section


def copies(run: Published) -> Section:
    """The samples that are nearest to training images."""
    section, found = Section("copies", "Nearest training images"), run.evaluated.get("memorisation")
    if not found:
        section.notes.append(f"Nearest training images were not looked for: {_why_not(run)}.")
        return section
    section.add(
        "The samples that are nearest to training images, above these",
        [
            picture_of(
                paths.RESULTS / "evaluate" / "images" / "closest.png",
                "Rows of samples, each above the training image that is nearest to it",
            )
        ],
        f"If pairs are the same image, the model has learned training images by heart. To tell, take a sample and a "
        f"test image at random: in {found['nearer_than_test']:.0%} of such pairs the sample is the one with the nearer "
        f"training image. The median distance to the nearest training image is "
        f"{found['sample_distance']:.3g} for samples and {found['test_distance']:.3g} for test images, in the features "
        f"of {found['features']}.",
        "About 50% is best: samples are as near as test images, which are no copies. Far above it, samples may be "
        "copies. Far below it, samples look less like training images than test images do.",
        f"{count(found['samples'], 'sample')}, {count(found['test_images'], 'test image')}, "
        f"{count(found['training_images'], 'training image')}; the picture shows the 24 nearest pairs at most.",
    )
    return section


def _why_not(run: Published) -> str:
    """Why nothing was compared in the features of a network."""
    return run.unavailable.get("distribution", "the evaluation left them out")


def distances(run: Published) -> Section:
    """How far reconstructions and samples are from test images, in the features of a network."""
    section, found = Section("distances", "Distances to real images"), run.evaluated.get("distribution")
    if not found:
        section.notes.append(f"Distances were not measured: {_why_not(run)}.")
        return section
    names = {
        "kid": LOWER,
        "frechet_distance": LOWER,
        "precision": HIGHER,
        "recall": HIGHER,
        "density": HIGHER,
        "coverage": HIGHER,
    }
    rows = []
    for key, title in COMPARISONS.items():
        one = found.get(key, {})
        cells = [f"{one[name]:.4g}" if name in one else "-" for name in names]
        if "kid_interval" in one:
            cells[0] += " ({:.4g} to {:.4g})".format(*one["kid_interval"])
        rows.append([title, *cells, f"{one.get('images', 0):,}"])
    head = [
        "compared with the test images",
        *(f"{TITLES.get(name, name)} ({way})" for name, way in names.items()),
        "images",
    ]
    section.add(
        f"In the features of {found['features']}",
        [Table("", head, rows)],
        "How far images that the model shows are from real ones as a set. The floor is what two sets of real images "
        "differ by; a good model is near it. Go by the KID where images are few; brackets hold 95% of "
        "repetitions.",
        DIRECTIONS[LOWER][:-1] + " for KID and Fréchet distance, higher for the others, up to the floor's own values.",
        f"{_test_images(run)} against the number of images in the last column.",
    )
    section.notes += sorted({one["note"] for one in found.values() if isinstance(one, dict) and "note" in one})
    return section
