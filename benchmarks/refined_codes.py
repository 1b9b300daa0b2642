"""What refined codes gain and cost: one VQ-VAE, one prior recipe, codes with and without `extract_codes.refine`.

    python benchmarks/refined_codes.py PRESET DATASET --folder SCRATCH --refine 0
    python benchmarks/refined_codes.py PRESET DATASET --folder SCRATCH --refine 50 [--set PATH=VALUE ...]

A command is a row. The product's own stages run in --folder, which is kept. `prepare` and `train_vqvae` run once for
all rows of a folder. Then `extract_codes` with --refine steps, `train_prior` as the preset has it, a few samples, and
`evaluate` on the test split. DATASET is a local folder, or `digits` for scikit-learn's. --set changes further values of
params.yaml, for all rows of a folder alike. A command that was interrupted goes on where its stage was. The file --rows
keeps the rows, each with the identity of its VQ-VAE and `values`, a hash of all values that change figures, except
--refine. A row of the folder's own VQ-VAE and values is not measured again. A row of another VQ-VAE does not count,
since the two differ in more than refinement.

A row has the bits per dimension of the test split: the distortion; the rate under the uniform prior, under counts and
under the learned prior; and the totals. It also has the distortion of training and validation images before and after
refinement, the share of changed tokens, and the seconds of `extract_codes` for all passes that the preset asks for. The
seconds are null where an interrupted extraction went on. The script prints the folder's rows as a table in markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from repository import REPOSITORY
from runs import RESULTS, absolute, add_row, code_of, hash_of, read_rows

from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.cli.preset import PRESETS, apply, read_changes
from tessera.errors import UserError
from tessera.parameters import load
from tessera.training.running import states_of

ONCE = {paths.PREPARED: "stage0_images.prepare", paths.VQVAE: "stage1_vqvae.train"}
ONCE |= {paths.CLASSIFIER: "evaluation.train_classifier"}
ALIKE = {"classifier.name": "none", "sampling.images": 10}  # no figure of a row comes from these two stages
SETTINGS = Path("settings.json")  # what the stages of a folder were run with
EMBEDDED = Path("data/embedded.txt")  # which `prepare` wants to see for scikit-learn's digits
DISTORTION = "bits_per_dim_distortion"
COLUMNS = ("distortion", "rate_uniform", "rate_counts", "rate_prior", "total_uniform", "total_counts", "total_prior")


def stage(module: str) -> float:
    """Run a stage here; returns its seconds."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    if subprocess.run([sys.executable, "-m", module], env=environment, check=False).returncode:
        raise SystemExit(f"{module} failed: what went wrong stands above; the same command goes on there")
    return time.perf_counter() - began


def figures(name: str) -> dict[str, Any]:
    return json.loads((paths.RESULTS / name / "metrics.json").read_text(encoding="utf-8"))


def begun_extractions() -> set[Path]:
    """The folders with parts of extractions that have not ended. Each is of other settings."""
    folders = states_of("extract_codes").glob("*")
    return {folder for folder in folders if next(folder.rglob("*.npy.json"), None)}


def extract() -> float | None:
    """Run `extract_codes` here; returns its seconds, or None if it went on with parts that an earlier run had made."""
    before = begun_extractions()
    seconds = stage("stage1_vqvae.extract")
    # The stage deletes the parts that it has published, and those of no other settings.
    return None if before - begun_extractions() else seconds


def settled(settings: dict[str, Any]) -> None:
    """Note what this folder is for, and refuse other settings than those that are noted."""
    noted = json.loads(SETTINGS.read_text(encoding="utf-8")) if SETTINGS.exists() else settings
    other = [name for name in settings if noted.get(name) != settings[name]]
    if other:
        shown = ", ".join(f"{name} {noted.get(name)}, and now {settings[name]}" for name in other)
        raise SystemExit(
            f"{SETTINGS.resolve()}: rows of other settings are measured here: {shown}; give another --folder"
        )
    SETTINGS.write_text(json.dumps(settings), encoding="utf-8")


