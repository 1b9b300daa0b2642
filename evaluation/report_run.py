"""The sections of the report that say what was run, and how: headlines, curves, parameters, times, versions."""

from __future__ import annotations

import hashlib
from importlib import import_module, metadata
from pathlib import Path

from evaluation.choices import fixed_choice
from evaluation.figures import better, in_order
from evaluation.findings import Finding, findings, of_a_curve
from evaluation.lineage import FOLDERS
from evaluation.report_charts import short
from evaluation.report_curves import WHO
from evaluation.report_page import DIRECTIONS, Card, Section, Table
from evaluation.report_published import Curve, Published, count
from evaluation.usage import measured
from tessera import paths, times
from tessera.artifacts.manifests import read_manifest
from tessera.cli.compare.comparison import TRAINED, ended_early, number
from tessera.cli.compare.revisions import git
from tessera.cli.fingerprint import PIPELINE, stages
from tessera.errors import UserError
from tessera.project import PACKAGES

# Of each headline: its name, what it means, and on which images it was measured.
CARDS = {
    "evaluate:bits_per_dim.total_prior": (
        "Total bits per dimension",
        "Codes and pixels of a test image together.",
        "test",
    ),
    "evaluate:bits_per_dim.distortion": (
        "Distortion, bits per dimension",
        "The pixels of an image, given its codes.",
        "test",
    ),
    "evaluate:bits_per_dim.rate_prior": (
        "Rate, bits per dimension",
        "The codes of an image, and its label where the prior is told it.",
        "test",
    ),
    "evaluate:reconstruction.nmse": ("NMSE", "Squared error of reconstructions over the variance of pixels.", "test"),
    "evaluate:reconstruction.ssim": ("SSIM", "How alike reconstructions and images are; 1 is the same.", "test"),
    "evaluate:codebook.usage": ("Codebook usage", "The share of the codes that occur.", "test"),
    "evaluate:classifier.real_accuracy": ("Classifier, test images", "The share that it gives the true class.", "test"),
    "evaluate:classifier.sample_agreement": (
        "Classifier, samples",
        "The share that it gives the class that was asked for.",
        "samples",
    ),
    "evaluate:classifier.unguided_agreement": (
        "Classifier, unguided samples",
        "The same at temperature 1, without guidance.",
        "samples",
    ),
    "evaluate:distribution.reconstructions.kid": (
        "KID of reconstructions",
        "Distance to the test images, in a network's features: about 0 where nothing differs.",
        "test",
    ),
    "evaluate:distribution.default.kid": (
        "KID of samples",
        "Distance to the test images, in a network's features: about 0 where nothing differs.",
        "samples",
    ),
}
SHARES = ("usage", "accuracy", "agreement")  # ends of the names of figures that are shown in per cent
CRITERIA = {"train_vqvae": "distortion", "train_prior": "nats_per_token", "train_classifier": "cross_entropy"}
LIBRARIES = ("torch", "torchvision", "accelerate", "transformers", "datasets", "dvc", "numpy", "pillow", "torchmetrics")


def summary(run: Published) -> Section:
    """What the figures say in words, and the headlines."""
    section = Section("summary", "In short")
    images = run.evaluated["images"]
    rows = fixed_choice(len(run.codes["test"]), images["test"])
    config = read_manifest(paths.VQVAE, "vqvae", contents=False).read_json("config.json")
    said = findings(run.evaluated, measured(run.codes["test"], rows, run.codes.layout, config), run.params)
    for stage in ("train_vqvae", "train_prior"):
        if stage == "train_vqvae" and run.params.stage1_vqvae.objective.adversarial.weight:
            continue  # the newest weights are published, and the distortion may rise
        curve, training = run.curve(stage, "validation"), run.params.trainings().get(f"{TRAINED[stage]}.training")
        for who, name in _criteria(stage, curve):
            what, patient = name.partition("_level_")[0].replace("_", " "), bool(training and training.patience)
            said += of_a_curve(who, what, curve.get("step", []), curve.get(name, []), patient)
    said += [Finding(f"{note[0].upper()}{note[1:]}.") for note in map(_plain, ended_early(run.run))]
    section.findings = sorted(said, key=lambda finding: not finding.advice)
    section.notes = [note.removeprefix("workspace: ") + "." for note in run.run.notes]
    section.notes += [f"Not measured: {name.replace('_', ' ')}, since {reason}." for name, reason in _missing(run)]
    over = {"test": f"{count(images['test'], 'test image')}.", "samples": f"{count(images['samples'], 'sample')}."}
    for name, (title, what, which) in CARDS.items():
        if number(value := run.figure(name)):
            shown = f"{value:.1%}" if name.endswith(SHARES) else short(value)
            section.cards.append(Card(title, shown, what, DIRECTIONS[better(name)], over[which]))
    return section


def _criteria(stage: str, curve: Curve) -> list[tuple[str, str]]:
    """Who was trained, for a person, and the figure by which its best weights were chosen.

    The links of a chain have a criterion each: the published weights of each link are those of its own best step.
    """
    levels = [name.removeprefix("best_step_") for name in curve if name.startswith("best_step_level_")]
    if stage == "train_prior" and levels:
        return [(f"The prior of level {int(each[6:]) + 1}", f"{CRITERIA[stage]}_{each}") for each in levels]
    return [(WHO[stage], "objective" if stage == "train_vqvae" and "objective" in curve else CRITERIA[stage])]


def _plain(note: str) -> str:
    """A note on a training that ended early, with its name for a person."""
    for stage, who in WHO.items():
        note = note.replace(f"{stage} ended", f"{who} ended")
    return note.removeprefix("workspace: ")


