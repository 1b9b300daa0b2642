"""dvc.yaml as DVC resolves it: what a stage lists is what its entry point imports and what its parameters are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tessera import paths
from tessera.cli.preset import apply, leaves
from tessera.parameters import read_yaml

# Which stage uses what; `runtime` is used by none.
STAGE_OF = {
    "data": "prepare",
    "stage1_vqvae": "train_vqvae",
    "extract_codes": "extract_codes",
    "stage2_prior": "train_prior",
    "classifier": "train_classifier",
    "sampling": "sample",
}
CHOICES = ("stage1_vqvae.network", "stage1_vqvae.quantizer", "stage1_vqvae.likelihood", "stage2_prior")
STAGES = [
    "prepare",
    "train_vqvae",
    "reconstruct",
    "extract_codes",
    "train_prior",
    "train_classifier",
    "sample",
    "evaluate",
]
ARTIFACTS = ("PREPARED", "CODES", "VQVAE", "PRIOR", "CLASSIFIER", "SAMPLES")
PUBLISHED = {getattr(paths, name).as_posix() for name in ARTIFACTS}
# What follows from each stage's outputs, itself included.
FOLLOWING = {
    "prepare": STAGES,
    "train_vqvae": ["train_vqvae", "reconstruct", "extract_codes", "train_prior", "sample", "evaluate"],
    "extract_codes": ["extract_codes", "train_prior", "sample", "evaluate"],
    "train_prior": ["train_prior", "sample", "evaluate"],
    "train_classifier": ["train_classifier", "evaluate"],
    "sample": ["sample", "evaluate"],
}


def copy_wiring(source: Path, folder: Path) -> Path:
    """The wiring alone: dvc.yaml, params.yaml and the settings of DVC and Git."""
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(source / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Path:
    """A copy of the wiring that a test may change."""
    return copy_wiring(repository, tmp_path / "project")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The stages as DVC resolves them with the repository's own params.yaml."""
    return resolved(copy_wiring(Path(__file__).parent.parent, tmp_path_factory.mktemp("wiring") / "project"))


def resolved(folder: Path) -> dict[str, dict[str, Any]]:
    """Each stage as DVC resolves it: `cmd`, `deps` (files), `params` (dotted names) and `outs`, in dvc.yaml's order."""
    with Repo(str(folder)) as repo:
        return {
            stage.name: {
                "cmd": stage.cmd,
                "deps": [dep.def_path for dep in stage.deps if not hasattr(dep, "params")],
                "params": [name for dep in stage.deps if hasattr(dep, "params") for name in dep.params],
                "outs": [out.def_path for out in stage.outs],
            }
            for stage in repo.index.stages
        }


def covering(stages: dict[str, dict[str, Any]], leaf: str) -> list[str]:
    """The stages whose parameters cover a leaf of params.yaml."""
    return [
        name
        for name, stage in stages.items()
        if any(leaf == param or leaf.startswith(f"{param}.") for param in stage["params"])
    ]


def unchosen(leaf: str, raw: dict[str, Any]) -> bool:
    """Whether a leaf belongs to an option that its choice does not name."""
    for choice in CHOICES:
        if leaf.startswith(f"{choice}."):
            node = raw
            for key in choice.split("."):
                node = node[key]
            part = leaf.removeprefix(f"{choice}.").split(".")[0]
            if part not in ("name", node["name"]):
                return True
    return False


def expected_stages(leaf: str, raw: dict[str, Any]) -> list[str]:
    section = leaf.split(".")[0]
    if leaf.startswith("stage2_prior.counts."):  # what every prior is compared with
        return ["train_prior"] * (raw["stage2_prior"]["name"] == "counts") + ["evaluate"]
    return [] if section == "runtime" or unchosen(leaf, raw) else [STAGE_OF[section]]


def entry_file(cmd: str) -> str:
    return cmd.split(" -m ")[1].split()[0].replace(".", "/") + ".py"


def reachable(file: str, imports: dict) -> set[str]:
    seen, queue = {file}, [file]
    while queue:
        new = imports[queue.pop()].own - seen
        seen |= new
        queue += new
    return seen


