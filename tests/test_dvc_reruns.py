"""What DVC runs again after a change of parameters or code, what it watches, and which files it leaves to Git."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from dvc_projects import commit, copy_code, copy_wiring
from dvc_stages import dvc, resolved
from ruamel.yaml import YAML
from stage_fingerprints import STAGES

from tessera import project as code
from tessera.cli.fingerprint import stages as modules
from tessera.cli.preset import edit

# What follows from each stage's outputs, itself included.
FOLLOWING = {
    "prepare": STAGES,
    "train_vqvae": [stage for stage in STAGES if stage not in ("prepare", "train_classifier")],
    "refine_decoder": ["refine_decoder", "report"],  # and, where sampling.decoder is refined, those that draw with it
    "extract_codes": ["extract_codes", "train_prior", "sample", "evaluate", "report"],
    "train_prior": ["train_prior", "sample", "evaluate", "report"],
    "train_classifier": ["train_classifier", "evaluate", "report"],
    "sample": ["sample", "evaluate", "report"],
    "evaluate": ["evaluate", "report"],
}
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
    constant = out.parts[:3] == ("models", "decoders", "likelihood")
    out.write_text(json.dumps({"value": "constant" if constant else str(uuid.uuid4())}))
with open(".git/ran", "a") as log:
    log.write(name + "\\n")
"""


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Path:
    """A copy of the wiring that a test may change."""
    return copy_wiring(repository, tmp_path / "project")


@pytest.fixture
def stubbed(project: Path, repository: Path) -> Path:
    """The project with stub commands for every stage but `fingerprint`, after a first `dvc repro`."""
    copy_code(repository, project)
    stages, yaml = resolved(project), YAML()
    tree = yaml.load((project / "dvc.yaml").read_text(encoding="utf-8"))
    for name, module in modules(project / "dvc.yaml").items():
        outs = json.dumps(stages[name]["outs"])
        tree["stages"][name]["cmd"] = f"{sys.executable} stub.py {name} '{outs}' -m {module}"
    yaml.dump(tree, project / "dvc.yaml")
    (project / "stub.py").write_text(STUB, encoding="utf-8")
    dvc(project, "repro")
    return project


@pytest.fixture
def rerun(stubbed: Path) -> Callable[[dict[str, Any]], list[str]]:
    """Change parameters, `dvc repro`, and tell which stages ran; then change them back."""

    def run(changes: dict[str, Any]) -> list[str]:
        (stubbed / ".git" / "ran").unlink(missing_ok=True)
        edit(stubbed / "params.yaml", changes)
        dvc(stubbed, "repro")
        log = stubbed / ".git" / "ran"
        return log.read_text(encoding="utf-8").split() if log.exists() else []

    return run


def test_prepare_watches_the_folder_that_params_name(project):
    edit(project / "params.yaml", {"data.watch": "pictures"})
    assert "pictures" in resolved(project)["prepare"]["deps"]


def test_what_a_run_writes_is_ignored_beforehand_or_kept_for_git(project):
    """DVC edits .gitignore for a cached output that Git does not ignore yet; metrics and curves stay visible to Git."""
    with Repo(str(project)) as repo:
        outs = [out for stage in repo.index.stages for out in stage.outs]
        for out in outs:
            assert repo.scm.is_ignored(out.fs_path) == out.use_cache, out.def_path
        assert not repo.scm.is_ignored(str(project / "dvc.lock")), "DVC could not record experiments"
        for other in (".state/train_vqvae", "data/photographs/1.png", "dvc_plots/index.html"):
            assert repo.scm.is_ignored(str(project / other)), other
        assert repo.dvcignore.is_ignored_dir(str(project / ".state"))


@pytest.mark.slow
def test_dvc_reruns_exactly_what_a_change_concerns(rerun, stubbed):
    gitignore = (stubbed / ".gitignore").read_text(encoding="utf-8")
    assert rerun({}) == []
    for nothing in ("stage2_prior.pixelcnn.kernel_size", "runtime.log_every"):
        assert rerun({nothing: 5}) == [], nothing
    assert json.loads(dvc(stubbed, "status", "--json")) == {}
    cases = {
        "sampling.temperature": (0.5, "sample"),
        "stage2_prior.name": ("pixelcnn", "train_prior"),
        "stage2_prior.pixelcnn.kernel_size": (7, "train_prior"),
        "stage2_prior.layers": (3, "train_prior"),
        "extract_codes.shift": (0, "extract_codes"),
        "stage1_vqvae.training.steps": (700, "train_vqvae"),
        "classifier.training.steps": (300, "train_classifier"),
        "data.split_seed": (1, "prepare"),
        "evaluation.images": (100, "evaluate"),
        "evaluation.features.name": ("none", "evaluate"),
        "classifier.name": ("none", "train_classifier"),
        "refine_decoder.name": ("objective", "refine_decoder"),
    }
    for path, (value, stage) in cases.items():
        assert sorted(rerun({path: value})) == sorted(FOLLOWING[stage]), path
    drawing = ["evaluate", "reconstruct", "report", "sample"]
    assert sorted(rerun({"sampling.decoder": "refined"})) == drawing
    assert sorted(rerun({"refine_decoder.training.steps": 600})) == [
        "evaluate",
        "reconstruct",
        "refine_decoder",
        "report",
        "sample",
    ]
    assert (stubbed / ".gitignore").read_text(encoding="utf-8") == gitignore, "DVC edited .gitignore"


