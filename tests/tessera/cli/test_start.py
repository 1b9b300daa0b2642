"""python -m tessera start FOLDER: the command, and the file that it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_surveys import QUICK
from PIL import Image

from tessera.cli import main
from tessera.cli.preset import leaves
from tessera.cli.start import search, timing
from tessera.cli.start.report import commented
from tessera.parameters import load, read_yaml


def test_what_was_chosen_has_its_reason_beside_it_and_the_values_are_the_same(repository: Path) -> None:
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    reasons = {"data.height": "the images' own size", "stage2_prior.layers": "few images", "data.width": "long " * 30}
    found = commented(text, reasons)
    assert read_values(found) == read_values(text)
    lines = {line.strip() for line in found.splitlines()}
    assert "height: 8 # the images' own size" in lines and "layers: 2 # few images" in lines
    assert sum(a != b for a, b in zip(text.splitlines(), found.splitlines(), strict=True)) == 2


def read_values(text: str) -> dict[str, object]:
    Path("values.yaml").write_text(text, encoding="utf-8")
    return leaves(read_yaml(Path("values.yaml")))


@pytest.fixture(autouse=True)
def in_an_empty_folder(in_tmp: Path) -> None:
    pass


@pytest.fixture
def folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`folder(classes)`: a folder of 60 coloured images of 24x20, and a params.yaml with a `runtime` of its own."""
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.01)
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("log_every: 20", "log_every: 7"), encoding="utf-8")

    def make(classes: int) -> str:
        random = np.random.default_rng(0)
        for number in range(60):
            path = Path("my images #1") / (f"class {number % classes}" if classes else "") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        return "my images #1"

    return make


@pytest.mark.parametrize("classes", [0, 3])
def test_a_folder_gives_a_whole_valid_file_and_a_plan(folder, classes: int, capsys) -> None:
    source, before = folder(classes), Path("params.yaml").read_text(encoding="utf-8")
    assert main(["start", source, "--minutes", "2"]) == 0
    told = capsys.readouterr().out
    assert Path("params.yaml.old").read_text(encoding="utf-8") == before and "params.yaml.old" in told
    params = load(Path("params.yaml"))
    assert (params.data.source, params.data.watch) == (source, source)
    assert (params.data.height, params.data.width, params.data.channels) == (20, 20, 3)
    assert params.runtime.log_every == 7, "what was there of `runtime` stays"
    assert params.sampling.guidance_scale == (2.0 if classes else 1.0)
    assert (params.evaluation.features.name == "classifier") == bool(classes)
    assert f"{source}: " in told and ("3 classes" in told or not classes) and "in all" in told
    assert f"RGB images of 20x20, each 5x5 codes of {params.stage1_vqvae.quantizer.chosen.sizes[0]}" in told
    assert main(["check"]) == 0


def test_how_the_source_was_understood_stands_below_its_images(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(search, "measure", lambda *_: QUICK)
    source = folder(2)
    image = next(Path(source).rglob("0.png")).read_bytes()
    for name in ("train", "test"):
        Path(source, name).mkdir()
    for name in ("class 0", "class 1"):
        Path(source, name).rename(Path(source, "train", name))
    for number in range(20):
        Path(source, "train", "class 0", f"{number}.heic").write_bytes(b"no image that Pillow reads")
        Path(source, "test", f"{number}.png").write_bytes(image)
    assert main(["start", source, "--minutes", "2"]) == 0
    images, *others = capsys.readouterr().out.splitlines()
    assert images.startswith(f"images    {source}: ") and "2 classes" in images
    assert others[:2] == ["          left aside: 20 .heic", "          splits not used: test (no labels)"]
    assert others[2].startswith("machine   ")


def test_a_column_of_labels_that_cannot_serve_is_named(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(search, "measure", lambda *_: QUICK)
    source = folder(0)
    names = sorted(path.name for path in Path(source).iterdir())
    rows = "".join(f"{name},{name}\n" for name in names)
    Path(source, "metadata.csv").write_text(f"file_name,label\n{rows}", encoding="utf-8")
    assert main(["start", source, "--minutes", "2"]) == 0
    images, note, *_ = capsys.readouterr().out.splitlines()
    assert "; no labels; not all are square" in images
    assert note.startswith("          no labels: column 'label' ")


def test_starting_again_loses_no_file_that_the_user_edited(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(search, "measure", lambda *_: QUICK)
    source, own = folder(2), Path("params.yaml").read_text(encoding="utf-8")
    assert main(["start", source, "--minutes", "2"]) == 0
    assert main(["start", source, "--minutes", "3"]) == 0
    first = Path("params.yaml.old2").read_text(encoding="utf-8")
    assert Path("params.yaml.old").read_text(encoding="utf-8") == own
    assert "The file as it was before is params.yaml.old2." in capsys.readouterr().out
    Path("params.yaml").write_text(first, encoding="utf-8")
    assert main(["start", source, "--minutes", "4"]) == 0
    assert "before is params.yaml.old2." in capsys.readouterr().out and not Path("params.yaml.old3").exists()


def test_what_cannot_be_started_leaves_the_file_as_it_was(folder, capsys) -> None:
    before = Path("params.yaml").read_bytes()
    Path("empty").mkdir()
    assert main(["start", "nowhere", "--params", "new.yaml"]) == 2 and not Path("new.yaml").exists()
    capsys.readouterr()
    for source in ("nowhere", "empty"):
        assert main(["start", source]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--side", "10"], ["--side", "x"], []])
def test_a_command_line_that_means_nothing_is_refused(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as status:
        main(["start", *(["images"] if words else []), *words])
    assert status.value.code == 2 and "usage: python -m tessera start" in capsys.readouterr().err
