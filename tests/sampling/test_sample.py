"""`python -m sampling.sample` with options: only what is asked for is written, by the values that are given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling import pictures, sample
from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.images.pixels import to_uint8
from tessera.images.samples import open_samples
from tessera.parameters import load

NAMES = ("ankle boot", "猫", "7")


@pytest.fixture
def run(tiny_run) -> Path:
    """A run with classes whose names are odd, and a prior that learned little."""
    return tiny_run(names=NAMES)


def singles(folder: str | Path) -> torch.Tensor:
    """The single images of a folder, by name, uint8 (n, 1, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in sorted(Path(folder).iterdir())]))[
        :, None
    ]


def files() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*") if path.is_file() and path.parts[0] not in ("data", ".state")}


def generated(count: int, labels, **changes) -> torch.Tensor:
    """What Python gives with the values of params.yaml and some changes, uint8."""
    section = json.loads(Path("params.yaml").read_text())["sampling"]
    others = ("images", "grid_columns", "precision", "decoder")
    settings = {name: value for name, value in section.items() if name not in others}
    return to_uint8(TwoStagePipeline.load("models", "cpu").generate(count, labels, **(settings | changes)))


@pytest.mark.parametrize(
    ("option", "text", "changes"),
    [
        ("temperature", "0.5", {"temperature": 0.5}),
        ("temperature", "0", {"temperature": 0}),
        ("top-k", "2", {"top_k": 2}),
        ("top-p", "0.6", {"top_p": 0.6}),
        ("min-p", "0.4", {"min_p": 0.4}),
        ("guidance-scale", "4", {"guidance_scale": 4.0}),
        ("guidance-schedule", "linear", {"guidance_schedule": "linear"}),
        ("seed", "7", {"seed": 7}),
    ],
)
def test_a_value_that_is_given_is_the_one_that_is_used(run, option, text, changes):
    assert sample.main(["--count", "6", f"--{option}", text, "--images", "found"]) == 0
    expected = generated(18, "each", **changes)
    assert torch.equal(singles("found"), expected)
    assert not torch.equal(expected, generated(18, "each")), "the value makes a difference"


@pytest.mark.parametrize(
    ("prior", "option", "name", "value"),
    [
        ("masked", "decoding-steps", "decoding_steps", 1),
        ("masked", "choice-temperature", "choice_temperature", 0.0),
        ("any_order", "order", "order", "random"),
    ],
)
def test_values_that_only_some_priors_have_are_used(tiny_run, prior, option, name, value):
    tiny_run((1, 8, 16), strides=[2], sizes=4, prior=prior)
    assert sample.main(["--count", "3", f"--{option}", str(value), "--images", "found"]) == 0
    expected = generated(9, "each", **{name: value})
    assert torch.equal(singles("found"), expected) and not torch.equal(expected, generated(9, "each"))


def test_the_batch_size_and_none_and_values_by_level_are_taken(tiny_run, raw_params, monkeypatch):
    raw_params["sampling"]["top_k"] = 1
    tiny_run(strides=[2, 2], sizes=[5, 9])
    asked, batches = [], TwoStagePipeline.batches
    monkeypatch.setattr(
        TwoStagePipeline, "batches", lambda self, *a, **k: asked.append((a, k)) or batches(self, *a, **k)
    )
    assert sample.main(["--batch-size", "5", "--top-k", "none", "--temperature", "0.5,1", "--count", "2"]) == 0
    ((count, labels), settings) = asked[0]
    assert (count, labels) == (6, [0, 1, 2]) and settings["batch_size"] == 5
    assert settings["top_k"] is None and list(settings["temperature"]) == [0.5, 1.0]


def test_without_options_it_is_the_stage_and_with_them_the_stages_results_stay(run, capsys):
    assert sample.main([]) == 0
    stage, before = read_manifest(paths.SAMPLES, "samples").identity, files()
    assert sample.main(["--output", "new/grid.png"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-2]
        == "new/grid.png: 3 images of each of 3 classes, seed 0, temperature 0.9, guidance_scale 2.0"
    )
    assert files() - before == {"new/grid.png"} and read_manifest(paths.SAMPLES, "samples").identity == stage
    # Without further options the images are the stage's own.
    assert Path("new/grid.png").read_bytes() == (paths.SAMPLES / "grid.png").read_bytes()
    assert np.asarray(open_samples(paths.SAMPLES)["default"].labels).tolist() == [i % 3 for i in range(14)]


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [(["ankle boot"], [0]), (["猫"], [1]), (["7"], [2]), (["1"], [1]), (["7", "ankle boot"], [2, 0]), (["none"], [3])],
)
def test_classes_are_named_or_numbered(run, asked, numbers):
    words = [word for name in asked for word in ("--class", name)]
    assert sample.main([*words, "--count", "4", "--images", "found", "--output", "grid.png"]) == 0
    assert torch.equal(singles("found"), generated(4 * len(numbers), numbers))
    shown = ["none" if n == 3 else NAMES[n].replace(" ", "_") for n in numbers]
    expected = [f"{place:05d}-{shown[place % len(shown)]}.png" for place in range(4 * len(numbers))]
    assert sorted(path.name for path in Path("found").iterdir()) == expected
    with Image.open("grid.png") as picture:
        wide, high = (2, 2) if len(numbers) == 1 else (2, 4)  # one class: a square; several: rows of up to 3
        assert picture.height == 2 + 50 * high and 2 + 50 * wide < picture.width < 2 + 50 * wide + 200
    assert not paths.SAMPLES.exists()


