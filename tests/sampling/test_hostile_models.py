"""Saved models from others: links, huge cards and hostile names of classes do no harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from saved_pipelines import load

from tessera.artifacts.manifests import file_entry, manifest_text
from tessera.errors import UserError


@pytest.mark.parametrize("name", ["README.md", "vqvae/config.json", "prior/model.safetensors"])
def test_a_symbolic_link_in_a_saved_folder_is_refused(pipeline, name):
    pipeline.save_pretrained("saved")
    shutil.copy(Path("saved") / name, "outside")
    (Path("saved") / name).unlink()
    (Path("saved") / name).symlink_to(Path("outside").resolve())
    with pytest.raises(UserError, match="a symbolic link, which could be changed from outside") as caught:
        load("saved")
    assert "\n" not in str(caught.value)


def test_a_huge_card_is_refused(pipeline):
    pipeline.save_pretrained("saved")
    with Path("saved/README.md").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"saved/README\.md: larger than \d+ bytes"):
        load("saved")


HOSTILE = ("\x1b[31mred\nclasses   0: none\n| <img src=x> |", "`|<b>", "right\u202eleft")


def test_hostile_names_of_classes_are_shown_as_text(tiny_run):
    tiny_run(names=HOSTILE)
    pipeline = load("models")
    assert pipeline.classes.names == HOSTILE
    shown = repr(pipeline)
    lines = shown.splitlines()
    assert len(lines) == 6 and all(line.isprintable() for line in lines) and r"\x1b[31mred\nclasses" in lines[2]
    text = pipeline.save_pretrained("saved").joinpath("README.md").read_text()
    assert "\x1b" not in text and "\u202e" not in text and "\n| <img" not in text
    assert [line for line in text.splitlines() if "<b>" in line or "<img" in line] == [
        "Images: 48 train, 12 validation, 20 test. "
        "3 classes: `?[31mred?classes   0: none?| <img src=x> |`, `?|<b>`, `right?left`."
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (5, "not a prior .*class_names: class 1: expected text of at most 1,000 characters, got int"),
        ("x" * 1001, "not a prior .*got 1,001 characters"),
        ("\ud800", "config.json: not valid JSON: .* has half a surrogate pair"),
    ],
)
def test_names_of_classes_that_are_no_text_are_refused(pipeline, name, message):
    config = json.loads(Path("models/prior/config.json").read_text())
    config["class_names"][1] = name
    Path("models/prior/config.json").write_text(json.dumps(config))
    files = {file: file_entry(Path("models/prior") / file) for file in ("config.json", "model.safetensors")}
    Path("models/prior/manifest.json").write_text(manifest_text("prior", pipeline.manifests["prior"].parents, files))
    with pytest.raises(UserError, match=f"models/prior.*{message}") as caught:
        load("models")
    assert "\n" not in str(caught.value)
