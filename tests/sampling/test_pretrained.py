"""The models in pretrained/: they load, draw the pictures of their cards, and score what their cards say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.metrics import label_nats
from sampling import sample
from sampling.pictures import classes_in_rows
from sampling.pipeline import TwoStagePipeline
from stage0_images import prepare
from tessera import paths
from tessera.codes.layout import CodeLayout
from tessera.images.pixels import to_uint8
from tessera.images.prepared import open_prepared

PRETRAINED = Path(__file__).parents[2] / "pretrained"
NAMES = sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())
MOST_BYTES = 12_000_000  # of all of them together
COLUMNS = 10  # of the pictures, as sampling.grid_columns has it
TOTAL = {
    "digits": 5.3574,
    "fashion_mnist": 4.5338,
}  # bits per dimension of the pictures' images, measured when the models were made


@pytest.fixture
def model(request: pytest.FixtureRequest) -> TwoStagePipeline:
    return TwoStagePipeline.from_pretrained(PRETRAINED / request.param, device="cpu")


def card(name: str) -> str:
    return (PRETRAINED / name / "README.md").read_text(encoding="utf-8")


def figure(name: str, what: str) -> float:
    """A figure of a card, by the beginning of its row."""
    return float(re.search(rf"^\| {re.escape(what)}[^|]*\| (\S+) \|", card(name), re.MULTILINE)[1])


def drawn(pipeline: TwoStagePipeline) -> torch.Tensor:
    """The images of a card's picture, uint8, a class after the other, drawn as params.yaml asks for by default."""
    classes = len(pipeline.classes.trained)
    images = to_uint8(pipeline.generate(COLUMNS * classes, labels="each", seed=0, batch_size=COLUMNS * classes))
    return torch.cat([images[number::classes] for number in range(classes)])


@pytest.mark.parametrize("model", NAMES, indirect=True, ids=NAMES)
def test_a_model_draws_the_picture_of_its_card(model: TwoStagePipeline) -> None:
    """Another machine rounds differently, and may choose another code where two are almost equally likely."""
    numbers = list(model.classes.trained)
    picture = classes_in_rows(drawn(model), numbers, COLUMNS, model.classes).permute(1, 2, 0).numpy()
    shown = np.asarray(Image.open(Path(model.source) / "samples.png"))
    assert picture.shape == shown.shape
    off = np.abs(picture.astype(int) - shown) > 2
    assert off.mean() < 0.02, f"{off.mean():.1%} of the picture's values differ"


@pytest.mark.parametrize("model", NAMES, indirect=True, ids=NAMES)
def test_a_model_gives_its_own_images_the_likelihood_that_was_measured(model: TwoStagePipeline) -> None:
    images = drawn(model)
    labels = [number for number in model.classes.trained for _ in range(COLUMNS)]
    total = model.log_likelihood(images, labels)["total"].mean().item()
    assert total == pytest.approx(TOTAL[Path(model.source).name], abs=5e-3)


@pytest.mark.parametrize("model", ["digits"], indirect=True)
def test_the_digits_score_what_their_card_says(
    model: TwoStagePipeline, in_tmp: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits are measured here by the pipeline alone. `evaluate` measured them from the codes on disk."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    (in_tmp / "params.yaml").write_bytes((repository / "presets" / "digits.yaml").read_bytes())
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "embedded.txt").write_bytes((repository / "data" / "embedded.txt").read_bytes())
    assert prepare.main([]) == 0
    splits = open_prepared(paths.PREPARED)
    test, train = splits["test"], splits["train"]
    found = model.log_likelihood(test.pixels(slice(None)), test.label_tensor(slice(None)))
    label = label_nats(np.asarray(test.labels), np.asarray(train.labels), model.num_classes).mean()
    rate = found["rate"].mean().item() + model.layout.bits_per_dim(float(label))
    assert found["distortion"].mean().item() == pytest.approx(figure("digits", "of these, distortion"), abs=2e-3)
    assert rate == pytest.approx(figure("digits", "of these, rate"), abs=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_a_saved_pipeline_with_a_licence_and_figures(name: str) -> None:
    files = {
        path.relative_to(PRETRAINED / name).as_posix() for path in (PRETRAINED / name).rglob("*") if path.is_file()
    }
    models = {f"{m}/{f}" for m in ("vqvae", "prior") for f in ("config.json", "model.safetensors", "manifest.json")}
    assert files - {".eval_results/tessera.yaml"} == {*models, "README.md", "samples.png"}
    text = card(name)
    assert re.match(r"---\n(.*\n)*?license: \S+\n", text) and "## Figures" in text and "None is known" not in text
    layout = CodeLayout.from_json(json.loads((PRETRAINED / name / "prior/config.json").read_text())["layout"])
    assert f"{layout.image_shape[1]}x{layout.image_shape[2]}" in text


def test_all_models_together_are_small_and_name_no_machine() -> None:
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    for path in files:
        content = path.read_bytes()
        for word in (b"/" + b"work/", b"/" + b"root/", b"/" + b"home/", b"/" + b"tmp/"):
            assert word not in content, path


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_the_readme_leaves_a_picture(name: str, in_tmp: Path, repository: Path, capsys) -> None:
    (in_tmp / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    assert sample.main(["--models", str(PRETRAINED / name), "--output", "grid.png"]) == 0
    assert capsys.readouterr().out.startswith("grid.png: 10 images of each of 10 classes")
    with Image.open("grid.png") as picture, Image.open(PRETRAINED / name / "samples.png") as shown:
        assert picture.size == shown.size