def _missing(run: Published) -> list[tuple[str, str]]:
    """The figures that could not be measured, and why; a reason that several share is said once, of the first."""
    found: dict[str, str] = {}
    for name, reason in run.unavailable.items():
        found.setdefault(reason, name)
    return [(name, reason) for reason, name in found.items()]


def what_was_run(run: Published) -> Section:
    """Parameters, data, times, hashes and versions."""
    section = Section("run", "What was run")
    if run.differences is None:
        section.notes.append("The default parameters (presets/digits.yaml) are not here, so no differences are shown.")
    elif run.differences:
        rows = [[one.path, one.value, one.default] for one in run.differences]
        section.tables.append(
            Table("Parameters that differ from the defaults", ["parameter", "this run", "default"], rows)
        )
    else:
        section.notes.append("All parameters are the default ones.")
    section.tables += [_data(run), *_times(run, section), _hashes(), _versions(), _figures(run)]
    return section


def _data(run: Published) -> Table:
    stats = run.prepared.stats
    channels, height, width = stats.image_shape
    rows = [
        ["source", str(run.params.data.source)],
        ["size", f"{height} x {width}, {'grey' if channels == 1 else 'RGB'}"],
    ]
    rows += [[f"{split} images", f"{stats.images[split]:,}"] for split in paths.SPLITS]
    classes = ", ".join(stats.classes[:30]) + (", ..." if len(stats.classes) > 30 else "") if stats.classes else ""
    rows.append(
        ["classes", f"{stats.num_classes:,}: {classes}" if stats.classes else "none: the images have no labels"]
    )
    grids = "; ".join(f"{v.height} x {v.width} x {v.depth} of {v.codebook_size:,}" for v in run.codes.layout.levels)
    rows.append(["codes of an image", f"{run.codes.layout.num_tokens:,}: {grids}"])
    return Table("Images and codes", [], rows)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _times(run: Published, section: Section) -> list[Table]:
    """The time and the machine of each stage, where they were recorded in this folder."""
    modules = {name: module for name, module in (stages() if PIPELINE.is_file() else {}).items() if name != "report"}
    rows, total = [], 0.0
    for name, module in modules.items():
        found = times.recorded(module, import_module(module).USES, run.params)
        if found is None:
            rows.append([name, "not recorded", ""])
            continue
        spent = found["seconds"] + found["interrupted"]
        total += spent
        lost = (
            f", of which {duration(found['interrupted'])} in starts that were interrupted"
            if found["interrupted"] >= 1
            else ""
        )
        where = found["gpu"] or found["processor"]
        many = f"{count(found['processes'], 'process', 'processes')} of {count(found['threads'], 'thread')}"
        rows.append(
            [name, duration(spent) + lost, f"{where}; {many}; Python {found['python']}, torch {found['torch']}"]
        )
    if not total:
        section.notes.append("Times of stages are not recorded in this folder: the results were made elsewhere.")
        return []
    rows.append(["together", duration(total), ""])
    return [Table("Time of each stage, and where it ran", ["stage", "time", "machine"], rows)]


def _hashes() -> Table:
    rows = []
    for kind, folder in FOLDERS.items():
        rows.append([folder.as_posix(), read_manifest(folder, kind, contents=False).identity[:16]])
    prints = sorted(paths.FINGERPRINTS.glob("*.json"))
    if prints:
        together = hashlib.sha256(b"".join(file.read_bytes() for file in prints)).hexdigest()
        rows.append(["code and parameters of all stages", together[:16]])
    try:
        commit = (git("rev-parse", "HEAD") or b"").decode().strip()
        edited = git("status", "--porcelain", "--", *PACKAGES) if commit else b""
    except UserError:  # there is no Git
        commit, edited = "", b""
    if commit:
        rows.append(["Git commit", commit[:16] + (", with edits of the code" if edited else "")])
    return Table("Hashes (the first 16 digits; SHA-256, but for the commit)", [], rows)


def _versions() -> Table:
    import platform

    rows = [["python", platform.python_version()]]
    for name in LIBRARIES:
        try:
            rows.append([name, metadata.version(name)])
        except metadata.PackageNotFoundError:
            rows.append([name, "not installed"])
    return Table("Versions that made this report", [], rows, folded=True)


def _figures(run: Published) -> Table:
    """Every figure of every stage."""
    rows = [
        [name, short(value) if number(value) else str(value), better(name) or ""]
        for name in in_order(run.run.figures)
        if not isinstance(value := run.figure(name), list | dict)
    ]
    return Table("Every figure of every stage", ["figure (stage:name)", "value", "better"], rows, folded=True)


def lead(run: Published) -> list[str]:
    """The lines below the title."""
    stage1, stats = run.params.stage1_vqvae, run.prepared.stats
    channels, height, width = stats.image_shape
    classes = f" of {count(stats.num_classes, 'class', 'classes')}" if stats.classes else ", without labels"
    return [
        f"{count(stats.images['train'], 'training image')}{classes}, {height} x {width} pixels, "
        f"{'grey' if channels == 1 else 'in colour'}. A VQ-VAE (network {stage1.network.name}, quantizer "
        f"{stage1.quantizer.name}) turns each into {run.codes.layout.num_tokens:,} codes; a prior "
        f"({run.params.stage2_prior.name}) has learned how codes go together. New images are samples of the prior, "
        "decoded. Figures are measured once, on test images."
    ]


def title(run: Published) -> str:
    """The page's title, after the images."""
    return f"Report of a run on {Path(str(run.params.data.source)).name}"