def test_stages_are_named_in_the_order_they_run(repository, stages):
    assert list(read_yaml(repository / "dvc.yaml")["stages"]) == STAGES
    assert sorted(stages) == sorted(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_code_a_stage_lists_is_code_it_imports(stage, stages, imports):
    found = stages[stage]
    listed = {dep for dep in found["deps"] if dep.endswith(".py")}
    wanted = reachable(entry_file(found["cmd"]), imports)
    missing, extra = sorted(wanted - listed), sorted(listed - wanted)
    assert listed == wanted, (
        f"dvc.yaml, stage {stage}: missing {missing}, extra {extra}; its code should read:\n"
        + "\n".join(f"      - {file}" for file in sorted(wanted))
    )


@pytest.mark.parametrize("stage", STAGES)
def test_data_a_stage_lists_is_data_it_names(stage, stages, imports, repository):
    """What a stage reads and publishes, by the names of common/paths.py in the code it runs."""
    found = stages[stage]
    names = set()
    for file in reachable(entry_file(found["cmd"]), imports):
        code = (repository / file).read_text(encoding="utf-8")
        names |= set(re.findall(r"\bpaths\.([A-Z]+)\b", code))
    if "MODELS" in names:  # the folder of both models of a pipeline
        names |= {"VQVAE", "PRIOR"}
    wanted = {getattr(paths, name).as_posix() for name in names & set(ARTIFACTS)}
    listed = {path for path in found["deps"] + found["outs"] if path in PUBLISHED}
    assert listed == wanted, f"dvc.yaml, stage {stage}: missing {wanted - listed}, extra {listed - wanted}"


def test_no_command_names_a_machine(stages):
    for name, stage in stages.items():
        for flag in ("num_processes", "num_machines", "mixed_precision", "gpu", "cpu", "precision"):
            assert flag not in stage["cmd"], f"{name}: {flag} would make every other machine train again"


def test_what_a_run_writes_is_ignored_beforehand_or_kept_for_git(project):
    """DVC edits .gitignore for a cached output that Git does not ignore yet; metrics and curves stay visible to Git."""
    with Repo(str(project)) as repo:
        outs = [out for stage in repo.index.stages for out in stage.outs]
        for out in outs:
            assert repo.scm.is_ignored(out.fs_path) == out.use_cache, out.def_path
        assert not repo.scm.is_ignored(str(project / "dvc.lock")), "DVC could not record experiments"
        assert repo.scm.is_ignored(str(project / ".state" / "train_vqvae"))
        assert repo.dvcignore.is_ignored_dir(str(project / ".state"))


def test_every_leaf_is_covered_by_exactly_the_stages_that_use_it(stages, raw_params):
    wrong = [
        f"{leaf}: covered by {covering(stages, leaf)}, should be {expected_stages(leaf, raw_params)}"
        for leaf in leaves(raw_params)
        if covering(stages, leaf) != expected_stages(leaf, raw_params)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("stage2_prior", "uniform"),
        ("stage2_prior", "counts"),
        *(("stage2_prior", name) for name in ("pixelcnn", "pixelsnail", "rq_transformer", "masked", "chain")),
        ("stage1_vqvae.likelihood", "discretized_logistic"),
    ],
)
def test_swapping_a_name_moves_what_is_covered(choice, name, project):
    apply(project / "params.yaml", {f"{choice}.name": name})
    raw, stages = read_yaml(project / "params.yaml"), resolved(project)
    for leaf in leaves(raw):
        assert covering(stages, leaf) == expected_stages(leaf, raw), leaf
    assert any(leaf.startswith(f"{choice}.{name}") and covering(stages, leaf) for leaf in leaves(raw))


def test_prepare_watches_the_folder_that_params_name(project):
    apply(project / "params.yaml", {"data.watch": "pictures"})
    assert "pictures" in resolved(project)["prepare"]["deps"]


def test_every_plot_reads_what_a_stage_writes(repository, stages):
    outs = {out for stage in stages.values() for out in stage["outs"]}
    for plot in read_yaml(repository / "dvc.yaml")["plots"]:
        files = [plot] if isinstance(plot, str) else list(next(iter(plot.values()))["y"])
        for file in files:
            assert any(file == out or file.startswith(f"{out}/") for out in outs), file


# Through DVC itself, with each command replaced by one that only writes the stage's outputs.

STUB = """
import json, sys, uuid
from pathlib import Path
name, outs = sys.argv[1], json.loads(sys.argv[2])
for out in map(Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.suffix:
        out.mkdir()
        out = out / "file"
    out.write_text(json.dumps({"value": str(uuid.uuid4())}))
with open(".git/ran", "a") as log:
    log.write(name + "\\n")
"""


def dvc(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # the stages' python
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_code(source: Path, project: Path) -> dict[str, dict[str, Any]]:
    """Copy every file that a stage lists; the stages as DVC resolves them."""
    stages = resolved(project)
    for stage in stages.values():
        for dep in stage["deps"]:
            if (source / dep).is_file() and not dep.startswith(("results", "models")):
                (project / dep).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / dep, project / dep)
    return stages


def commit(project: Path, message: str) -> None:
    for key, value in {"user.name": "test", "user.email": "test@example.org"}.items():
        subprocess.run(["git", "config", key, value], cwd=project, check=True)
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    subprocess.run(["git", "commit", "--quiet", "-m", message], cwd=project, check=True)


