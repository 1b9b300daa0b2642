"""Experiments through DVC, on a pipeline that is trained: other priors, their figures, and parts that a user adds."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc_projects import commit, copy_code, copy_wiring
from dvc_stages import dvc
from ruamel.yaml import YAML
from stage_fingerprints import REPOSITORY

from tessera.cli.preset import edit, leaves
from tessera.parameters.parts import options


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default pipeline, run with the uniform prior, every training a few steps short."""
    project = tmp_path_factory.mktemp("digits") / "project"
    copy_wiring(REPOSITORY, project)
    copy_code(REPOSITORY, project)
    changes = {"stage2_prior.name": "uniform", "sampling.images": 20, "sampling.grid_columns": 2}
    for section in ("stage1_vqvae", "classifier", "stage2_prior"):
        few = {"steps": 20, "warmup_steps": 2, "validate_every": 10}
        changes |= {f"{section}.training.{key}": value for key, value in few.items()}
    edit(project / "params.yaml", changes)
    dvc(project, "repro")
    commit(project, "first run")
    return project


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in options("stage2_prior.priors") if name != "uniform"]
)  # which is there at first
def test_every_prior_is_one_experiment_that_leaves_stage_1_alone(digits, name):
    vqvae = (digits / "models" / "vqvae" / "manifest.json").read_bytes()
    said = dvc(digits, "exp", "run", "-S", f"stage2_prior.name={name}")
    assert re.findall(r"Running stage '(\w+)'", said) == [
        "fingerprint",
        "train_prior",
        "sample",
        "evaluate",
        "report",
    ]
    assert (digits / "models" / "vqvae" / "manifest.json").read_bytes() == vqvae
    assert json.loads((digits / "models" / "prior" / "config.json").read_text(encoding="utf-8"))["name"] == name
    bits = json.loads((digits / "results" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["bits_per_dim"]
    assert bits["total_prior"] == pytest.approx(bits["distortion"] + bits["rate_prior"])
    assert (digits / "results" / "sample" / "grid.png").is_file()


@pytest.mark.slow
def test_dvc_shows_few_figures_of_an_experiment_and_compare_finds_it_by_its_name(digits):
    dvc(digits, "exp", "run", "-n", "by-counts", "-S", "stage2_prior.name=counts")
    shown = next(csv.reader(dvc(digits, "exp", "show", "--only-changed", "--csv").splitlines()))
    assert len(shown) < 40, shown
    figures = json.loads(dvc(digits, "metrics", "show", "--json"))[""]["data"]
    assert list(figures) == ["results/evaluate/headlines.json"]
    assert len(leaves(figures["results/evaluate/headlines.json"]["data"])) == 12
    command = [sys.executable, "-m", "tessera", "compare", "HEAD", "by-counts", "--csv", "compared.csv"]
    done = subprocess.run(command, cwd=digits, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 120
    with (digits / "compared.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert (rows["stage2_prior.name"]["HEAD"], rows["stage2_prior.name"]["by-counts"]) == ("uniform", "counts")
    rate = json.loads((digits / "results" / "evaluate" / "metrics.json").read_text())["bits_per_dim"]["rate_prior"]
    assert float(rows["evaluate:bits_per_dim.rate_prior"]["by-counts"]) == rate
    (digits / "compared.csv").unlink()


def described_files() -> dict[str, str]:
    """The files that docs/add_your_own.md tells a reader to write, and the lines of params.yaml, by section."""
    page = (REPOSITORY / "docs" / "add_your_own.md").read_text(encoding="utf-8")
    return dict(re.findall(r"(?m)^`([^`]+)`:\n\n```\w+\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))


@pytest.mark.slow
def test_a_part_is_one_file_and_one_section(digits):
    """The page on adding parts, followed to the letter: nothing runs again, and what was added trains."""
    found = described_files()
    files = {name: text for name, text in found.items() if name.endswith(".py")}
    sections = {name: text for name, text in found.items() if name not in files}
    assert sorted(files) == ["stage1_vqvae/quantizers/scalar.py", "stage2_prior/priors/histogram.py"]
    for name, text in files.items():
        (digits / name).write_text(text, encoding="utf-8")
    params = (digits / "params.yaml").read_text(encoding="utf-8")
    for name, text in sections.items():
        kind = name.split(".")[-1]
        params = re.sub(
            rf"(?m)^( *){kind}:$", lambda found, text=text: f"{found[0]}\n{indented(text, found[1])}", params
        )
    (digits / "params.yaml").write_text(params, encoding="utf-8")
    assert re.findall(r"Running stage '(\w+)'", dvc(digits, "repro")) == ["fingerprint"]

    yaml = YAML()  # and no `edit`, which knows the options of this checkout alone
    tree = yaml.load((digits / "params.yaml").read_text(encoding="utf-8"))
    tree["stage1_vqvae"]["quantizer"]["name"], tree["stage2_prior"]["name"] = "scalar", "histogram"
    yaml.dump(tree, digits / "params.yaml")
    dvc(digits, "repro")
    for model, part, name in (("vqvae", "quantizer", "scalar"), ("prior", None, "histogram")):
        config = json.loads((digits / "models" / model / "config.json").read_text(encoding="utf-8"))
        assert (config[part] if part else config)["name"] == name
    assert "Running stage" not in dvc(digits, "repro")


def indented(text: str, outer: str) -> str:
    """Lines as they stand below a key that is indented by `outer`."""
    return "\n".join(f"{outer}  {line}" for line in text.rstrip().splitlines())
