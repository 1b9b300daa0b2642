"""The card of a saved pipeline says what its run did, and leaves out what is not of these models."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard, parse_eval_result_entries
from saved_pipelines import contents, load

from sampling.card import _summary
from sampling.pipeline import TwoStagePipeline
from sampling.provenance import METRICS, without_paths
from tessera import paths
from tessera.artifacts.files import json_text, write_text
from tessera.artifacts.publishing import publishing
from tessera.cli.fingerprint import stages
from tessera.cli.preset import patch
from tessera.codes.layout import CodeLayout, Level
from tessera.documents import read_yaml
from tessera.errors import UserError
from tessera.parameters import load as load_params

FIGURES = {
    "bits_per_dim": {"total_prior": 3.25, "distortion": 2.5, "rate_prior": 0.75},
    "reconstruction": {"psnr": 21.5},
    "distribution": {"features": "classifier", "weights": "ab" * 8, "default": {"frechet_distance": 1.5}},
    "images": {"test": 20, "samples": 14},
}


def publish_results(pipeline: TwoStagePipeline, models: dict[str, str] | None = None) -> None:
    """What `evaluate` and `sample` leave, for these models or for others."""
    models = models or pipeline.parents
    write_text(METRICS, json_text({**FIGURES, "models": models}))
    with publishing(paths.SAMPLES, "samples", models) as staging:
        (staging / "grid.png").write_bytes(b"a picture")


@pytest.fixture
def finished(pipeline: TwoStagePipeline, repository: Path) -> TwoStagePipeline:
    """The pipeline of a run whose params.yaml made these models, and whose results are theirs."""
    made_by_params(pipeline)
    record(repository)
    publish_results(pipeline)
    return pipeline


def made_by_params(pipeline: TwoStagePipeline) -> None:
    """Write the sizes of the fixture's VQ-VAE into params.yaml."""
    params, config = json.loads(Path("params.yaml").read_text()), pipeline.vqvae.config
    for part, option in (("network", "conv"), ("quantizer", "vq"), ("likelihood", "gaussian")):
        params["stage1_vqvae"][part][option] |= config[part][option]
    Path("params.yaml").write_text(json.dumps(params))


def edited(path: str, value: object) -> None:
    """Change a value of params.yaml."""
    params = json.loads(Path("params.yaml").read_text())
    patch(params, {path: value})
    Path("params.yaml").write_text(json.dumps(params))


def record(repository: Path) -> None:
    """What the stage `fingerprint` writes, but for the hashes of the code."""
    params = load_params(Path("params.yaml"))
    for name, module in stages(repository / "dvc.yaml").items():
        used = {path: params.used(path) for path in import_module(module).USES}
        write_text(paths.FINGERPRINTS / f"{name}.json", json_text({"parameters": used}))


def test_the_card_says_what_the_run_did_and_how_to_load(finished, capsys):
    folder = finished.save_pretrained("saved", license="cc-by-4.0", dataset="me/things")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.datasets == ["me/things"]
    assert card.data.library_name == "tessera" and (folder / "samples.png").read_bytes() == b"a picture"
    for part in (
        'TwoStagePipeline.from_pretrained("saved")',
        "| bound of -log2 p(x), bits per dimension | 3.25 | lower | 20 test images | Tessera |",
        "| Fréchet distance of samples | 1.5 | lower | 14 samples | features `classifier`, weights abababababab |",
        "48 train, 12 validation, 20 test",
        "3 classes: `class 0`, `class 1`, `class 2`.",
        "Distances are in the features of `classifier`, so they are no FID",
        "temperature: 0.9",
    ):
        assert part in card.text, part
    assert "## Licence" not in card.text and "PSNR of reconstructions, dB | 21.5" in card.text
    entries = parse_eval_result_entries(read_yaml(folder / ".eval_results" / "tessera.yaml"))
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("me/things", "bits_per_dim.total_prior", 3.25),
        ("me/things", "reconstruction.psnr", 21.5),
        ("me/things", "distribution.default.frechet_distance", 1.5),
    ]
    assert "14 samples" in entries[2].notes and "classifier" in entries[2].notes
    assert capsys.readouterr().err == ""


def test_the_lines_of_a_card_that_load_it_run(finished, in_tmp, monkeypatch):
    text = finished.save_pretrained("saved").joinpath("README.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0], {})
    assert (in_tmp / "sample.png").is_file()


def test_figures_of_other_models_and_an_edited_recipe_are_left_out_and_that_is_said(finished, capsys):
    publish_results(finished, {"vqvae": "0" * 64, "prior": "1" * 64})
    edited("stage2_prior.counts.largest_softmax", 5)
    text = finished.save_pretrained("saved").joinpath("README.md").read_text()
    assert "None is known" in text and "params.yaml" not in text and "samples.png" not in text
    said = capsys.readouterr().err
    for part in (
        "leaves out the recipe: models/prior was made with stage2_prior.counts.largest_softmax",
        "leaves out the figures: results/evaluate/metrics.json is of other models",
        "leaves out the picture: results/sample is of other models",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage2_prior.training.steps", 5),
        ("stage2_prior.training.learning_rate", 0.01),
        ("stage1_vqvae.training.steps", 5000),
        ("stage1_vqvae.augmentation.shift", 2),
        ("data.source", "me/others"),
        ("data.revision", "0" * 40),
        ("extract_codes.shift", 1),
        ("sampling.temperature", 0.3),
    ],
)
def test_a_recipe_that_was_edited_since_the_run_is_left_out(tiny_run, repository, capsys, path, value):
    tiny_run(prior="pixelcnn")
    pipeline = load("models")
    made_by_params(pipeline)
    edited("data.source", "me/things")
    edited("data.revision", "1" * 40)
    record(repository)
    publish_results(pipeline)
    capsys.readouterr()
    text = pipeline.save_pretrained("recorded").joinpath("README.md").read_text()
    assert "Every value that the run used" in text and "revision: '1111" in text and capsys.readouterr().err == ""
    edited(path, value)
    text = pipeline.save_pretrained("saved").joinpath("README.md").read_text()
    assert "params.yaml" not in text and "datasets:" not in text and "revision" not in text
    drawn = path.startswith("sampling.")
    assert (Path("saved") / "samples.png").exists() is not drawn and ("KID" in text or "Fréchet" in text) is not drawn
    said = capsys.readouterr().err
    assert "leaves out the recipe: " in said and path in said.replace("stage2_prior.pixelcnn.", "stage2_prior.")
    assert ("leaves out the picture" in said) is ("leaves out the figures of samples" in said) is drawn
    assert ".eval_results" in said and not Path("saved/.eval_results").exists()


