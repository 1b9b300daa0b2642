"""Training a prior in process: what it publishes, resuming, refusals; and the task it brings to the loop."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import written_parts
from choices import few

from stage2_prior import task as task_module
from stage2_prior import train
from stage2_prior.priors.build import build_prior, load_prior, prior_class
from stage2_prior.task import PriorTask, nats_by_token
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.publishing import publishing
from tessera.codes.layout import CodeLayout, Level
from tessera.codes.store import open_codes
from tessera.parameters.parts import options
from tessera.training.optimizer import WeightAverage

Write = Callable[..., None]
LEARNED = [name for name in options("stage2_prior.priors") if name not in ("uniform", "counts")]
LAYOUT = CodeLayout((1, 8, 8), (Level(1, 1, 1, 5), Level(2, 2, 1, 7)))


@pytest.fixture(autouse=True)
def on_the_cpu(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture
def write_codes(in_tmp: Path) -> Callable[..., None]:
    """`write_codes(classes=3)`: data/codes of two levels with three passes, and a stand-in for its VQ-VAE."""

    def write(classes: int = 3, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        with publishing(paths.VQVAE, "vqvae", {}) as folder:
            (folder / "config.json").write_text(f"{seed}", encoding="utf-8")
        parents = {"vqvae": read_manifest(paths.VQVAE, "vqvae").identity, "prepared": "p"}
        splits = {"train": [3, 40], "validation": [1, 13], "test": [1, 7]}
        tokens, labels = {}, {}
        for name, (passes, count) in splits.items():
            labels[name] = np.arange(count) % max(1, classes)
            noise = random.integers(0, 2, (passes, count, LAYOUT.num_tokens))
            numbers = np.arange(passes)[:, None, None]
            tokens[name] = (labels[name][:, None] + noise + numbers) % LAYOUT.codebook_sizes.numpy()
        names = tuple(f"class {i}" for i in range(classes)) or None
        with publishing(paths.CODES, "codes", parents) as folder:
            written_parts.write_codes(folder, LAYOUT, names, tokens, labels if classes else {})

    return write


def choose(name: str, rate: float = 0.0) -> dict[str, Any]:
    """Changes that choose a prior for the two levels of `write_codes`, with dropout."""
    changes = {"stage2_prior.name": name, "stage2_prior.dropout": rate}
    if name == "chain":
        changes["stage2_prior.chain.links"] = [{"name": "transformer"}, {"name": "pixelsnail"}]
        changes["stage1_vqvae.network.conv.strides"] = [2, 2]
    return changes


def published() -> dict[str, bytes]:
    files = [p for folder in (paths.PRIOR, train.RESULTS) for p in sorted(folder.rglob("*.*")) if p.suffix != ".png"]
    return {p.as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", options("stage2_prior.priors"))
def test_every_prior_is_published_with_curves_and_figures(
    write_params: Write, write_codes: Write, name: str, classes: int
) -> None:
    write_codes(classes)
    write_params(choose(name))
    assert train.main([]) == 0
    prior, manifest = load_prior(paths.PRIOR)
    codes = open_codes(paths.CODES)
    assert manifest.parents == {"codes": codes.manifest.identity, "vqvae": codes.manifest.parents["vqvae"]}
    assert (prior.layout, prior.num_classes) == (LAYOUT, classes)
    figures = json.loads((train.RESULTS / "metrics.json").read_text())["validation"]
    validation = codes["validation"]
    with torch.no_grad():
        nats = prior.nll(validation.rows(slice(None)), validation.label_tensor(slice(None))).mean().item()
    assert figures["nats_per_token"] == pytest.approx(nats, rel=1e-5)
    assert (train.RESULTS / "train.csv").read_text().startswith("step")
    assert "nats_per_token" in (train.RESULTS / "validation.csv").read_text()
    with (train.RESULTS / "tokens.csv").open() as file:
        by_position = list(csv.DictReader(file))
    places = [[int(row[name]) for name in ("level", "row", "column", "depth")] for row in by_position]
    assert places == LAYOUT.places.tolist()
    mean = np.mean([float(row["nats"]) for row in by_position])
    assert mean == pytest.approx(figures["nats_per_token"], rel=1e-5)
    if name == "uniform":
        assert nats == pytest.approx(LAYOUT.uniform_nats / LAYOUT.num_tokens, rel=1e-6)


@pytest.mark.parametrize("name", ["pixelsnail", "transformer", "chain"])
def test_training_options_reach_the_prior(
    write_params: Write, write_codes: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_codes()
    section, called = "stage2_prior.training.", []
    chosen = {"gradient_checkpointing": True, "weight_ema_decay": 0.5, "precision": "bf16", "compile": True}
    write_params(choose(name) | {section + key: value for key, value in chosen.items()})
    kinds = (prior_class(name), "checkpoint_gradients"), (torch.nn.Module, "compile"), (WeightAverage, "update")
    for owner, method in kinds:
        original = getattr(owner, method)

        def noted(self, *arguments, method=method, original=original):
            called.append(method)
            return None if method == "compile" else original(self, *arguments)  # a minute, and tested elsewhere

        monkeypatch.setattr(owner, method, noted)
    assert train.main([]) == 0
    assert set(called) == {method for _, method in kinds}
    assert called.count("checkpoint_gradients") == 1
    assert called.count("compile") == (2 if name == "chain" else 1)  # each link has a loss of its own


@pytest.mark.parametrize("name", few(LEARNED, "transformer", "masked", "chain"))
def test_five_steps_an_interruption_and_five_more_equal_ten_with_dropout(
    write_params: Write, write_codes: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_codes()
    write_params(choose(name, rate=0.3))
    assert train.main([]) == 0
    whole = published()
    Path(".state").rename("state_of_the_whole_run")
    original = PriorTask.update

    def interrupted(self: PriorTask, step: int) -> dict:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(task_module.PriorTask, "update", interrupted)
        with pytest.raises(SystemExit) as stop:
            train.main([])
    assert stop.value.code == 130
    assert train.main([]) == 0
    assert published() == whole


def chain(*names: str, **changes: Any) -> dict[str, Any]:
    """Changes that choose a chain of these priors, with dropout; and `changes` of its training."""
    links = {"stage2_prior.chain.links": [{"name": name} for name in names]}
    training = {f"stage2_prior.training.{name}": value for name, value in changes.items()}
    return choose("chain", rate=0.3) | links | training


def rows_of(name: str) -> list[dict[str, str]]:
    with (train.RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_link_of_a_chain_is_trained_as_if_the_other_links_were_not_there(
    write_params: Write, write_codes: Write
) -> None:
    write_codes()
    found = []
    for other in ("pixelsnail", "transformer"):
        write_params(chain("transformer", other))
        assert train.main([]) == 0
        found.append(load_prior(paths.PRIOR)[0].links[0].state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_each_link_of_a_chain_is_published_at_its_own_best_step(write_params: Write, write_codes: Write) -> None:
    write_codes()
    # So large a learning rate that the two links are best at different steps.
    write_params(chain("transformer", "pixelsnail", steps=24, validate_every=2, patience=3, learning_rate=0.1))
    assert train.main([]) == 0
    curve, figures = rows_of("validation"), json.loads((train.RESULTS / "metrics.json").read_text())["validation"]
    for level in (0, 1):
        nats = {int(row["step"]): float(row[f"nats_per_token_level_{level}"]) for row in curve}
        stop = next((step for step in nats if stale(nats, step) == 3), 24)
        best = min((step for step in nats if step <= stop), key=nats.__getitem__)
        assert figures[f"best_step_level_{level}"] == int(curve[-1][f"best_step_level_{level}"]) == best
        assert figures[f"nats_per_token_level_{level}"] == pytest.approx(nats[best], rel=1e-6)
        after = {value for step, value in nats.items() if step >= stop}
        assert len(after) == 1  # a link that has stopped is not updated any more
        taught = [row["step"] for row in rows_of("train") if row[f"loss_level_{level}"]]
        assert int(taught[-1]) == stop
    steps = [figures["best_step_level_0"], figures["best_step_level_1"]]
    assert steps[0] != steps[1] and figures["step"] == max(steps)
    shares = [level.height * level.width for level in LAYOUT.levels]
    mean = sum(shares[i] * figures[f"nats_per_token_level_{i}"] for i in (0, 1)) / sum(shares)
    assert figures["nats_per_token"] == pytest.approx(mean, rel=1e-6)


def stale(nats: dict[int, float], at: int) -> int:
    """How many validations there have been at a step since the best one."""
    best = min((step for step in nats if step <= at), key=nats.__getitem__)
    return sum(best < step <= at for step in nats)


def test_a_chain_with_one_trained_link_and_tables_is_trained(write_params: Write, write_codes: Write) -> None:
    write_codes()
    write_params(chain("counts", "pixelcnn"))
    assert train.main([]) == 0
    row = rows_of("train")[-1]
    assert row["loss"] == row["loss_level_1"] and "loss_level_0" not in row


def test_a_prior_names_the_vqvae_of_its_codes_whichever_is_published_now(
    write_params: Write, write_codes: Write
) -> None:
    write_codes()
    write_params({"stage2_prior.name": "counts"})
    with publishing(paths.VQVAE, "vqvae", {}) as folder:
        (folder / "config.json").write_text("another", encoding="utf-8")
    assert train.main([]) == 0
    named = read_manifest(paths.PRIOR, "prior").parents["vqvae"]
    assert named == open_codes(paths.CODES).manifest.parents["vqvae"] != read_manifest(paths.VQVAE, "vqvae").identity


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("change", [damage, truncate, Path.unlink])
def test_damaged_codes_are_one_clear_line(
    write_params: Write, write_codes: Write, capsys: pytest.CaptureFixture, change: Callable
) -> None:
    write_codes()
    write_params({"stage2_prior.name": "counts"})
    change(paths.CODES / "train" / "pass-000" / "codes-00000.npy")
    assert train.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data/codes/train/pass-000/codes-00000.npy: ") and error.count("\n") == 1
    assert "`python -m stage1_vqvae.extract`" in error and not paths.PRIOR.exists()


def make_task(classes: int, name: str = "pixelcnn", **training: Any) -> PriorTask:
    from tessera.parameters import load

    codes = open_codes(paths.CODES)
    section = getattr(load(Path("params.yaml")).stage2_prior, name)
    torch.manual_seed(0)
    config = {"name": name, "params": section.arguments(), "layout": LAYOUT.to_json(), "num_classes": classes}
    prior = build_prior(config)
    return PriorTask(prior, codes, section.training.model_copy(update=training))


@pytest.mark.parametrize(
    ("prior", "names"),
    [
        ("pixelcnn", {"tokens", "labels"}),
        ("masked", {"tokens", "labels", "noise"}),
        ("any_order", {"tokens", "labels", "noise", "progress"}),
    ],
)
def test_a_batch_is_the_same_however_it_is_shared(
    write_params: Write, write_codes: Write, prior: str, names: set[str]
) -> None:
    write_codes()
    write_params()
    task = make_task(3, prior)
    for step in (0, 4, 5):
        whole = task.batch(step, slice(0, 8))
        halves = [task.batch(step, rows) for rows in (slice(0, 4), slice(4, 8))]
        assert whole.keys() == names
        for name in names:
            assert torch.equal(torch.cat([half[name] for half in halves]), whole[name])


def test_random_numbers_change_with_the_step_and_progress_is_of_the_schedule(
    write_params: Write, write_codes: Write
) -> None:
    write_codes()
    write_params()
    for training, expected in (
        ({"steps": 8, "schedule_steps": None}, [0, 0.25, 1]),
        ({"steps": 8, "schedule_steps": 4}, [0, 0.5, 1]),  # longer than its schedule
    ):
        task = make_task(3, "any_order", **training)
        batches = [task.batch(step, slice(0, 4)) for step in (0, 2, 8)]
        assert [batch["progress"].unique().tolist() for batch in batches] == [[value] for value in expected]
        assert not torch.equal(batches[0]["noise"], batches[1]["noise"])
        assert len(batches[0]["noise"].unique(dim=0)) == 4
        assert torch.equal(task.batch(2, slice(0, 4))["noise"], batches[1]["noise"])


def test_labels_are_dropped_and_extra_passes_taken_as_often_as_asked(write_params: Write, write_codes: Write) -> None:
    write_codes()
    write_params()
    task = make_task(3, batch_size=2000, label_dropout=0.25, extra_pass_fraction=0.6)
    task.order.batch_size = 2000
    batch, indices = task.batch(0, slice(0, 2000)), task.order.batch(0)
    train_split = task.codes["train"]
    dropped = batch["labels"] == 3
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(batch["labels"][~dropped], train_split.label_tensor(indices)[~dropped])
    of_pass = torch.stack([(train_split.rows(indices, p) == batch["tokens"]).all(1) for p in range(3)])
    assert of_pass.any(0).all()  # each the codes of its own image, in one of its passes
    shares = of_pass.float().mean(1).tolist()
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.04)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, [True]), (1.0, [False])])
def test_extra_passes_may_be_never_or_always(
    write_params: Write, write_codes: Write, fraction: float, expected: list[bool]
) -> None:
    write_codes()
    write_params()
    task = make_task(3, extra_pass_fraction=fraction)
    plain = task.codes["train"].rows(task.order.batch(2))
    assert (task.batch(2, slice(0, 8))["tokens"] == plain).all(1).unique().tolist() == expected


def test_without_classes_every_label_is_the_null_label(write_params: Write, write_codes: Write) -> None:
    write_codes(classes=0)
    write_params()
    assert make_task(0).batch(0, slice(0, 8))["labels"].tolist() == [0] * 8


def test_nats_per_token_count_every_image_once(write_params: Write, write_codes: Write) -> None:
    write_codes()
    write_params()
    task = make_task(3)
    split, prior = task.codes["validation"], task.model.eval()
    with torch.no_grad():
        expected = prior.nll(split.rows(slice(None)), split.label_tensor(slice(None)))
    for batch_size in (1, 5, 13, 100):
        found = nats_by_token(prior, split, batch_size, torch.device("cpu"))
        torch.testing.assert_close(found.float(), expected.mean(0))
    mean = expected.mean().item()
    assert task.validate() == {
        "nats_per_token": pytest.approx(mean),
        "nats_per_token_level_0": pytest.approx(expected[:, 0].mean().item()),
        "nats_per_token_level_1": pytest.approx(expected[:, 1:].mean().item()),
    }
