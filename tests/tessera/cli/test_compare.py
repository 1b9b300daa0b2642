"""`python -m tessera compare`: what differs between runs, and which is best, from Git alone."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from choices import few
from rich.cells import cell_len

from tessera import paths
from tessera.artifacts.files import json_text, write_text
from tessera.cli import main as command
from tessera.cli.fingerprint import stages
from tessera.cli.preset import edit
from tessera.documents import read_json
from tessera.fingerprint import fingerprint
from tessera.parameters import load

RATE = "evaluate:bits_per_dim.rate_prior"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def write_metrics(rate: float, distortion: float = 3.5, stages: tuple[str, ...] = ("evaluate", "train_prior")) -> None:
    """Made-up figures in the shape of the real ones."""
    evaluated = {
        "bits_per_dim": {"distortion": distortion, "rate_prior": rate, "total_prior": distortion + rate},
        "reconstruction": {"nmse": 0.03282198, "psnr": 23.5},
        "classifier": {"sample_agreement": 1 - rate / 2, "unguided_agreement": 0.85},
        "codebook": {"usage": 1.0, "perplexity": 54.4680319, "per_level": [{"usage": 1.0, "perplexity": 54.4680319}]},
        "images": {"test": 252, "samples": 1000},
    }
    found = {"evaluate": evaluated, "train_prior": {"validation": {"nats_per_token": 2.5 * rate, "step": 900}}}
    for stage in stages:
        write_text(paths.RESULTS / stage / "metrics.json", json_text(found[stage]))


def commit(message: str) -> str:
    git("add", ".")
    git("commit", "--quiet", "--allow-empty", "-m", message)
    return git("rev-parse", "HEAD")


@pytest.fixture
def project(in_tmp: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit: the default parameters, and figures."""
    monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    shutil.copy(repository / "params.yaml", in_tmp)
    git("init", "--quiet")
    write_metrics(0.7467917)
    commit("transformer")
    git("tag", "first")
    return in_tmp


@pytest.fixture
def three_priors(project: Path) -> Path:
    """Three commits, tagged by the names of their priors."""
    git("tag", "transformer")
    for prior, rate in (("pixelcnn", 0.7123456), ("counts", 0.93)):
        edit(paths.PARAMS, {"stage2_prior.name": prior, "stage2_prior.pixelcnn.kernel_size": 5})
        write_metrics(rate)
        commit(prior)
        git("tag", prior)
    return project