@pytest.mark.slow
def test_dvc_reruns_exactly_what_an_edit_of_code_concerns(rerun, stubbed):
    for file in sorted(file for room in code.PACKAGES for file in (stubbed / room).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        file.write_text(f"# a thought\n{text}\n# another\n", encoding="utf-8")
    assert rerun({}) == []
    edits = {
        "stage1_vqvae/quantizers/fsq.py": [],  # not chosen
        "stage2_prior/priors/pixelcnn.py": [],
        "sampling/complete.py": [],  # no stage
        "evaluation/metrics.py": FOLLOWING["evaluate"],
        "evaluation/report_charts.py": ["report"],
        "evaluation/train_classifier.py": FOLLOWING["train_classifier"],
        "sampling/sample.py": FOLLOWING["sample"],
        "stage1_vqvae/reconstruct.py": ["reconstruct", "report"],
        "stage1_vqvae/extract.py": FOLLOWING["extract_codes"],
        "stage1_vqvae/quantizers/vq.py": FOLLOWING["train_vqvae"],
        "stage0_images/pixels.py": FOLLOWING["prepare"],
    }
    for file, expected in edits.items():
        text = (stubbed / file).read_text(encoding="utf-8")
        (stubbed / file).write_text(f"{text}\nADDED = 1\n", encoding="utf-8")
        assert sorted(rerun({})) == sorted(expected), file


@pytest.mark.slow
def test_a_typo_anywhere_stops_before_anything_is_deleted(stubbed):
    before = {path: path.read_bytes() for path in stubbed.rglob("*") if path.is_file() and ".git" not in path.parts}
    for section in ("stage2_prior.chain", "stage1_vqvae.quantizer.residual", "runtime", "sampling"):
        text = (stubbed / "params.yaml").read_text(encoding="utf-8")
        tree = YAML().load(text)  # and no `edit`, which refuses an unknown parameter
        reduce(getitem, section.split("."), tree)["typo"] = 1
        YAML().dump(tree, stubbed / "params.yaml")
        failed = dvc(stubbed, "repro", fails=True)
        assert f"{section}.typo: unknown parameter" in failed and "Running stage 'fingerprint'" in failed
        (stubbed / "params.yaml").write_text(text, encoding="utf-8")
        gone = [path for path, content in before.items() if not path.is_file() or path.read_bytes() != content]
        assert not [path for path in gone if "fingerprint" not in path.parts and ".dvc" not in path.parts]


@pytest.mark.slow
def test_an_experiment_swaps_the_prior_and_leaves_the_rest(stubbed):
    commit(stubbed, "first run")
    (stubbed / ".git" / "ran").unlink()
    dvc(stubbed, "exp", "run", "-S", "stage2_prior.name=counts")
    assert sorted((stubbed / ".git" / "ran").read_text(encoding="utf-8").split()) == sorted(FOLLOWING["train_prior"])
    shown = json.loads(dvc(stubbed, "exp", "show", "--json"))
    assert "counts" in json.dumps(shown)
    assert list(json.loads(dvc(stubbed, "metrics", "diff", "--json"))) == ["results/evaluate/headlines.json"]
    assert json.loads(dvc(stubbed, "params", "diff", "--json"))["params.yaml"] == {
        "stage2_prior.name": {"old": "transformer", "new": "counts"}
    }


@pytest.mark.slow
def test_fingerprints_do_not_depend_on_the_order_of_sets(repository, tmp_path):
    """The tests above share one order, as their commands are forked from one process."""
    project, found = copy_wiring(repository, tmp_path / "project"), []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(repository), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "tessera", "fingerprint"], cwd=project, env=environment, check=True)
        found.append({path.name: path.read_bytes() for path in (project / "results/fingerprint").iterdir()})
    assert found[0] == found[1] and len(found[0]) > 5


@pytest.mark.slow
def test_after_a_failed_prepare_the_images_are_there_by_hand_and_come_back_from_the_cache_of_dvc(project, repository):
    def images():
        return {path.name: path.read_bytes() for path in (project / "data" / "prepared").glob("*") if path.is_file()}

    copy_code(repository, project)
    dvc(project, "repro", "prepare")
    before = images()
    (project / "broken").mkdir()
    for number in range(5):
        (project / "broken" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    edit(project / "params.yaml", {"data.source": "broken", "data.watch": "broken"})
    by_hand = [sys.executable, "-m", "stage0_images.prepare"]
    done = subprocess.run(by_hand, cwd=project, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 2 and "1.png" in done.stderr, done.stderr
    assert before and images() == before
    assert "1.png" in dvc(project, "repro", "prepare", fails=True)
    assert not images()
    dvc(project, "checkout", "data/prepared")
    assert images() == before