def test_without_a_command_line_it_is_the_stage(run):
    sample.run(load(paths.PARAMS), argparse.Namespace())
    assert len(open_samples(paths.SAMPLES)["default"]) == 14 and not Path("samples.png").exists()


def test_one_of_the_options_is_enough_and_a_picture_is_written(run):
    before = files()
    assert sample.main(["--seed", "3"]) == 0
    assert files() - before == {"samples.png"}


def test_models_may_lie_elsewhere(run):
    Path("models").rename("elsewhere")
    assert sample.main(["--count", "1", "--output", "a.png"]) == 2
    assert sample.main(["--count", "1", "--output", "a.png", "--models", "elsewhere"]) == 0


def test_the_decoder_and_the_revision_are_those_that_are_named(run, monkeypatch, capsys):
    real, asked = TwoStagePipeline.from_pretrained, []

    def from_pretrained(source, revision=None, **choices):
        asked.append((str(source), revision, choices["decoder"]))
        return real(source, **choices)

    monkeypatch.setattr(TwoStagePipeline, "from_pretrained", staticmethod(from_pretrained))
    named = ["--models", "owner/name", "--revision", "v2"]
    assert sample.main(["--count", "1", "--output", "a.png", *named, "--decoder", "likelihood"]) == 2
    assert sample.main(["--count", "1", "--output", "a.png", "--decoder", "refined"]) == 2
    assert asked == [("owner/name", "v2", "likelihood"), (str(paths.MODELS), None, "refined")]
    assert "models/decoders/refined" in capsys.readouterr().err


def test_images_without_labels_stand_in_a_square(tiny_run):
    tiny_run(classes=0)
    assert sample.main(["--count", "5", "--images", "found", "--output", "grid.png"]) == 0
    with Image.open("grid.png") as picture:
        assert picture.size == (2 + 3 * 50, 2 + 2 * 50)
    assert sorted(path.name for path in Path("found").iterdir()) == [f"{i:05d}.png" for i in range(5)]
    assert sample.main(["--class", "bag", "--output", "grid.png"]) == 2


REFUSED = (
    (["--class", "boot"], "--class: no class is called 'boot'; did you mean 'ankle boot'? there are 'ankle boot'"),
    (["--class", "5"], "--class: no class is called '5'"),
    (["--count", "0"], "--count: expected a number from 1 to 1000000000, got 0"),
    (["--count", str(10**21)], "--count: expected a number from 1 to"),
    (["--count", "1000000"], "--count or --enlarge: a picture has room for"),
    (["--output", "."], "--output: . is a folder"),
    (["--output", "x.jpg"], "--output: x.jpg does not end in .png"),
    (["--output", "x"], "--output: x does not end in .png"),
    (["--images", "models"], "--images: models is there already"),
    (["--images", "params.yaml"], "--images: params.yaml is there already"),
    (["--temperature", "-1"], "--temperature: input should be greater than or equal to 0, got -1"),
    (["--temperature", "warm"], "--temperature: input should be a valid number, got warm"),
    (["--temperature", "nan"], "--temperature: input should be a finite number, got nan"),
    (["--temperature", "0.5,-1"], "--temperature: input should be greater than or equal to 0, got 0.5,-1"),
    (["--temperature", "0.5,1"], "temperature: 2 values for 1 levels of codes"),
    (["--temperature", "none"], "--temperature: input should be a valid number, got none"),
    (["--top-k", "1.5"], "--top-k: input should be a valid integer"),
    (["--top-k", "9"], "top_k: expected a whole number from 1 to 8"),
    (["--top-p", "2"], "--top-p: input should be less than or equal to 1"),
    (["--guidance-scale", "1e300"], "--guidance-scale: input should be less than or equal to 1000"),
    (["--guidance-schedule", "up"], "--guidance-schedule: input should be 'constant' or 'linear', got up"),
    (["--seed", "-1"], "--seed: input should be greater than or equal to 0"),
    (["--batch-size", "0"], "--batch-size: input should be greater than or equal to 1"),
    (["--models", "nowhere"], "nowhere"),
)


