"""`python -m tessera compare`: which parameters differ between runs, side by side as a table and as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from choices import few
from compared_runs import commit, compare, git, row, write_metrics
from rich.cells import cell_len

from tessera import paths
from tessera.cli.preset import edit

RATE = "evaluate:bits_per_dim.rate_prior"


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
