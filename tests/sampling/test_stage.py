"""The stage `sample`: made in parts, it goes on after a kill, and gives the images that one call draws."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sampling import sample, stage
from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.images import samples
from tessera.images.pixels import to_uint8
from tessera.images.samples import open_samples
from tessera.launch.processes import USE_CPU


@pytest.fixture(autouse=True)
def on_the_cpu(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USE_CPU, "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture
def run(tiny_run, raw_params, monkeypatch) -> Path:
    """A run whose 14 images of each kind are drawn in batches of 2 and lie in 4 parts."""
    monkeypatch.setattr(samples, "PART_ROWS", 5)
    here = tiny_run()
    raw_params["sampling"]["batch_size"] = 2
    (here / "params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
    return here


def written() -> dict[str, bytes]:
    folder = paths.SAMPLES
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_parts_together_are_what_one_call_draws(run, raw_params):
    assert sample.main([]) == 0
    assert sorted(name for name in written() if name.startswith("default/images")) == [
        f"default/images-{number:05d}.npy" for number in range(4)
    ]
    others = ("images", "grid_columns", "precision", "decoder")
    section = {n: v for n, v in raw_params["sampling"].items() if n not in others}
    expected = to_uint8(TwoStagePipeline.load("models", "cpu").generate(14, "each", **section))
    assert torch.equal(open_samples(paths.SAMPLES)["default"].pixels(slice(None)), expected)


@pytest.mark.parametrize(("batches", "parts", "kept"), [(1, 0, 0), (2, 1, 2), (8, 4, 7)])
def test_sampling_that_is_killed_goes_on_after_its_last_part(run, monkeypatch, capsys, batches, parts, kept):
    """`kept`: the batches of the `parts` that are whole. A kind has 7 batches: 2, 2 and 2 in a part, and 1."""
    assert sample.main([]) == 0
    whole = written()
    shutil.rmtree(paths.SAMPLES)  # as DVC does before it runs the stage
    drawn, decode = [], TwoStagePipeline.decode_tokens

    def noted(self: TwoStagePipeline, tokens: torch.Tensor) -> torch.Tensor:
        if len(drawn) == batches:
            drawn.append("killed")
            raise KeyboardInterrupt
        drawn.append(tokens)
        return decode(self, tokens)

    monkeypatch.setattr(TwoStagePipeline, "decode_tokens", noted)
    assert sample.main([]) == 130 and not paths.SAMPLES.exists()
    assert len(list(Path(".state/sample").glob("*/*/*.npy"))) == parts
    capsys.readouterr()
    assert sample.main([]) == 0
    error = capsys.readouterr().err
    assert (f"going on after {parts} of 8 parts" in error) == (parts > 0)
    assert len(drawn) - drawn.index("killed") - 1 == 14 - kept, "no batch of a whole part is drawn again"
    assert written() == whole and not list(Path(".state/sample").iterdir())


def test_values_that_an_option_gives_are_drawn_in_one_process(run, monkeypatch, capsys):
    """The stage may be one of several processes; images of one's own would be drawn by each of them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sample.main(["--seed", "3"]) == 2
    assert "sampling.sample: runs in one process, was started in 2" in capsys.readouterr().err
    assert not Path("samples.png").exists()


def test_each_process_draws_its_own_parts_and_all_of_them_together(run, monkeypatch):
    from tessera.artifacts import parts

    drawn: list[tuple[int, int]] = []
    batches = TwoStagePipeline.batches

    def noted(self: TwoStagePipeline, count: int, labels: str, **settings: object) -> Iterator[torch.Tensor]:
        drawn.append((settings["start"], count))
        return batches(self, count, labels, **settings)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TwoStagePipeline, "batches", noted)
    monkeypatch.setattr(stage, "publish", stopped)
    dealt = []
    for rank in range(3):
        monkeypatch.setattr(parts, "world", lambda rank=rank: (rank, 3))
        monkeypatch.setattr(parts.PartFolder, "wait", lambda self, names: None)
        shutil.rmtree(".state/sample", ignore_errors=True)
        assert sample.main([]) == 130
        dealt.append(list(drawn))
        drawn.clear()
    each = [(0, 4), (4, 4), (8, 4), (12, 2)]
    assert sorted(part for parts_of_one in dealt for part in parts_of_one) == sorted(2 * each)
    assert [len(parts_of_one) for parts_of_one in dealt] == [3, 3, 2]


def test_shares_make_the_samples_of_one_job(run, capsys):
    assert sample.main([]) == 0
    whole = written()
    shutil.rmtree(paths.SAMPLES)
    shutil.rmtree(".state", ignore_errors=True)
    capsys.readouterr()
    for share in ("0/2", "1/2"):
        assert sample.main(["--share", share]) == 0 and not paths.SAMPLES.exists()
        assert f"share {share}: 4 parts made\n" in capsys.readouterr().out
    assert sample.main([]) == 0
    assert written() == whole
    assert "results/sample: 0 images in" in capsys.readouterr().out, "nothing was left to draw"


def test_a_picture_without_names_has_none_explained(tiny_run, capsys):
    folder = tiny_run(names=("a", "b", "Ελληνικά"))
    raw = json.loads((folder / "params.yaml").read_text())
    raw["sampling"]["images"] = 2  # fewer than there are classes
    (folder / "params.yaml").write_text(json.dumps(raw))
    assert sample.main([]) == 0
    said = capsys.readouterr().out
    assert "2 images" in said and "Ελληνικά" not in said


def test_top_k_over_every_codebook_is_one_line_and_leaves_no_samples(run, raw_params, capsys):
    raw_params["sampling"]["top_k"] = 9  # the published codebook has 8; params.yaml now speaks of a larger one
    raw_params["stage1_vqvae"]["quantizer"]["vq"]["codebook_size"] = 16
    (run / "params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
    assert sample.main([]) == 2
    error = capsys.readouterr().err
    assert "top_k" in error.splitlines()[-1] and "Traceback" not in error
    assert not paths.SAMPLES.exists()
