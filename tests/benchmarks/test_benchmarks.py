"""The benchmarks compare like with like: bits that match, and a peer's network that is ours but for what is said."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as `python benchmarks/NAME.py` sees it: its own folder first, but not benchmarks/sampling.py."""
    importlib.import_module("sampling.generate")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return __import__(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in sorted(SCRIPTS.glob("*.py")) if "__main__" in p.read_text()], ids=lambda p: p.stem
)
def test_a_script_runs_from_any_folder(path: Path, tmp_path: Path) -> None:
    for name in ("common", "sampling"):  # of another checkout
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "__init__.py").touch()
    decoys = os.environ | {"PYTHONPATH": str(tmp_path / "other")}
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, env=decoys, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def labels() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        return list(script("quantizers", patch).ROWS)


@pytest.mark.parametrize("label", labels())
def test_every_quantizer_of_the_comparison_is_valid_and_has_576_bits(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizers, runs = script("quantizers", monkeypatch), script("runs", monkeypatch)
    prepared = script("stage1_speed", monkeypatch).smooth_images(4)
    model = runs.task_of(runs.parameters(quantizers.ROWS[label] | runs.schedule(6)), prepared).model
    levels = model.layout.levels
    assert sum(v.height * v.width * v.depth * math.log2(v.codebook_size) for v in levels) == pytest.approx(576)


def test_a_processor_is_named_with_its_vector_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, file = script("runs", monkeypatch), tmp_path / "cpuinfo"
    monkeypatch.setattr(runs, "CPU_INFO", file)
    for flags, name in (
        ("fpu avx2", "A (AVX2)"),
        ("avx2 avx512f avx512_bf16", "A (AVX2, AVX-512, bf16)"),
        ("fpu", "A"),
    ):
        file.write_text(f"model name\t: A\nflags\t\t: {flags}\n\nmodel name\t: B\nflags\t\t: amx_bf16\n")
        assert runs.processor("cpu") == name


def test_rows_of_several_seeds_have_bars_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = script("quantizers", monkeypatch).bar_labels
    assert labels([{"label": "ibq"}, {"label": "gumbel", "seed": 0}]) == ["ibq", "gumbel"]  # older rows are of seed 0
    assert labels([{"label": "ibq"}, {"label": "ibq", "seed": 1}]) == ["ibq, seed 0", "ibq, seed 1"]


def test_a_whole_training_keeps_no_state(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "of another test")  # the training sets it
    runs, prepared = script("runs", monkeypatch), script("stage1_speed", monkeypatch).smooth_images(8)
    small = {"network.conv.channels": 8, "quantizer.codebook_size": 16}
    small |= {"training.compile": False, "training.precision": "fp32", "training.batch_size": 4}
    changes = {runs.STAGE1 + name: value for name, value in small.items()} | {"runtime.pictures": 0}
    run = runs.train(runs.parameters(changes | runs.schedule(2)), prepared)
    assert [row["step"] for row in run.curve] == [2]
    assert not list(in_tmp.rglob("*.safetensors"))


def test_the_plain_network_is_ours_but_for_its_rectified_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("stage1_speed", monkeypatch)
    prepared = speed.smooth_images(48)
    batches = list(prepared["train"].pixels(slice(None)).split(16))
    fp32 = {"batch_size": 16, "precision": "fp32", "channels_last": False, "compile": False}
    difference, codes = speed.loss_difference(prepared, batches, 1, **fp32)
    assert difference < 1e-5 and codes > 10
    monkeypatch.setattr(speed, "PlainVQVAE", lambda variance, rectified_skip: sys.modules["plain"].PlainVQVAE(variance))
    assert speed.loss_difference(prepared, batches, 1, **fp32)[0] > 1e-4


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/sampling.py, by a name that the package leaves free; after the package, which it would hide."""
    importlib.import_module("sampling.generate")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("benchmark_of_sampling", SCRIPTS / "sampling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["pixelcnn", "pixelsnail"])
def test_rows_so_far_are_enough_for_the_logits_of_the_whole_grid(
    name: str, sampling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"width": 16, "channels": 1.0, "kernel_size": 3, "dropout": 0.0}
    small = {"layers": 2} if name == "pixelcnn" else sampling.SNAIL | {"hidden": 1.0, "layers": 1, "heads": 2}
    monkeypatch.setitem(sampling.PRIORS, name, (name, small | size, 1))
    prior = sampling.make(name, "fp32", 4)
    codes = torch.randint(sampling.CODES, (3, 4, 4, 1))
    whole = prior.logits(codes.flatten(1), None)
    for rows in (1, 3, 4):
        torch.testing.assert_close(
            sampling.last_logits(prior, codes[:, :rows]), whole[:, 4 * rows - 1], rtol=1e-4, atol=1e-5
        )


def test_a_table_takes_no_products(sampling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    work_of = script("sampling_bounds", monkeypatch).work_of
    assert work_of(sampling.make("counts", "fp32", 4), 5)["flops"] == 0


@pytest.mark.parametrize("name", ["gpt2", "rq_transformer", "any_order", "masked"])
def test_the_work_of_a_transformer_is_that_of_its_products(
    name: str, sampling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, params, depth = sampling.PRIORS[name]
    small = params | {"layers": 3, "width": 16, "heads": 2} | ({"depth_layers": 1} if depth > 1 else {})
    monkeypatch.setitem(sampling.PRIORS, name, (family, small, depth))
    work = script("sampling_bounds", monkeypatch).work_of(sampling.make(name, "fp32", 4), 5)
    layer, codes = 12 * 16**2, sampling.CODES
    # Weights of the matrices that a token, or a position, goes through.
    across, down, head = 3 * layer, layer if depth > 1 else 0, 16 * codes
    passes = 8 if name == "masked" else 1
    assert work["flops"] == 2 * 5 * 16 * passes * (across + depth * (down + head))
    small_ones = 1.2  # biases and norms
    used = passes * (across + head) if name == "masked" else 16 * (across + depth * (down + head))
    assert 4 * used <= work["bytes"] <= 4 * used * small_ones


def test_orders_are_only_measured_of_a_prior_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("sampling.pipeline")  # before benchmarks/sampling.py could hide the package
    completion = script("completion", monkeypatch)

    def prior(name: str, *links: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, chained=lambda: [prior(link) for link in links])

    completion.require_orders(prior("any_order"))
    completion.require_orders(prior("chain", "any_order", "pixelcnn"))
    for other in (prior("masked"), prior("chain", "pixelcnn", "masked")):
        with pytest.raises(SystemExit, match=f"only the prior any_order .* this run has {other.name}"):
            completion.require_orders(other)