def compare(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert command(["compare", *arguments]) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    """The cells after a row's name. Two cells stand two columns apart."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return [cell.strip() for cell in line.removeprefix(name).split("  ") if cell.strip()]


def values_of(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="") as text:
        return {found["name"]: found for found in csv.DictReader(text)}


def test_three_priors_side_by_side(three_priors, capsys):
    text = compare(capsys, "transformer", "pixelcnn", "counts")
    assert row(text, "stage2_prior.name") == ["transformer", "pixelcnn", "counts"]
    assert row(text, "stage2_prior.kernel_size") == ["-", "5", "-"]  # the first commit's file has 3
    # What only some of them use, and the others would use with the same value, follows from the names.
    assert "architecture" not in text and "stage2_prior.layers" not in text and "training.steps" not in text
    assert row(text, "evaluate:bits_per_dim.rate_prior") == ["lower", "0.7468", "* 0.7123", "0.9300"]
    assert row(text, "evaluate:classifier.sample_agreement") == ["higher", "0.6266", "* 0.6438", "0.5350"]
    assert row(text, "evaluate:bits_per_dim.distortion") == ["lower", "3.500", "3.500", "3.500"]  # all equal: no best
    assert row(text, "evaluate:images.test") == ["252", "252", "252"]
    for not_chosen in ("largest_softmax", "masked", "chain", "fsq", "data.source", "runtime", "perplexity"):
        assert not_chosen not in text
    assert git("rev-parse", "--short=7", "counts") in text


def test_a_training_that_ended_early_has_a_note(project, capsys):
    file = paths.RESULTS / "train_prior" / "metrics.json"
    write_text(file, json_text({"validation": {"nats_per_token": 2.0, "steps": 80}}))
    text = compare(capsys, "first", "workspace")
    planned = load(paths.PARAMS).stage2_prior.chosen.training.steps
    assert f"note: workspace: train_prior ended after 80 of {planned} steps" in text and "note: first" not in text
    write_text(file, json_text({"validation": {"nats_per_token": 2.0, "steps": planned}}))
    assert "ended after" not in compare(capsys, "first", "workspace")


def test_a_shared_value_counts_where_an_option_uses_it(three_priors, capsys):
    edit(paths.PARAMS, {"stage2_prior.layers": 5})  # of `counts`, which has no layers
    assert "no parameter that the runs use differs" in compare(capsys)
    edit(paths.PARAMS, {"stage2_prior.name": "pixelcnn"})
    assert row(compare(capsys, "pixelcnn"), "stage2_prior.layers") == ["2", "5"]
    assert row(compare(capsys, "counts"), "stage2_prior.layers") == ["-", "5"]
    assert row(compare(capsys, "transformer"), "stage2_prior.layers") == ["2", "5"]


def test_options_inside_options_and_values_of_true_and_one(project, capsys):
    quantizer = {"stage1_vqvae.quantizer.name": "residual", "stage1_vqvae.quantizer.shared_by_levels": True}
    edit(paths.PARAMS, quantizer | {"stage1_vqvae.quantizer.residual.quantizer.name": "simvq"})
    commit("residual")
    edit(paths.PARAMS, {"stage1_vqvae.quantizer.residual.quantizer.codebook_size": 32})
    text = compare(capsys)
    assert row(text, "stage1_vqvae.quantizer.quantizer.codebook_size") == ["64", "32"]
    text = compare(capsys, "first", "workspace")
    assert row(text, "stage1_vqvae.quantizer.shared_by_levels") == ["-", "true"]
    assert row(text, "stage1_vqvae.quantizer.quantizer.name") == ["-", "simvq"]


def test_an_edit_of_an_option_that_is_not_chosen_is_no_difference(project, capsys):
    edit(paths.PARAMS, {"stage2_prior.pixelcnn.kernel_size": 5, "runtime.log_every": 7})
    assert "no parameter that the runs use differs" in compare(capsys)
    edit(paths.PARAMS, {"stage2_prior.transformer.architecture": "llama"})
    assert row(compare(capsys), "stage2_prior.architecture") == ["gpt2", "llama"]


def test_nothing_named_is_head_and_the_workspace_with_changes(project, capsys):
    edit(paths.PARAMS, {"stage2_prior.layers": 4})
    write_metrics(0.7)
    text = compare(capsys)
    assert row(text, "stage2_prior.layers") == ["2", "4"]
    assert row(text, "evaluate:bits_per_dim.rate_prior") == ["lower", "0.7468", "* 0.7000", "-0.04679"]
    assert compare(capsys, "HEAD") == text == compare(capsys, "HEAD", "workspace")


def test_two_commits_by_any_name_of_git(three_priors, capsys):
    first, second = git("rev-parse", "first"), git("rev-parse", "HEAD~1")
    for names in (("first", "HEAD~1"), (first, second), (first[:9], "pixelcnn"), ("HEAD~2", "HEAD^")):
        text = compare(capsys, *names)
        assert row(text, "stage2_prior.name") == ["transformer", "pixelcnn"]
        assert row(text, "train_prior:validation.nats_per_token") == ["lower", "1.867", "* 1.781", "-0.08612"]


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


def test_csv_has_the_rows_with_exact_values(three_priors, capsys):
    compare(capsys, "transformer", "pixelcnn", "counts", "--csv", "out/table.csv")
    found = values_of(Path("out/table.csv"))
    rate = {"kind": "figure", "name": "evaluate:bits_per_dim.rate_prior", "better": "lower"}
    values = {"transformer": "0.7467917", "pixelcnn": "0.7123456", "counts": "0.93"}
    assert found["evaluate:bits_per_dim.rate_prior"] == rate | values
    assert found["stage2_prior.kernel_size"] == {
        "kind": "parameter",
        "name": "stage2_prior.kernel_size",
        "better": "",
        "transformer": "",
        "pixelcnn": "5",
        "counts": "",
    }


@pytest.mark.parametrize("columns", few(["300", "120", "80"], "120"))
def test_many_runs_and_long_values_fit_and_nothing_is_cut(project, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    long = "/a folder/" + "very/" * 40 + "長い名前/end"
    edit(paths.PARAMS, {"data.source": long, "data.watch": long})
    names = ["first"]
    for number in range(12):
        edit(paths.PARAMS, {"stage2_prior.layers": 2 + number})
        write_metrics(0.1 + number / 7)
        names.append(commit("more"))
    git("tag", "a-name-of-an-experiment-that-somebody-thought-about-for-a-long-time")
    names.append("a-name-of-an-experiment-that-somebody-thought-about-for-a-long-time")
    text = compare(capsys, *names, "--all", "--csv", "table.csv")
    assert max(map(cell_len, text.splitlines())) <= min(120, int(columns))
    assert "…" not in text
    if columns != "80":  # where names are broken
        cells = [row(line, RATE)[1:] for line in text.splitlines() if line.startswith(f"{RATE} ")]
        assert 1 < len(cells) <= 4 and sum(map(len, cells)) == 14  # several tables, and each value whole in one line
        assert [float(value.removeprefix("* ")) for values in cells for value in values][1:13] == pytest.approx(
            [0.1 + number / 7 for number in range(12)], rel=1e-3
        )
    found = values_of(Path("table.csv"))
    assert found["data.source"][names[1]] == long
    assert [found["stage2_prior.layers"][name] for name in names[1:13]] == [str(2 + number) for number in range(12)]


def test_parameters_of_another_version_are_shown_as_they_stand_and_that_is_said(project, capsys):
    text = paths.PARAMS.read_text(encoding="utf-8").replace("  codebook_size:", "  size_of_codebook:", 1)
    paths.PARAMS.write_text(text.replace("\n  layers: 2", "\n  layers: 3", 1), encoding="utf-8")
    commit("old")
    git("checkout", "--quiet", "first", "--", "params.yaml")
    found = " ".join(compare(capsys, "HEAD").split())
    assert "note: HEAD: params.yaml: written for another version" in found and "size_of_codebook" in found
    assert row(compare(capsys, "HEAD"), "stage2_prior.layers") == ["3", "2"]


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


def experiment(name: str, baseline: str) -> str:
    """A commit that only a reference as DVC makes them leads to."""
    edit(paths.PARAMS, {"stage2_prior.layers": 7})
    commit(name)
    made = git("rev-parse", "HEAD")
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", made)
    git("reset", "--quiet", "--hard", baseline)
    return made


def test_an_experiment_is_found_by_its_name_without_dvc(project, capsys):
    made = experiment("seven-layers", git("rev-parse", "HEAD"))
    text = compare(capsys, "HEAD", "seven-layers")
    assert row(text, "stage2_prior.layers") == ["2", "7"] and made[:7] in text


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert command(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_of_experiments_with_one_name_the_one_from_here_is_meant_or_a_hash_is_asked_for(project, capsys):
    start = git("rev-parse", "HEAD")
    one = experiment("twin", start)
    here = commit("elsewhere")
    two = experiment("twin", here)
    assert two[:7] in compare(capsys, "twin")
    commit("a third place")
    error = refused(capsys, "twin")
    assert one[:7] in error and two[:7] in error


def test_what_cannot_be_compared_is_one_line(project, capsys, monkeypatch):
    experiment("brave-lion", git("rev-parse", "HEAD"))
    assert "no revision of Git and no DVC experiment (brave-lion)" in refused(capsys, "brave-lyon")
    git("rm", "--quiet", "params.yaml")
    commit("nothing here")
    assert "has no params.yaml" in refused(capsys, "HEAD", "first")
    git("checkout", "--quiet", "first", "--", "params.yaml")
    Path("results/evaluate/metrics.json").write_text('{"bits_per_dim": ', encoding="utf-8")
    assert "workspace: results/evaluate/metrics.json: not valid JSON" in refused(capsys, "first")
    monkeypatch.setenv("PATH", "")
    assert "install git" in refused(capsys, "first")


def test_outside_a_repository_and_before_the_first_commit(in_tmp, repository, capsys, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(in_tmp.parent))
    shutil.copy(repository / "params.yaml", in_tmp)
    assert "no Git repository" in refused(capsys)
    git("init", "--quiet")
    assert "no commit yet" in refused(capsys)
    assert "no figures" in compare(capsys, "workspace")


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
