"""dvc.yaml as DVC resolves it: what stages depend on and write, and what DVC shows of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from dvc_projects import copy_wiring
from dvc_stages import resolved
from stage_fingerprints import STAGES

from tessera import paths
from tessera import project as code
from tessera.parameters import read_yaml

ARTIFACTS = ("PREPARED", "CODES", "VQVAE", "DECODERS", "PRIOR", "CLASSIFIER", "SAMPLES")
PUBLISHED = {getattr(paths, name).as_posix() for name in ARTIFACTS}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The stages as DVC resolves them with the repository's own params.yaml."""
    return resolved(copy_wiring(Path(__file__).parent.parent, tmp_path_factory.mktemp("wiring") / "project"))


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
    assert list(read_yaml(repository / "dvc.yaml")["stages"]) == ["fingerprint", *STAGES]
    assert sorted(stages) == sorted(["fingerprint", *STAGES])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_depends_on_its_fingerprint_and_on_no_code(stage, stages):
    assert f"results/fingerprint/{stage}.json" in stages[stage]["deps"]
    assert f"results/fingerprint/{stage}.json" in stages["fingerprint"]["outs"]
    assert not [dep for dep in stages[stage]["deps"] if dep.endswith(".py") or dep in code.PACKAGES]


def test_the_fingerprint_is_made_of_all_code_and_parameters(stages):
    assert set(stages["fingerprint"]["deps"]) == {*code.PACKAGES, "params.yaml"}


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
    decoders = paths.DECODERS.as_posix()  # of which a stage depends on the chosen one
    listed = {decoders if path.startswith(decoders) else path for path in found["deps"] + found["outs"]} & PUBLISHED
    assert listed == wanted, f"dvc.yaml, stage {stage}: missing {wanted - listed}, extra {listed - wanted}"


def test_no_command_names_a_machine(stages):
    for name, stage in stages.items():
        for flag in ("num_processes", "num_machines", "mixed_precision", "gpu", "cpu", "precision"):
            assert flag not in stage["cmd"], f"{name}: {flag} would make every other machine train again"


def test_every_plot_reads_what_a_stage_writes(repository, stages):
    outs = {out for stage in stages.values() for out in stage["outs"]}
    for plot in read_yaml(repository / "dvc.yaml")["plots"]:
        files = [plot] if isinstance(plot, str) else list(next(iter(plot.values()))["y"])
        for file in files:
            assert any(file == out or file.startswith(f"{out}/") for out in outs), file


def test_dvc_has_few_plots_to_show(repository):
    assert len(read_yaml(repository / "dvc.yaml")["plots"]) <= 12