@pytest.mark.parametrize(("steps", "schedule", "path"), [(5, None, "steps"), (3, 4, "steps"), (4, 9, "schedule_steps")])
def test_without_a_record_numbers_of_steps_are_compared_and_the_data_are_left_out(
    tiny_run, capsys, steps, schedule, path
):
    tiny_run(prior="pixelcnn")
    pipeline = load("models")
    made_by_params(pipeline)
    text = pipeline.save_pretrained("agrees").joinpath("README.md").read_text()
    assert (
        "The run kept no record of its own values" in text and "source:" not in text and "learning_rate: 0.03" in text
    )
    assert "leaves out the data: results/fingerprint has no record of the run; `dvc repro`" in capsys.readouterr().err
    edited("stage2_prior.training.schedule_steps", 4)
    edited("stage2_prior.training.steps", 6)  # the run was ended early
    assert "learning_rate" in pipeline.save_pretrained("ended early").joinpath("README.md").read_text()
    capsys.readouterr()
    edited("stage2_prior.training.steps", steps)
    edited("stage2_prior.training.schedule_steps", schedule)
    assert "learning_rate" not in pipeline.save_pretrained("edited").joinpath("README.md").read_text()
    said = f"schedule_steps: 4, and params.yaml has other stage2_prior.training.{path}\n"
    assert f"leaves out the recipe: the prior was trained with steps: 4 and {said}" in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "child"), [(paths.PREPARED, "vqvae"), (paths.CODES, "prior")])
def test_the_record_of_a_run_that_was_only_begun_is_not_that_of_the_models(finished, capsys, folder, child):
    assert "source: " in finished.save_pretrained("own").joinpath("README.md").read_text()
    shutil.rmtree(folder)
    text = finished.save_pretrained("saved").joinpath("README.md").read_text()
    assert "source: " not in text and "The run kept no record of its own values" in text
    said = capsys.readouterr().err
    assert f"leaves out the data: {folder} is not what models/{child} was made from; `dvc repro`" in said


@pytest.mark.parametrize(
    ("levels", "grids"),
    [
        ([(4, 4, 1)], "a grid of 4x4 discrete"),
        ([(4, 6, 2)], "a grid of 4x6x2 discrete"),
        ([(2, 2, 1), (4, 4, 3)], "grids of 2x2 and 4x4x3 discrete"),
    ],
)
def test_a_card_counts_the_codes_of_every_position(levels, grids):
    layout = CodeLayout((3, 16, 16), tuple(Level(*sizes, codebook_size=8) for sizes in levels))
    assert f"turns an image into {grids} codes" in _summary(SimpleNamespace(layout=layout, num_classes=0))


def test_no_path_of_this_machine_is_in_a_card(finished, in_tmp, repository):
    pictures = in_tmp / "secret" / "pictures"
    pictures.mkdir(parents=True)
    params = json.loads(Path("params.yaml").read_text())
    params["data"] |= {"source": str(pictures), "watch": str(pictures)}
    params["stage2_prior"]["training"]["initialise_from"] = str(in_tmp / "secret" / "models")
    Path("params.yaml").write_text(json.dumps(params))
    record(repository)
    for name, data in contents(finished.save_pretrained("saved")).items():
        assert b"secret" not in data and str(in_tmp).encode() not in data, name
    assert "source: pictures" in Path("saved/README.md").read_text()
    hub = {"source": "me/things", "revision": "main", "watch": "data/embedded.txt"}
    assert without_paths(hub) == {"source": "me/things", "revision": "main"}


def test_a_card_that_was_edited_stays_and_loads_by_its_new_name(finished):
    finished.save_pretrained("saved", dataset="me/things")
    card = Path("saved/README.md")
    card.write_text(card.read_text().replace("## Limits", "My own words.\n\n## Limits"))
    load("saved").save_pretrained("renamed", license="mit")
    text = Path("renamed/README.md").read_text()
    assert "My own words." in text and 'from_pretrained("renamed")' in text and text.startswith("---\nlicense: mit\n")
    assert {n: d for n, d in contents(Path("renamed")).items() if n != "README.md"} == {
        n: d for n, d in contents(Path("saved")).items() if n != "README.md"
    }
    again = load("renamed").save_pretrained("third", license="cc0-1.0").joinpath("README.md").read_text()
    assert again.count("license:") == 1 + text.count("`license:`") and again.startswith("---\nlicense: cc0-1.0\n")
    with pytest.raises(UserError, match="dataset: these models came with a card, which stays"):
        load("saved").save_pretrained("fourth", dataset="me/others")
