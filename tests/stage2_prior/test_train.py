"""Training a prior in process: what it publishes, resuming, refusals, and the links of a chain."""

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
from choices import few
from tiny_codes import LAYOUT

from stage2_prior import task as task_module
from stage2_prior import train
from stage2_prior.priors.build import load_prior, prior_class
from stage2_prior.task import PriorTask
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.publishing import publishing
from tessera.codes.store import open_codes
from tessera.parameters.parts import options
from tessera.training.optimizer import WeightAverage

pytestmark = pytest.mark.usefixtures("on_the_cpu")
Write = Callable[..., None]
LEARNED = [name for name in options("stage2_prior.priors") if name not in ("uniform", "counts")]


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