def write_parameters(settings: dict[str, Any], dataset: str, refine: int) -> None:
    """Write params.yaml for `refine` steps on the images of `dataset`, a folder or `digits`."""
    shutil.copy(PRESETS / "digits.yaml", paths.PARAMS)
    source = read_changes([f"data.source={dataset}"])
    apply(paths.PARAMS, settings["preset"], source | ALIKE | settings["changes"] | {"extract_codes.refine": refine})


def values_of(settings: dict[str, Any], dataset: str) -> str:
    """A hash of the values that all rows of these settings share."""
    write_parameters(settings, dataset, 0)
    return hash_of(load(paths.PARAMS))


def trained_vqvae(settings: dict[str, Any], dataset: str, refine: int) -> str:
    """Write params.yaml, and run the stages that all rows share, unless the folder has their results. Returns the
    identity of the folder's VQ-VAE."""
    if dataset == "digits":
        EMBEDDED.parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / EMBEDDED, EMBEDDED)
    write_parameters(settings, dataset, refine)
    for folder, module in ONCE.items():
        if not folder.exists():
            stage(module)
    return read_manifest(paths.VQVAE, "vqvae").identity[:16]


def measure(named: dict[str, Any], refine: int) -> dict[str, Any]:
    """Run the stages that a row has for itself, and return the row. `named` is the part that all rows share."""
    seconds = extract()
    for module in ("stage2_prior.train", "sampling.sample", "evaluation.evaluate"):
        stage(module)
    extracted, trained, evaluated = figures("extract_codes"), figures("train_prior"), figures("evaluate")
    files = [path for room in ("stage1_vqvae", "stage2_prior") for path in (REPOSITORY / room).rglob("*.py")]
    return named | {
        "refine": refine,
        "code": code_of(*files),
        "seconds": seconds,
        "prior": trained["validation"],
        "bits_per_dim": evaluated["bits_per_dim"],
        "images": evaluated["images"]["test"],
        **{f"extracted_{split}": found for split, found in extracted.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, in the order of the steps. Distortion before and after, and changed tokens: validation images."""
    names = [name.replace("_", ", ") for name in COLUMNS]
    lines = ["| steps | " + " | ".join(names) + " | validation, before and after | tokens changed | seconds |"]
    lines.append("|" + " --- |" * (len(COLUMNS) + 4))
    for row in sorted(rows, key=lambda row: row["refine"]):
        bits, found = row["bits_per_dim"], row["extracted_validation"]
        before, changed = found.get(f"{DISTORTION}_of_the_encoder"), found.get("tokens_changed")
        cells = [f"{row['refine']:,}", *(f"{bits[name]:.4f}" for name in COLUMNS)]
        cells += ["–", "–"] if changed is None else [f"{before:.4f} to {found[DISTORTION]:.4f}", f"{changed:.1%}"]
        cells.append("–" if row["seconds"] is None else f"{row['seconds']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("dataset", help="a local folder of images or in the Hub's layout, or `digits`")
    parser.add_argument("--folder", type=absolute, required=True, help="where the stages run; kept")
    parser.add_argument("--refine", type=int, required=True, metavar="STEPS", help="0: the encoder's codes")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="further values of params.yaml")
    parser.add_argument("--rows", type=absolute, default=RESULTS / "refined_codes.jsonl", help="JSON lines")
    options = parser.parse_args()
    dataset = options.dataset if options.dataset == "digits" else str(absolute(options.dataset))
    try:
        changes = read_changes(options.set)
        settings = {"preset": options.preset, "dataset": Path(dataset).name, "changes": changes}
        settings["values"] = values_of(settings, dataset)
        options.folder.mkdir(parents=True, exist_ok=True)
        os.chdir(options.folder)
        settled(settings)
        named = settings | {"vqvae": trained_vqvae(settings, dataset, options.refine)}
        mine = [row for row in read_rows(options.rows) if {key: row.get(key) for key in named} == named]
        if options.refine not in [row["refine"] for row in mine]:
            mine.append(measure(named, options.refine))
            add_row(options.rows, mine[-1])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"\n{table(mine)}\nMeasured with the code {', '.join(sorted({row['code'] for row in mine}))}.")


if __name__ == "__main__":
    main()
