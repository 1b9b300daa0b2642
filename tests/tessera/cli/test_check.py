"""`python -m tessera check`: what can be known before a run is refused at once, in one line, without heavy imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tessera.cli import main
from tessera.parameters import read_yaml


@pytest.fixture
def check(in_tmp: Path, raw_params: dict[str, Any], capsys: pytest.CaptureFixture) -> Any:
    """`check({"data.height": 9})`: what the command prints, after "error: " if it refuses params.yaml."""
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "embedded.txt").touch()

    def run(changes: dict[str, Any]) -> str:
        for path, value in changes.items():
            *sections, key = path.split(".")
            node = raw_params
            for section in sections:
                node = node[section]
            node[key] = value
        Path("params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
        status = main(["check"])
        output, error = capsys.readouterr()
        assert status == (2 if error else 0) and (output + error).count("\n") == 1
        return output + error

    return run


def test_a_good_file_is_called_valid(check):
    assert check({}) == "params.yaml: every parameter is valid\n"
    assert "valid" in check({"data.source": "owner/name", "data.revision": "main"})
    Path("pictures").mkdir()
    assert "valid" in check({"data.source": "pictures", "data.watch": "./pictures"})


@pytest.mark.parametrize("words", [["other.yaml"], ["--params", "other.yaml"]])
def test_another_file_is_checked_if_it_is_named(check, capsys, words):
    check({})
    Path("params.yaml").rename("other.yaml")
    assert main(["check", *words]) == 0
    assert capsys.readouterr().out == "other.yaml: every parameter is valid\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.watch": "gone.txt"}, ["data.watch: 'gone.txt' is not a file", "data/embedded.txt"]),
        ({"data.watch": "data"}, ["data.watch: 'data' is not a file"]),
        ({"data.source": "gone", "data.watch": "gone"}, ["data.source: 'gone': no such folder"]),
        *(
            ({"data.source": place, "data.watch": place}, [f"data.source: '{place}': no such folder"])
            for place in ("~nobody-of-this-name/images", "loop")
        ),
        ({"data.source": "here/gone", "data.revision": "main"}, ["data.source: 'here/gone': no such folder"]),
        ({"data.source": "here"}, ["data.watch", "is not the folder of data.source", "set it to 'here' too"]),
        ({"data.source": "a/b"}, ["data.revision: required for the Hub id 'a/b'"]),
        *(
            ({"data.source": place, "data.watch": place}, [f"data.source: '{place}'", "the pipeline itself writes"])
            for place in ("data", "data/prepared", "./data/prepared/train", ".", "models", "results/sample", ".state")
        ),
        ({"data.source": "", "data.watch": ""}, ["data.source", "at least 1 character"]),
    ],
)
def test_a_source_that_is_not_there_or_in_the_way_is_refused(check, changes, words):
    Path("here").mkdir()
    Path("loop").symlink_to("loop")
    said = check(changes)
    assert said.startswith("error: ") and all(word in said for word in words), said


@pytest.mark.parametrize("section", ["stage1_vqvae", "stage2_prior"])
def test_a_model_to_begin_with_that_is_not_there_is_refused(check, section):
    said = check({f"{section}.training.initialise_from": "gone"})
    assert said.startswith(f"error: {section}.training.initialise_from: 'gone': no such folder")
    Path("gone").mkdir()
    assert "valid" in check({})


@pytest.mark.parametrize("command", ["check", "fingerprint"])
@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (
            {"runtime.processes": 3},
            [
                "stage1_vqvae.training.batch_size: 128 is the global batch and must be a multiple of the 3 processes; "
                "change one of them",
                "stage2_prior.training.batch_size: 128 is the global batch and must be a multiple of the 3 processes; "
                "change one of them",
            ],
        ),
        (
            {"runtime.processes": 5, "stage1_vqvae.training.batch_size": 10},
            ["stage2_prior.t"],
        ),
        (
            {"runtime.log_every": 1, "stage1_vqvae.training.steps": 10**7, "stage2_prior.training.steps": 10**8},
            [
                "runtime.log_every: 1: with stage1_vqvae.training.steps, train.csv would have 10,000,000 rows, all of "
                "which every saved state holds, and 1,000,000 are the most; raise log_every",
                "runtime.log_every: 1: with stage2_prior.training.steps, train.csv would have 100,000,000 rows, all of "
                "which every saved state holds, and 1,000,000 are the most; raise log_every",
            ],
        ),
    ],
)
def test_what_would_refuse_a_later_training_is_refused_at_once(check, capsys, command, changes, faults):
    said = check(changes)
    if command == "fingerprint":
        assert main(["fingerprint"]) == 2 and not Path("results").exists()
        said = capsys.readouterr().err
    assert said.startswith(f"error: {faults[0]}") and said.endswith("\n")
    assert all(said.count(fault) == 1 for fault in faults)
    assert said.count("change one of them") + said.count("raise log_every") == len(faults)


def test_batches_that_processes_share_equally_are_valid(check):
    assert "valid" in check({"runtime.processes": 4})
    assert "valid" in check({"runtime.processes": None, "stage1_vqvae.training.batch_size": 7})


@pytest.mark.parametrize("prior", [{"name": "transformer", "batch": 96}, {"name": "counts"}, {"name": "chain"}])
def test_a_batch_is_valid_where_its_training_is_not_certain(check, prior):
    """A classifier is trained only with labels, and no link of this chain is trained."""
    changes = {"stage2_prior.name": prior["name"], "stage2_prior.training.batch_size": prior.get("batch", 128)}
    changes |= {"runtime.processes": 3, "stage1_vqvae.training.batch_size": 96}
    assert "valid" in check(changes | {"stage2_prior.chain.links": [{"name": "counts"}]})


@pytest.mark.parametrize("prior", ["counts", "uniform", "transformer"])
def test_pieces_of_a_batch_are_valid_whatever_the_prior(check, prior):
    assert "valid" in check({"runtime.micro_batch": 4, "stage2_prior.name": prior})


def test_a_stand_in_that_is_gone_is_to_be_restored(check):
    Path("data/embedded.txt").unlink()
    assert "'data/embedded.txt' is not a file" in (said := check({})) and "git restore data/embedded.txt" in said


def test_a_folder_beside_what_the_pipeline_writes_is_fine(check):
    Path("data/photographs").mkdir()
    assert "valid" in check({"data.source": "data/photographs", "data.watch": "data/photographs"})


def test_a_file_in_another_encoding_or_a_folder_in_its_place_is_one_line(in_tmp, repository, capsys):
    Path("params.yaml").write_text((repository / "params.yaml").read_text(encoding="utf-8"), encoding="utf-16")
    assert main(["check"]) == 2
    assert "params.yaml: not UTF-8 text" in capsys.readouterr().err
    Path("folder").mkdir()
    for command in (
        ["check", "folder"],
        ["fingerprint", "--params", "folder"],
        ["preset", "digits", "--params", "folder"],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("error: folder: cannot be read (Is a directory)")


def test_a_number_that_is_not_finite_is_given_with_its_path(in_tmp, repository, capsys):
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("validation_fraction: 0.08", "validation_fraction: .nan"), "utf-8")
    assert main(["check"]) == 2
    assert "data.validation_fraction: NaN" in capsys.readouterr().err


def test_an_unknown_architecture_is_refused_without_importing_transformers_or_torch(in_tmp, repository):
    values = read_yaml(repository / "params.yaml")
    values["stage2_prior"]["transformer"]["architecture"] = "lama"
    Path("params.yaml").write_text(json.dumps(values), encoding="utf-8")
    code = (
        "import sys\nfrom tessera.cli import main\nassert main(['check']) == 2\n"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    environment = {"PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "stage2_prior.transformer.architecture: 'lama' is not a causal language model" in done.stderr
    assert "nearest: llama" in done.stderr


def test_the_names_of_architectures_are_those_of_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from stage2_prior.priors.architectures import causal_models

    assert set(causal_models()) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