def test_what_cannot_be_done_is_one_line_and_nothing_is_written(run, capsys):
    before, wrong = files(), []
    capsys.readouterr()
    for words, message in REFUSED:
        status, error = sample.main(words), capsys.readouterr().err
        if status != 2 or not error.startswith("error: ") or message not in error or error.count("\n") != 1:
            wrong.append(f"{words}: exit status {status}, {error}")
    assert not wrong, "\n".join(wrong)
    assert files() == before


def test_a_batch_size_that_bf16_needs_is_said_in_one_line(run, capsys, raw_params):
    raw_params["sampling"]["precision"] = "bf16"
    Path("params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
    assert sample.main(["--batch-size", "none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_that_is_another_classs_number_is_said(tiny_run, capsys):
    tiny_run(names=("2", "7", "10"))
    assert sample.main(["--class", "2", "--count", "1", "--output", "a.png"]) == 0
    assert "note: --class 2: the class of this name (number 0), not class number 2" in capsys.readouterr().err


def test_a_class_without_training_images_is_neither_sampled_nor_offered(tiny_run, capsys):
    tiny_run(names=("a", "b", "c"), untrained=1)
    assert sample.main([]) == 0
    split = open_samples(paths.SAMPLES)["default"]
    assert np.asarray(split.labels).tolist() == [0, 2] * 7
    with Image.open(paths.SAMPLES / "grid.png") as picture:
        assert picture.height == 2 + 2 * 50
    assert torch.equal(split.pixels(slice(None)), generated(14, [0, 2]))
    assert sample.main(["--count", "2", "--images", "found"]) == 0
    assert [path.stem[-1] for path in sorted(Path("found").iterdir())] == ["a", "c", "a", "c"]
    capsys.readouterr()
    assert sample.main(["--class", "b", "--output", "b.png"]) == 2
    assert "no training image shows class 1 ('b')" in capsys.readouterr().err


def test_names_that_the_font_of_the_picture_lacks_are_printed(tiny_run, capsys):
    tiny_run(names=("digits & signs", "Ελληνικά", "😀 café"))
    for command in ([], ["--count", "2", "--output", "a.png"]):
        assert sample.main(command) == 0
        assert "#1 is Ελληνικά; #2 cafe is 😀 café" in capsys.readouterr().out
    assert sample.main(["--count", "2", "--output", "a.png", "--class", "digits & signs"]) == 0
    assert " is " not in capsys.readouterr().out


def test_decoding_steps_of_an_order_that_does_not_draw_by_them_are_said_to_change_nothing(tiny_run, capsys):
    tiny_run(prior="any_order")
    assert sample.main(["--count", "2", "--decoding-steps", "4"]) == 0
    said = "--decoding-steps changes nothing, because the order is layout, and only the order parallel draws by it"
    assert said in capsys.readouterr().err
    assert sample.main(["--count", "2", "--decoding-steps", "4", "--order", "parallel"]) == 0
    assert "changes nothing" not in capsys.readouterr().err


def test_guidance_of_a_prior_without_labels_is_said_to_change_nothing(tiny_run, capsys):
    tiny_run(classes=0, guidance_scale=1.0)
    assert sample.main(["--count", "2", "--guidance-scale", "3"]) == 0
    assert "--guidance-scale changes nothing" in capsys.readouterr().err
    assert sample.main(["--count", "2", "--temperature", "0.5"]) == 0
    assert "changes nothing" not in capsys.readouterr().err


def test_enlarged_images_have_each_pixel_repeated(run):
    few = ["--class", "7", "--count", "3", "--batch-size", "2"]
    assert sample.main([*few, "--images", "plain"]) == 0
    assert sample.main([*few, "--images", "large", "--enlarge", "5", "--output", "large.png"]) == 0
    plain, large = singles("plain"), singles("large")
    assert torch.equal(large, torch.from_numpy(np.kron(plain.numpy(), np.ones((5, 5), np.uint8))))
    with Image.open("large.png") as picture:
        assert picture.height > 2 * large.shape[-1]


def test_more_classes_than_a_picture_shows_are_said(run, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "GRID_CLASSES", 2)
    assert sample.main(["--count", "2", "--output", "a.png", "--images", "found"]) == 0
    assert "a.png shows the first 2 of 3 classes" in capsys.readouterr().out
    assert len(list(Path("found").iterdir())) == 6
    with Image.open("a.png") as picture:
        assert picture.height == 2 + 2 * 50