@pytest.fixture
def stubbed(project: Path, repository: Path) -> Path:
    """The project with stub commands and every file that a stage lists, after a first `dvc repro`."""
    stages = copy_code(repository, project)
    yaml = YAML()
    tree = yaml.load((project / "dvc.yaml").read_text(encoding="utf-8"))
    for name, stage in tree["stages"].items():
        outs = json.dumps(stages[name]["outs"])
        stage["cmd"] = f"{sys.executable} stub.py {name} '{outs}'"
    yaml.dump(tree, project / "dvc.yaml")
    (project / "stub.py").write_text(STUB, encoding="utf-8")
    dvc(project, "repro")
    return project


@pytest.fixture
def rerun(stubbed: Path) -> Callable[[dict[str, Any]], list[str]]:
    """Change parameters, `dvc repro`, and tell which stages ran; then change them back."""

    def run(changes: dict[str, Any]) -> list[str]:
        (stubbed / ".git" / "ran").unlink(missing_ok=True)
        apply(stubbed / "params.yaml", changes)
        dvc(stubbed, "repro")
        log = stubbed / ".git" / "ran"
        return log.read_text(encoding="utf-8").split() if log.exists() else []

    return run


@pytest.mark.slow
def test_dvc_reruns_exactly_what_a_change_concerns(rerun, stubbed):
    gitignore = (stubbed / ".gitignore").read_text(encoding="utf-8")
    assert rerun({}) == []
    for nothing in ("stage2_prior.pixelcnn.layers", "runtime.log_every"):
        assert rerun({nothing: 2}) == [], nothing
    assert json.loads(dvc(stubbed, "status", "--json")) == {}
    cases = {
        "sampling.temperature": (0.5, "sample"),
        "stage2_prior.name": ("pixelcnn", "train_prior"),
        "stage2_prior.pixelcnn.layers": (3, "train_prior"),
        "extract_codes.shift": (0, "extract_codes"),
        "stage1_vqvae.training.steps": (700, "train_vqvae"),
        "classifier.training.steps": (300, "train_classifier"),
        "data.split_seed": (1, "prepare"),
    }
    for path, (value, stage) in cases.items():
        assert sorted(rerun({path: value})) == sorted(FOLLOWING[stage]), path
    assert (stubbed / ".gitignore").read_text(encoding="utf-8") == gitignore, "DVC edited .gitignore"


@pytest.mark.slow
def test_an_experiment_swaps_the_prior_and_leaves_the_rest(stubbed):
    commit(stubbed, "first run")
    (stubbed / ".git" / "ran").unlink()
    dvc(stubbed, "exp", "run", "-S", "stage2_prior.name=counts")
    assert sorted((stubbed / ".git" / "ran").read_text(encoding="utf-8").split()) == sorted(FOLLOWING["train_prior"])
    shown = json.loads(dvc(stubbed, "exp", "show", "--json"))
    assert "counts" in json.dumps(shown)
    assert "results/train_prior/metrics.json" in dvc(stubbed, "metrics", "diff", "--json")


def priors() -> dict[str, dict[str, Any]]:
    """The sections of the priors by name."""
    return {
        k: v for k, v in read_yaml(Path(__file__).parent.parent / "params.yaml")["stage2_prior"].items() if k != "name"
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default pipeline, run with the uniform prior, every training a few steps short."""
    source, project = Path(__file__).parent.parent, tmp_path_factory.mktemp("digits") / "project"
    copy_wiring(source, project)
    copy_code(source, project)
    trained = [f"stage2_prior.{name}" for name, section in priors().items() if "training" in section]
    changes = {"stage2_prior.name": "uniform", "sampling.images": 20, "sampling.grid_columns": 2}
    for section in ("stage1_vqvae", "classifier", *trained):
        few = {"steps": 20, "warmup_steps": 2, "validate_every": 10}
        changes |= {f"{section}.training.{key}": value for key, value in few.items()}
    apply(project / "params.yaml", changes)
    dvc(project, "repro")
    commit(project, "first run")
    return project


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in priors() if name != "uniform"])  # which is there at first
def test_every_prior_is_one_experiment_that_leaves_stage_1_alone(digits, name):
    vqvae = (digits / "models" / "vqvae" / "manifest.json").read_bytes()
    said = dvc(digits, "exp", "run", "-S", f"stage2_prior.name={name}")
    assert re.findall(r"Running stage '(\w+)'", said) == ["train_prior", "sample", "evaluate"]
    assert (digits / "models" / "vqvae" / "manifest.json").read_bytes() == vqvae
    assert json.loads((digits / "models" / "prior" / "config.json").read_text(encoding="utf-8"))["name"] == name
    bits = json.loads((digits / "results" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["bits_per_dim"]
    assert bits["total_prior"] == pytest.approx(bits["distortion"] + bits["rate_prior"])
    assert (digits / "results" / "sample" / "grid.png").is_file()
