"""Presets patch params.yaml: comments stay, the result is checked, and a mistake changes nothing."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up_surveys import CPU

from tessera.cli import main as command
from tessera.cli.preset import PRESETS, apply, edit, leaves, main, read_preset
from tessera.cli.start import machine
from tessera.parameters import load, read_yaml

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
LOOK = machine.look  # which a fixture replaces


@pytest.fixture
def file(in_tmp: Path, repository: Path) -> Path:
    shutil.copy(repository / "params.yaml", in_tmp / "params.yaml")
    return in_tmp / "params.yaml"


@pytest.fixture(autouse=True)
def a_machine_with_bf16_and_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "look", lambda threads: CPU)


def comments(text: str) -> list[str]:
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


def test_the_default_preset_is_the_file_that_ships(file):
    assert file.read_bytes() == (PRESETS / "digits.yaml").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_gives_valid_parameters_with_its_values(name, file):
    apply(file, name, {})
    load(file)
    values = leaves(read_yaml(file))
    assert {path: values[path] for path in read_preset(name)} == read_preset(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_comment_stays(name, file):
    before = comments(file.read_text(encoding="utf-8"))
    assert main([name]) == 0
    assert comments(file.read_text(encoding="utf-8")) == before


def test_only_the_runtime_of_the_file_before_is_kept(file):
    """So that no value of one preset, nor an override of it, is left under the next."""
    edit(file, {"runtime.log_every": 7, "stage2_prior.pixelcnn.width": 32, "sampling.seed": 3})
    main(["vqvae2_photographs64"])
    main(["fashion_mnist"])
    once = file.read_text(encoding="utf-8")
    shutil.copy(PRESETS / "digits.yaml", file)
    edit(file, {"runtime.log_every": 7})
    main(["fashion_mnist"])
    assert file.read_text(encoding="utf-8") == once
    assert load(file).runtime.log_every == 7


def test_a_prior_swapped_in_after_a_preset_has_its_size_and_its_schedule(file):
    main(["fashion_mnist", "-S", "stage2_prior.name=masked"])
    prior = load(file).stage2_prior.chosen
    assert (prior.width, prior.layers, prior.training.steps, prior.training.precision) == (192, 4, 1500, "bf16")


def test_writing_without_a_change_keeps_every_byte(file):
    before = file.read_bytes()
    assert edit(file, {"sampling.seed": 1}) == ["sampling.seed: 0 -> 1"]
    assert edit(file, {"sampling.seed": 0}) == ["sampling.seed: 1 -> 0"]
    assert file.read_bytes() == before


def test_applying_twice_changes_nothing_more(file, capsys):
    assert main([NAMES[0]]) == 0
    once = file.read_bytes()
    capsys.readouterr()
    assert main([NAMES[0]]) == 0
    assert file.read_bytes() == once
    assert capsys.readouterr().out == "params.yaml: 0 values changed\n"


def test_it_prints_each_value_that_changed(file, capsys):
    assert main(["cifar10"]) == 0
    output = capsys.readouterr().out
    assert "stage1_vqvae.network.conv.strides: [2] -> [4]\n" in output
    assert "stage1_vqvae.training.compile: false -> true\n" in output
    assert "data.use_labels" not in output


def test_a_local_folder_is_watched_and_has_no_revision(file):
    Path("pictures").mkdir()
    assert main(["cifar10", "-S", "data.source=pictures"]) == 0
    data = load(file).data
    assert (data.source, data.watch, data.revision, data.image_column) == ("pictures", "pictures", None, "img")


def test_a_folder_under_the_home_folder_is_found(file, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("pictures").mkdir()
    assert main(["cifar10", "-S", "data.source=~/pictures"]) == 0
    data = load(file).data
    assert data.source == data.watch == str(Path.cwd() / "pictures")


def test_the_path_of_a_folder_outside_is_written_in_full(file):
    """A copy of the repository, in which DVC runs queued experiments, would look elsewhere by a relative path."""
    outside = Path.cwd().parent / "pictures of others"
    outside.mkdir()
    assert main(["cifar10", "-S", f"data.source=../{outside.name}"]) == 0
    data = load(file).data
    assert data.source == data.watch == str(outside)
    both = [word for name in ("source", "watch") for word in ("-S", f"data.{name}=../{outside.name}")]
    assert main(["cifar10", *both]) == 0
    assert load(file).data.watch == str(outside)


def test_a_hub_id_keeps_what_is_watched_and_its_revision(file):
    assert main(["cifar10", "-S", "data.source=someone/cifar10", "-S", "data.revision=abc"]) == 0
    data = load(file).data
    assert (data.source, data.watch, data.revision) == ("someone/cifar10", "data/embedded.txt", "abc")


def test_changes_are_yaml_values(file):
    words = ["-S", "stage1_vqvae.training.learning_rate=3e-4", "-S", "stage1_vqvae.quantizer.codebook_size=[64]"]
    assert (
        main(["cifar10", *words, "-S", "stage2_prior.transformer.extra={n_inner: 64}", "-S", "data.revision=no"]) == 0
    )
    params = load(file)
    assert params.stage1_vqvae.training.learning_rate == 3e-4
    assert params.stage1_vqvae.quantizer.vq.codebook_size == (64,)
    assert params.stage2_prior.transformer.extra == {"n_inner": 64}
    assert params.data.revision == "no"
    assert "codebook_size: [64] # one number" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("2024", "2024"),
        ("a: b", "a: b"),
        ("holiday #2", "holiday #2"),
        ("[x]", "[x]"),
        ("null", "null"),
        ("yes", "yes"),
        ("{a", "{a"),
        ("  spaces ", "  spaces "),
        ("'quoted'", "quoted"),
        ('"1e3"', "1e3"),
    ],
)
def test_a_text_is_taken_as_it_is(file, name, written):
    Path(written).mkdir()
    assert main(["cifar10", "-S", f"data.source={name}"]) == 0
    assert load(file).data.source == load(file).data.watch == written


@pytest.mark.parametrize("text", ["null", ""])
def test_null_stays_no_value_where_there_may_be_none(file, text):
    assert main(["cifar10", "-S", f"data.revision={text}", "-S", "data.source=digits"]) == 0
    assert load(file).data.revision is None
    assert main(["digits", "-S", "data.label_column=07", "-S", "stage2_prior.name=masked"]) == 0
    assert load(file).data.label_column == "07" and load(file).stage2_prior.name == "masked"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar"], ["unknown preset `cifar`", "cifar10, digits, fashion_mnist", "did you mean `cifar10`?"]),
        (["../params"], ["unknown preset", "cifar10, digits, fashion_mnist"]),
        (["cifar10", "-S", "data.hieght=32"], ["data.hieght", "unknown parameter", "did you mean `height`?"]),
        (["cifar10", "-S", "daat.height=32"], ["daat.height", "did you mean `data.height`?"]),
        (["cifar10", "-S", "data.height.x=32"], ["data.height.x", "no such section"]),
        (["cifar10", "-S", "data.height"], ["-S data.height", "expected key=value"]),
        (["cifar10", "-S", "data.background=[1"], ["-S data.background=[1", "not valid YAML"]),
        (["cifar10", "-S", "data.height=30"], ["data.height", "30", "multiple of 4"]),
        (["cifar10", "-S", "data.source=presets/cifar11"], ["'presets/cifar11': no such folder", "owner/name"]),
        (["cifar10", "-S", "data.source=digit"], ["'digit': no such folder", "or digits"]),
        (["cifar10", "-S", "data.source="], ["'': no such folder"]),
        (["cifar10", "-S", "data.source=params.yaml"], ["'params.yaml' is a file"]),
        (["cifar10", "-S", "data.source=."], ["data.source: '.'", "which the pipeline itself writes"]),
        (["cifar10", "-S", "data.source=./nowhere"], ["'./nowhere': no such folder"]),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(file, capsys, arguments, words):
    Path("presets").mkdir()  # a name that begins so is no Hub id here
    before = file.read_bytes()
    assert command(["preset", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
    assert file.read_bytes() == before
    assert sorted(p.name for p in file.parent.iterdir()) == ["params.yaml", "presets"]


def test_a_failure_while_writing_leaves_the_file(file, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        main(["cifar10"])
    assert file.read_bytes() == before


def test_a_link_to_the_users_own_file_stays(file):
    own = file.with_name("own.yaml")
    file.rename(own)
    file.symlink_to(own)
    before = own.read_bytes()
    main(["cifar10", "-S", "stage1_vqvae.training.steps=7777"])
    assert file.is_symlink() and own.read_bytes() != before and load(file).stage1_vqvae.training.steps == 7777


def test_where_bf16_is_slow_a_preset_says_that_it_writes_fp32_in_its_place(file, capsys, monkeypatch):
    monkeypatch.setattr(machine, "look", lambda threads: replace(CPU, slow_bf16="bf16 is slow here (7 times)"))
    assert main(["fashion_mnist", "-S", "stage2_prior.training.precision=bf16"]) == 0
    note = capsys.readouterr().out.splitlines()[-1]
    assert note.startswith("note: bf16 is slow here (7 times); in place of the preset's bf16: classifier.training.")
    found = load(file)
    assert (found.stage1_vqvae.training.precision, found.stage1_vqvae.training.channels_last) == ("fp32", False)
    assert (found.classifier.training.precision, found.classifier.training.channels_last) == ("fp32", False)
    assert found.stage2_prior.training.precision == "bf16", "what the user asks for stays"
    main(["fashion_mnist", "-S", "stage1_vqvae.training.precision=bf16"])
    assert load(file).stage1_vqvae.training.channels_last, "it goes with the user's bf16"


def test_a_gpu_without_bf16_is_slow_for_a_preset(file, capsys, monkeypatch):
    monkeypatch.setattr(machine, "look", LOOK)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert main(["fashion_mnist"]) == 0 and "note: bf16 is slower than fp32 on Tesla T4" in capsys.readouterr().out
    assert load(file).stage1_vqvae.training.precision == "fp32"


def test_without_a_compiler_a_preset_says_that_it_compiles_nothing(file, capsys, monkeypatch):
    monkeypatch.setattr(machine, "look", LOOK)
    monkeypatch.setattr(machine, "slow_bf16", lambda device: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert main(["fashion_mnist"]) == 0
    note = capsys.readouterr().out.splitlines()[-1]
    paths = "stage1_vqvae.training.compile, stage2_prior.training.compile"
    assert note == f"note: there is no compiler, so these are false: {paths}"
    assert not any(training.compile for training in load(file).trainings().values())
    main(["fashion_mnist", "-S", "stage1_vqvae.training.compile=true"])
    assert load(file).stage1_vqvae.training.compile, "what the user asks for stays"
    assert "note: there is no compiler, so these are false: stage2_prior.t" in capsys.readouterr().out
    monkeypatch.setattr(machine.shutil, "which", lambda name: name if name == "g++" else None)
    assert main(["fashion_mnist"]) == 0 and load(file).stage1_vqvae.training.compile
    assert "note" not in capsys.readouterr().out


def test_a_preset_in_fp32_is_compiled_where_there_is_a_compiler(file, monkeypatch):
    monkeypatch.setattr(machine, "look", lambda threads: replace(CPU, slow_bf16="bf16 is slow here"))
    assert main(["fashion_mnist"]) == 0
    training = load(file).stage1_vqvae.training
    assert (training.precision, training.compile) == ("fp32", True)


def test_a_preset_without_bf16_and_compiling_does_not_look_at_the_machine(file, capsys, monkeypatch):
    monkeypatch.setattr(machine, "look", lambda threads: pytest.fail("looked at"))
    assert main(["digits"]) == 0 and "note" not in capsys.readouterr().out
