"""A pipeline is saved as a folder that loads alone and draws the same; what cannot be saved is one line."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from saved_pipelines import contents, load

from sampling import save
from sampling.pipeline import TwoStagePipeline
from tessera.errors import UserError
from tessera.images.prepared import open_prepared


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"classes": 0, "prior": "pixelcnn"},
        {"shape": (3, 8, 12), "strides": [2, 2], "sizes": [5, 9], "prior": "chain"},
        {"prior": "sub-tokens", "untrained": 1},
    ],
    ids=["counts", "unlabelled", "chain", "sub-tokens"],
)
def test_a_saved_pipeline_has_the_same_bytes_and_draws_the_same(tiny_run, made):
    tiny_run(**made)
    own = load("models")
    saved = contents(own.save_pretrained("saved"))
    models = {name: data for name, data in contents(Path("models")).items() if name.split("/")[0] in ("vqvae", "prior")}
    assert {name: saved[name] for name in models} == models and set(saved) == {*models, "README.md"}
    for folder in ("data", "models", "results", "params.yaml"):
        shutil.move(folder, "gone-" + folder) if Path(folder).exists() else None
    came, pixels = load("saved"), open_prepared(Path("gone-data/prepared"))["test"].pixels(slice(0, 4))
    assert torch.equal(came.generate(5, "each", seed=1), own.generate(5, "each", seed=1))
    assert torch.equal(came.log_likelihood(pixels)["total"], own.log_likelihood(pixels)["total"])
    assert came.classes == own.classes and came.vqvae.config["preparation"] == own.vqvae.config["preparation"]


def test_a_refined_decoder_is_saved_with_the_pipeline_that_draws_with_it(pipeline):
    sharp = copy.deepcopy(pipeline.vqvae)
    sharp.config = {**sharp.config, "objective": {}}
    with torch.no_grad():
        for weights in sharp.network.parameters():
            weights.mul_(1.1)
    refined = TwoStagePipeline(pipeline.vqvae, pipeline.prior, "cpu", decoder=sharp)
    folder = refined.save_pretrained("saved")
    came, plain = load(folder, decoder="refined"), load(folder)
    assert torch.equal(came.generate(3, "each", seed=1), refined.generate(3, "each", seed=1))
    assert torch.equal(plain.generate(3, "each", seed=1), pipeline.generate(3, "each", seed=1))
    assert 'from_pretrained("saved", decoder="refined")' in (folder / "README.md").read_text()
    assert 'from_pretrained("again", decoder="refined")' in (came.save_pretrained("again") / "README.md").read_text()
    with pytest.raises(UserError, match='card draws with the refined decoder; load with decoder="refined"'):
        plain.save_pretrained("third")
    assert not Path("third").exists()


def test_changed_weights_are_other_models_and_still_belong_together(pipeline):
    with torch.no_grad():
        for weights in pipeline.vqvae.network.parameters():
            weights.mul_(1.1)
    came = load(pipeline.save_pretrained("saved"))
    assert came.parents["vqvae"] != pipeline.parents["vqvae"] and came.parents["prior"] != pipeline.parents["prior"]
    assert torch.equal(came.generate(3, "each", seed=1), pipeline.generate(3, "each", seed=1))


def test_another_run_is_refused(pipeline, in_tmp):
    shutil.copytree("models", "other/models")
    shutil.copy("params.yaml", "other")
    folder = pipeline.save_pretrained("saved", run="other")  # the same models
    with torch.no_grad():
        for weights in pipeline.vqvae.network.parameters():
            weights.mul_(1.1)
    with pytest.raises(UserError, match=r"run: other/models/vqvae is another vqvae, [0-9a-f]{16}, than the one"):
        pipeline.save_pretrained("again", run="other")
    assert folder.is_dir() and sorted(path.name for path in in_tmp.glob("*again*")) == [], "nothing half done stays"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.save_pretrained("models"), "folder: models is there already and is not an empty folder"),
        (lambda p: p.save_pretrained("params.yaml"), "folder: params.yaml is there already"),
        (lambda p: p.save_pretrained("new", license="MIT, mostly"), "license: expected a name as the Hub writes it"),
        (lambda p: p.save_pretrained("new", run="nowhere"), "nowhere/models/vqvae: no vqvae here"),
        (lambda p: p.push_to_hub("new"), "'new': no id of the Hub; expected OWNER/NAME"),
        (lambda p: load("models", revision="main"), "revision: models is a folder, which has no revisions"),
        (lambda p: load("nowhere"), "nowhere/vqvae: no vqvae here"),
        (lambda p: load(Path("me/nowhere")), "me/nowhere/vqvae: no vqvae here"),
    ],
)
def test_what_cannot_be_is_one_line(pipeline, call, message):
    before = contents(Path())
    with pytest.raises(UserError, match=message) as caught:
        call(pipeline)
    assert "\n" not in str(caught.value) and contents(Path()) == before


@pytest.mark.parametrize("classes", [0, 3])
def test_the_command_saves_the_run_of_its_folder(tiny_run, capsys, classes):
    tiny_run(classes=classes)
    assert save.main(["mine"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("mine: saved\n") and "vqvae/model.safetensors" in printed
    assert load("mine").parents == load("models").parents
    assert save.main(["mine"]) == 2 and save.main([]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: FOLDER: mine is there already") and said[1].startswith("error: name a FOLDER")
