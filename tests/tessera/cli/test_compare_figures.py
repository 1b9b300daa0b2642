"""`python -m tessera compare`: figures, which of them is best, and notes on those that cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import commit, compare, row, write_metrics

from tessera import paths
from tessera.artifacts.files import json_text, write_text
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.models import save_model
from tessera.cli import main as command
from tessera.cli.fingerprint import stages
from tessera.cli.preset import edit
from tessera.documents import read_json
from tessera.fingerprint import fingerprint
from tessera.parameters import load


def test_a_training_that_ended_early_has_a_note(project, capsys):
    file = paths.RESULTS / "train_prior" / "metrics.json"
    write_text(file, json_text({"validation": {"nats_per_token": 2.0, "steps": 80}}))
    text = compare(capsys, "first", "workspace")
    planned = load(paths.PARAMS).stage2_prior.chosen.training.steps
    assert f"note: workspace: train_prior ended after 80 of {planned} steps" in text and "note: first" not in text
    write_text(file, json_text({"validation": {"nats_per_token": 2.0, "steps": planned}}))
    assert "ended after" not in compare(capsys, "first", "workspace")


def test_rates_of_different_codes_have_no_best_and_other_data_none_at_all(project, capsys):
    edit(paths.PARAMS, {"stage1_vqvae.quantizer.codebook_size": 128})
    write_metrics(0.6, distortion=3.1)
    text = compare(capsys)
    assert "*" not in "".join(row(text, "evaluate:bits_per_dim.rate_prior"))
    assert row(text, "evaluate:bits_per_dim.total_prior") == ["lower", "4.247", "* 3.700", "-0.5468"]
    assert "only between runs of the same VQ-VAE" in text
    edit(paths.PARAMS, {"data.split_seed": 1})
    text = compare(capsys)
    assert "* " not in text and "different data" in text


@pytest.mark.parametrize(("interval", "best"), [([0.05, 0.2], ""), ([0.25, 0.4], "* "), (None, "* ")])
def test_a_distance_within_the_error_of_another_is_not_the_best(project, capsys, interval, best):
    measured = {"weights": "abc", "default": {"kid": 0.1, "kid_interval": [-0.1, 0.2]}}
    for kid, found in ((0.1, [-0.1, 0.2]), (0.3, interval)):
        measured["default"] = {"kid": kid} | ({"kid_interval": found} if found else {})
        file = paths.RESULTS / "evaluate" / "metrics.json"
        write_text(file, json_text({"distribution": measured, "images": {"test": 252, "samples": 1000}}))
        commit(str(kid))
    text = compare(capsys, "HEAD~1", "HEAD")
    assert row(text, "evaluate:distribution.default.kid") == ["lower", f"{best}0.1000", "0.3000", "+0.2"]
    assert ("no best is marked for evaluate:distribution.default.kid" in text) == (not best)


def test_figures_that_are_not_there_say_why(project, capsys):
    shutil.rmtree(paths.RESULTS)
    write_metrics(0.7, stages=("train_prior",))
    assert row(compare(capsys), "evaluate:bits_per_dim.rate_prior") == ["lower", "0.7468", "not run"]
    metrics = {"bits_per_dim": {"rate_prior": 0.7}, "unavailable": {"classifier": "classifier.name is none"}}
    write_text(paths.RESULTS / "evaluate" / "metrics.json", json_text(metrics))
    text = compare(capsys)
    assert row(text, "evaluate:classifier.sample_agreement") == ["higher", "0.6266", "unavailable"]
    assert row(text, "evaluate:codebook.usage") == ["higher", "1.000", "-"]


def test_every_figure_on_demand(project, capsys):
    text = compare(capsys, "--all")
    assert row(text, "evaluate:codebook.per_level.0.perplexity") == ["54.47", "54.47"]
    assert row(text, "train_prior:validation.step") == ["900", "900"]


def test_figures_that_are_older_than_the_parameters_are_said_to_be(project, capsys, repository):
    params = load(paths.PARAMS)
    for name in stages(repository / "dvc.yaml"):
        uses = ("sampling",) if name == "sample" else ("data",)
        write_text(paths.FINGERPRINTS / f"{name}.json", json_text(fingerprint("sampling.sample", uses, params)))
    assert "was edited" not in compare(capsys)
    edit(paths.PARAMS, {"sampling.temperature": 0.5})
    text = " ".join(compare(capsys).split())
    assert "was edited since `dvc repro`, so the figures of sample, and of the stages after" in text
    for damage in ("{}", "[]", '{"parameters": 3}'):
        write_text(paths.FINGERPRINTS / "sample.json", damage)
        assert command(["compare"]) == 2
        said = capsys.readouterr().err
        assert "sample.json: not as `fingerprint` writes it" in said and said.count("\n") == 1


def test_metrics_keep_their_type_in_json_and_odd_values_are_shown(project, capsys):
    metrics: dict[str, Any] = {"bits_per_dim": {"rate_prior": float("nan"), "total_prior": "unavailable"}}
    Path("results/evaluate/metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    text = compare(capsys)
    assert row(text, "evaluate:bits_per_dim.rate_prior") == ["lower", "0.7468", "nan"]
    assert row(text, "evaluate:bits_per_dim.total_prior") == ["lower", "4.247", "unavailable"]


def test_distances_have_a_best_only_where_the_same_network_judged(project, capsys):
    def judged(weights: str, kid: float) -> None:
        write_metrics(0.7)
        file = paths.RESULTS / "evaluate" / "metrics.json"
        found = read_json(file)
        figures = {"features": "classifier", "kid": kid}
        found["distribution"] = {"features": "classifier", "weights": weights, "default": figures, "floor": figures}
        write_text(file, json_text(found))

    judged("aa", 0.2)
    commit("judged")
    judged("aa", 0.1)
    assert row(compare(capsys, "HEAD", "workspace"), "evaluate:distribution.default.kid")[:3] == [
        "lower",
        "0.2000",
        "* 0.1000",
    ]
    everything = compare(capsys, "--all", "HEAD", "workspace")
    assert row(everything, "evaluate:distribution.floor.kid")[:2] == ["0.2000", "0.1000"]  # neither is better
    assert row(everything, "evaluate:distribution.default.features") == ["classifier", "classifier"]
    judged("bb", 0.1)
    text = compare(capsys, "HEAD", "workspace")
    assert row(text, "evaluate:distribution.default.kid")[:3] == ["lower", "0.2000", "0.1000"]
    assert "note: distances have no best here" in text


def test_figures_of_other_test_images_or_numbers_of_samples_have_no_best(project, capsys):
    def measured(rate: float, distortion: float, **images: int) -> None:
        write_metrics(rate, distortion)
        file = paths.RESULTS / "evaluate" / "metrics.json"
        found = read_json(file)
        found["images"] |= images
        distances = {"kid": rate, "frechet_distance": rate}
        found["distribution"] = {"features": "classifier", "weights": "aa", "default": distances}
        write_text(file, json_text(found))

    measured(0.7, 3.5)
    commit("all")
    measured(0.6, 3.4, test=100)
    text = compare(capsys, "--all")
    for name in ("bits_per_dim.total_prior", "bits_per_dim.rate_prior", "distribution.default.kid"):
        assert "*" not in "".join(row(text, f"evaluate:{name}")), name
    assert row(text, "evaluate:classifier.sample_agreement")[2] == "* 0.7000"
    assert row(text, "train_prior:validation.nats_per_token")[2] == "* 1.500", "the VQ-VAE is the same"
    flat = " ".join(text.split())
    assert "no best here: the runs were measured on different numbers of them (100, 252)" in flat
    assert "same VQ-VAE" not in flat
    measured(0.6, 3.5, samples=50)
    text = compare(capsys, "--all")
    assert "*" not in "".join(row(text, "evaluate:distribution.default.frechet_distance"))
    assert row(text, "evaluate:distribution.default.kid")[2] == "* 0.6000"
    assert row(text, "evaluate:bits_per_dim.rate_prior")[2] == "* 0.6000"
    assert "they depend on the number of samples, which differs (1000, 50)" in " ".join(text.split())


def test_data_are_the_same_if_dvc_recorded_the_same_images_wherever_they_lie(project, capsys):
    recorded = "stages:\n  prepare:\n    outs:\n    - path: data/prepared\n      hash: md5\n      md5: {}.dir\n"
    paths.DVC_LOCK.write_text(recorded.format("ab"))
    commit("recorded")
    edit(paths.PARAMS, {"data.source": "../pictures", "data.watch": "../pictures"})
    write_metrics(0.6)
    assert "different data" not in (text := compare(capsys, "HEAD", "workspace"))
    assert row(text, "evaluate:bits_per_dim.rate_prior")[-2] == "* 0.6000"
    assert "data.source" in text
    record = fingerprint("stage0_images.prepare", ("data",), load(paths.PARAMS))
    edit(paths.PARAMS, {"data.split_seed": 7})
    write_text(paths.FINGERPRINTS / "prepare.json", json_text(record))
    assert "different data" in compare(capsys, "HEAD", "workspace"), "what DVC recorded is of the data before the edit"
    edit(paths.PARAMS, {"data.split_seed": 0})
    assert "different data" not in compare(capsys, "HEAD", "workspace")
    paths.DVC_LOCK.write_text(recorded.format("cd"))
    assert "different data" in compare(capsys, "HEAD", "workspace")
    for damaged in ("", "stages: 1", "stages:\n  prepare: {}", "\t"):
        paths.DVC_LOCK.write_text(damaged)
        assert "different data" in compare(capsys, "HEAD", "workspace"), "then the parameters tell"


def test_figures_of_an_earlier_model_have_a_note(project, capsys):
    file = paths.RESULTS / "evaluate" / "metrics.json"
    write_text(file, json_text(read_json(file) | {"models": {"prior": "0" * 64, "vqvae": "1" * 64}}))
    shutil.rmtree(paths.PRIOR, ignore_errors=True)
    assert "note: workspace: models/vqvae is not here. If it is being trained" in compare(capsys)
    for kind, folder in (("vqvae", paths.VQVAE), ("prior", paths.PRIOR)):
        save_model(folder, kind, {}, {"weight": torch.zeros(1)}, {})
    made = {kind: read_manifest(paths.MODELS / kind, kind).identity for kind in ("prior", "vqvae")}
    write_text(file, json_text(read_json(file) | {"models": made}))
    assert "note: workspace" not in compare(capsys)
    shutil.rmtree(paths.PRIOR)  # as DVC does when the stage begins
    text = compare(capsys)
    assert "note: workspace: models/prior is not here. If it is being trained, the figures of evaluate are of" in text
    assert "note: HEAD" not in text
    shutil.rmtree(paths.VQVAE)
    save_model(paths.VQVAE, "vqvae", {}, {"weight": torch.ones(1)}, {})
    assert "note: workspace: evaluate measured another vqvae than the one in models/vqvae" in compare(capsys)


def test_the_agreement_of_a_class_has_a_best_and_its_name_and_samples_have_none(project, capsys):
    file = paths.RESULTS / "evaluate" / "metrics.json"
    rows = [{"class": "dog", "sample_agreement": 0.75, "samples": 200}]
    measured = read_json(file)
    measured["classifier"]["per_class"], measured["images"]["test"] = rows, 100  # other test images are no hindrance
    write_text(file, json_text(measured))
    text = compare(capsys, "--all")
    assert row(text, "evaluate:classifier.per_class.0.sample_agreement") == ["higher", "0.5000", "* 0.7500", "+0.25"]
    assert row(text, "evaluate:classifier.per_class.0.samples")[:2] == ["100", "200"]
    assert row(text, "evaluate:classifier.per_class.0.class")[:2] == ["cat", "dog"]
