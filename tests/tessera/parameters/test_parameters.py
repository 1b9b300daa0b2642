"""params.yaml: what it must have, how it is read, and that a mistake is one line with the dotted path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic import ValidationError

from tessera.cli.preset import leaves
from tessera.errors import UserError
from tessera.parameters import Params, load, read_yaml, validate
from tessera.parameters.inherit import section_in
from tessera.parameters.root import schema
from tessera.parameters.sections import Choice, Section


def edited(text: str, tmp_path: Path, repository: Path, old: str) -> Path:
    """A copy of params.yaml with the one line that starts with `old` replaced."""
    lines = (repository / "params.yaml").read_text(encoding="utf-8").splitlines()
    found = [i for i, line in enumerate(lines) if line.strip().startswith(old)]
    lines[found[0]] = lines[found[0]].split(old)[0] + text
    file = tmp_path / "params.yaml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_the_repository_params_are_valid(repository):
    assert isinstance(load(repository / "params.yaml"), Params)


def fields(model: type[Section], prefix: str = "", shared: frozenset[str] = frozenset()) -> set[str]:
    """Every dotted leaf that params.yaml must have: of an option, those that options do not share."""
    found = set()
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        section = None if get_origin(field.annotation) is tuple else section_in(field.annotation)  # a list is one leaf
        if section and issubclass(section, Choice) and section.nested:
            found.add(f"{path}.name")
        elif name in shared or (issubclass(model, Choice) and model.optional and name in model.option_names()):
            continue  # an option whose section may be left out has no value of its own
        elif name in model.takes:
            continue  # what is not given there is that of another section
        elif section:
            option = issubclass(model, Choice) and name in model.option_names()
            found |= fields(section, path, frozenset(model.shared_names()) if option else frozenset()) or {path}
        else:
            found.add(path)
    return found


SIMVQ = "stage1_vqvae.quantizer.simvq"  # has no values of its own
OVERRIDDEN = {f"{SIMVQ}.gradient_estimator"}  # its paper's, whatever the others have


def required(raw: dict[str, Any]) -> set[str]:
    """The leaves that no other value could stand in for."""
    taken = tuple(f"refine_decoder.{name}" for name in schema().model_fields["refine_decoder"].annotation.takes)
    return {leaf for leaf in leaves(raw) if leaf not in OVERRIDDEN and not leaf.startswith(taken)}


def test_every_leaf_is_a_field_and_every_field_a_leaf(raw_params):
    assert fields(schema()) - {SIMVQ} == required(raw_params)


def test_every_missing_leaf_is_named(raw_params):
    for path in required(raw_params):
        *sections, key = path.split(".")
        node = raw_params
        for section in sections:
            node = node[section]
        value = node.pop(key)
        with pytest.raises(UserError, match=rf"{path}: missing"):
            validate(raw_params)
        node[key] = value


def test_unknown_key_is_refused_with_the_nearest_name(raw_params):
    raw_params["stage1_vqvae"]["training"]["learning_rat"] = 1
    with pytest.raises(UserError) as caught:
        validate(raw_params)
    assert str(caught.value) == (
        "params.yaml: stage1_vqvae.training.learning_rat: unknown parameter; did you mean `learning_rate`?"
    )


def test_misspelt_name_of_a_choice_lists_the_options(params):
    with pytest.raises(UserError, match=r"stage2_prior\.name: .*'pixelcnn'.*got 'pixelcn'; did you mean `pixelcnn`\?"):
        params({"stage2_prior.name": "pixelcn"})


def test_every_fault_is_in_the_one_line(raw_params):
    raw_params["data"]["height"] = "eight"
    raw_params["sampling"].pop("seed")
    with pytest.raises(UserError) as caught:
        validate(raw_params)
    assert "data.height" in str(caught.value) and "sampling.seed: missing" in str(caught.value)


def test_unquoted_exponent_is_a_number_and_no_is_a_string(tmp_path, repository):
    file = edited("learning_rate: 3e-4", tmp_path, repository, old="learning_rate:")
    assert load(file).stage1_vqvae.training.learning_rate == 3e-4
    file = edited("learning_rate: '3e-4'", tmp_path, repository, old="learning_rate:")
    with pytest.raises(UserError, match=r"learning_rate: .*got '3e-4'"):
        load(file)
    file = edited("use_labels: no", tmp_path, repository, old="use_labels:")
    with pytest.raises(UserError, match=r"data\.use_labels: .*got 'no'"):
        load(file)


def test_levels_and_sizes_come_back_as_tuples(params):
    changed = params({"stage1_vqvae.network.conv.strides": [2, 2], "stage1_vqvae.quantizer.codebook_size": [16, 32]})
    assert changed.stage1_vqvae.network.conv.strides == (2, 2)
    assert changed.stage1_vqvae.quantizer.vq.codebook_size == (16, 32)


def test_parameters_are_frozen(params):
    checked = params()
    with pytest.raises(ValidationError):
        checked.sampling.temperature = 0.5


def test_the_values_of_a_choice_are_the_chosen_options(params):
    assert params({"stage2_prior.name": "uniform"}).stage2_prior.values() == {
        "name": "uniform",
        "uniform": {"largest_softmax": 16384},
    }


@pytest.mark.parametrize(("text", "word"), [("a: [1", "not valid YAML"), ("- 1\n", "mapping"), ("", "empty")])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text, word):
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=word) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no such file; run from the repository's root"):
        read_yaml(tmp_path / "params.yaml")


@pytest.mark.parametrize("section", ["data", "stage1_vqvae", "runtime"])
def test_a_section_that_is_no_mapping_is_named(raw_params, section):
    raw_params[section] = 3
    with pytest.raises(UserError, match=section) as caught:
        validate(raw_params)
    assert "\n" not in str(caught.value)


def check(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tessera", "check", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_command_answers_by_exit_status_and_one_line(tmp_path, repository):
    good = check(cwd=repository)
    assert (good.returncode, good.stderr) == (0, "")
    file = edited("steps: many", tmp_path, repository, old="steps:")
    bad = check(str(file), cwd=repository)
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.startswith(f"error: {file}: stage1_vqvae.training.steps: ") and bad.stderr.count("\n") == 1


def test_loading_needs_no_torch(repository):
    code = "import sys; from tessera.parameters import load; from pathlib import Path; load(Path('params.yaml'))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_a_prior_swap_changes_only_the_name(params, raw_params):
    before: Any = params().stage2_prior
    after = params({"stage2_prior.name": "pixelcnn"}).stage2_prior
    assert before.model_copy(update={"name": "pixelcnn"}) == after


def test_a_missing_section_of_an_option_says_what_to_add(raw_params):
    del raw_params["stage2_prior"]["uniform"]
    with pytest.raises(UserError, match=r"stage2_prior\.uniform: missing; add the section, `\{\}` if it has no values"):
        validate(raw_params)


def test_an_empty_file_says_how_to_write_it_anew(tmp_path):
    (tmp_path / "params.yaml").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="empty; write it anew with `python -m tessera preset digits`"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("key", ["2020-01-01", "[1, 2]"])
def test_a_key_that_is_no_text_is_one_line(tmp_path, repository, key):
    text = (repository / "params.yaml").read_text(encoding="utf-8").replace("data:\n", f"data:\n  {key}: 2\n", 1)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is no text; put it between quotes"):
        load(tmp_path / "params.yaml")
