"""The report of whole tiny runs: one file, every figure explained, faults in words, names that break nothing."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_pages import Document, check, run, written

from evaluation import evaluate, report, report_run
from evaluation import train_classifier as classifier
from evaluation.usage import Usage
from sampling import sample
from stage1_vqvae import extract, reconstruct, refine
from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior
from tessera import paths, times
from tessera.codes.store import open_codes


def change(file: Path, changes: dict[str, Any]) -> None:
    """Change values of a JSON file by their dotted paths."""
    tree = json.loads(file.read_text(encoding="utf-8"))
    for path, value in changes.items():
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    file.write_text(json.dumps(tree), encoding="utf-8")


def test_a_labelled_run_is_one_page_that_shows_and_explains_everything(evaluated, repository):
    evaluated()
    shutil.copy(repository / "dvc.yaml", "dvc.yaml")
    page = written()
    titles = [figure["title"] for figure in page.figures]
    for title in (
        "Samples at temperature 1",
        "Test images above",
        "Bits per dimension",
        "Histogram",
        "each place uses",
    ):
        assert any(title in found for found in titles), title
    assert any("nearest to training images" in title for title in titles) and "In the features of classifier" in titles
    metrics = json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    bits = metrics["bits_per_dim"]
    assert (
        f"{bits['total_prior']:.4f}" in page.text
        and "20 test images" in page.text
        and "48 training images" in page.text
    )
    histogram = next(figure for figure in page.figures if figure["title"].startswith("Histogram"))
    assert f"{len(open_codes(paths.CODES)['validation'])} validation images" in " ".join(histogram["how"])
    assert re.search(r"Up to 10 samples of each class are shown, of \d+ samples in all", page.text)
    for name in ("class 0", "class 1", "class 2"):
        assert name in page.text
    assert "stage2_prior.name counts transformer" in page.text, "a parameter, its value and the default one"
    assert "stage2_prior.layers" not in page.text, "counts has no layers"
    assert re.search(r"evaluate ([\d.]+ s|\d+ min)", page.text) and "prepare not recorded" in page.text
    assert "jinja" not in page.text and "None" not in page.text and "nan" not in page.text.lower().split()
    assert "The refined decoder has no curves here" in page.text, "its stage did not run"


def test_figures_of_other_models_than_the_samples_are_refused(evaluated, capsys):
    evaluated()
    change(paths.RESULTS / "evaluate" / "metrics.json", {"models.prior": "0" * 64})
    assert report.main([]) == 2
    assert "run `python -m evaluation.evaluate`" in capsys.readouterr().err and not report.REPORT.exists()


def test_the_same_run_writes_the_same_bytes(evaluated):
    evaluated()
    written()
    before = report.REPORT.read_bytes()
    written()
    assert report.REPORT.read_bytes() == before


def test_label_bits_are_those_of_the_labels_frequencies(evaluated):
    import math

    from evaluation.report_published import Published
    from evaluation.report_sections import label_bits
    from tessera.parameters import load

    evaluated()
    found = label_bits(Published(load(paths.PARAMS)))
    # 48 training images, 16 of each of three classes; one is added to each count.
    assert found["prior"] == pytest.approx(-math.log2(17 / 51) / 64) == found["counts"]


def test_an_unlabelled_run_on_two_levels_says_what_is_missing(evaluated):
    evaluated(shape=(3, 8, 16), classes=0, strides=[2, 2], sizes=[4, 6])
    page = written()
    assert "The images have no labels, so samples are not sorted by class." in page.text
    assert "The classifier was not trained: the images have no labels" in page.text
    assert "Validation images, from each level" in page.text and "2 x 4, 4 x 8 codes" in page.text
    assert "Level 1: 2 x 4" in page.text and "Level 2: 4 x 8" in page.text
    assert "one level" not in page.text and "guidance 2" not in page.text and "each class" not in page.text
    assert "Nearest training images were not looked for" in page.text and "Distances were not measured" in page.text
    assert "of which label" not in report.REPORT.read_text(encoding="utf-8")


@pytest.mark.parametrize("patience", [None, 2])
def test_each_link_of_a_chain_is_told_its_own_best_step(evaluated, patience):
    evaluated(shape=(3, 8, 16), classes=0, strides=[2, 2], sizes=[4, 6], prior="chain")
    change(paths.PARAMS, {"stage2_prior.training.patience": patience})
    rows = [(0, 2.0, 2.0, 2.0, 0, 0), (2, 1.5, 1.0, 1.9, 2, 2), (4, 1.6, 1.5, 1.8, 2, 4)]
    levels = [f"{name}_level_{level}" for name in ("nats_per_token", "best_step") for level in (0, 1)]
    file = paths.RESULTS / "train_prior" / "validation.csv"
    assert set(levels) <= set(file.read_text(encoding="utf-8").splitlines()[0].split(",")), "as a training writes it"
    lines = [["step", "nats_per_token", *levels], *rows]
    file.write_text("\n".join(",".join(map(str, line)) for line in lines), encoding="utf-8")
    text = written().text
    assert "The prior of level 1 overfitted: its validation nats per token was best at step 2 (1)" in text
    assert "The prior of level 2 was still learning: its validation nats per token fell by 5.3%" in text
    assert "The prior overfitted" not in text and ("A patience ends a training" in text) is (patience is None)


def test_a_residual_run_with_a_refined_decoder_and_neither_classifier_nor_features(write_params, write_prepared):
    terms = {"perceptual.weight": 0.0, "adversarial.weight": 0.1, "adversarial.discriminator.name": "patch"}
    write_params(
        {f"refine_decoder.objective.{name}": value for name, value in terms.items()}
        | {
            "stage1_vqvae.quantizer.name": "residual",
            "stage1_vqvae.quantizer.residual.depth": 2,
            "refine_decoder.name": "objective",
            "stage2_prior.name": "counts",
            "sampling.decoder": "refined",
            "sampling.images": 6,
            "classifier.name": "none",
            "evaluation.features.name": "none",
        }
    )
    write_prepared(images={"train": 24, "validation": 8, "test": 7})
    run(train_vqvae, refine, reconstruct, extract, train_prior, sample, classifier, evaluate)
    page = written()
    assert "code 1 of 2" in page.text and "code 2 of 2" in page.text
    assert "The refined decoder drew the samples" in page.text and "The refined decoder: loss" in page.text
    assert "classifier.name is none" in page.text and "evaluation.features.name is none" in page.text
    assert "The prior has no curves: it learns nothing by gradients" in page.text


def overfitted(file: Path, column: str) -> None:
    """Replace a validation curve by one that falls and rises."""
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(["step", column])
        writer.writerows([[100, 3.0], [200, 2.0], [300, 2.5], [400, 3.5]])


def test_what_looks_wrong_is_said_with_what_to_do(evaluated, monkeypatch):
    evaluated()
    assert "The prior overfitted" not in written().text
    metrics = paths.RESULTS / "evaluate" / "metrics.json"
    rate = json.loads(metrics.read_text(encoding="utf-8"))["bits_per_dim"]["rate_counts"]
    change(
        metrics,
        {
            "bits_per_dim.rate_prior": rate,
            "memorisation.nearer_than_test": 0.97,
            "classifier.real_accuracy": 0.9,
            "classifier.reconstruction_agreement": 0.3,
        },
    )
    overfitted(paths.RESULTS / "train_prior" / "validation.csv", "nats_per_token")
    monkeypatch.setattr(report_run, "measured", lambda *_: Usage(0.1, 1.0))
    page = written()
    wanted = {
        "it has learned little": "Choose a prior that is trained",
        "many are not used": "evive unused codes",
        "they may be copies": "Compare the pairs",
        "The prior overfitted: its validation nats per token was best at step 200 (2)": "best step",
        "lost much of what tells classes apart": "Mend stage 1",
    }
    for fault, advice in wanted.items():
        assert re.search(re.escape(fault) + r".{0,160}What to do:.{0,160}" + re.escape(advice), page.text), fault
    assert page.text.index("What to do") < page.text.index("Good to know"), "what is wrong comes first"


def test_codes_are_judged_by_the_quantizer_that_made_them(evaluated):
    evaluated()
    change(paths.PARAMS, {"stage1_vqvae.quantizer.name": "residual"})
    run(evaluate)
    written()


def test_a_training_that_ended_early_is_told(evaluated):
    evaluated(prior="pixelcnn")
    change(paths.RESULTS / "train_prior" / "metrics.json", {"validation.steps": 3})
    assert "The prior ended after 3 of 4 steps." in written().text


def test_names_of_classes_are_text_and_no_markup(evaluated):
    names = ("<script>alert(1)</script>", '"><img src=http://example.org/x onerror=alert(1)>', "{{ 7 * 7 }} `a` &amp;")
    evaluated(names=names)
    page = written()  # which finds neither a script, nor an address from elsewhere, nor a handler
    for name in names[:2]:
        assert name in page.text
    assert "{{ 7 * 7 }}" in page.text and "&amp;" in page.text


def test_pictures_and_curves_that_are_missing_are_said_and_an_evaluation_is_needed(evaluated, capsys):
    folder = evaluated()
    shutil.rmtree(folder / "results" / "reconstruct")
    (paths.RESULTS / "train_prior" / "tokens.csv").unlink()
    (paths.RESULTS / "extract_codes" / "histogram.csv").unlink()
    page = written()
    assert "run python -m stage1_vqvae.reconstruct" in page.text.replace("`", "")
    assert "Nats of each token are missing" in page.text
    (paths.RESULTS / "evaluate" / "metrics.json").unlink()
    assert report.main([]) == 2
    assert "run `python -m evaluation.evaluate`" in capsys.readouterr().err


def last_line(capsys: pytest.CaptureFixture) -> str:
    """The last line of standard error, in which there is one error and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith(("error", "Traceback", " "))] == lines[-1:]
    return lines[-1]


def test_damaged_curves_figures_and_times_are_one_line_or_left_out(evaluated, capsys):
    evaluated()
    curve, metrics = paths.RESULTS / "train_classifier" / "train.csv", paths.RESULTS / "evaluate" / "metrics.json"
    whole, figures = curve.read_bytes(), metrics.read_bytes()
    for damage, reason in ((b"\xff\xfe" + whole, "no table of numbers"), (whole[2:], "no column 'step'")):
        curve.write_bytes(damage)
        assert report.main([]) == 2
        said = last_line(capsys)
        assert said.startswith(f"error: {curve}: ") and reason in said
    first, *rows = whole.splitlines()
    curve.write_bytes(b"\n".join([first, rows[0] + b",1,2,3", rows[1][: len(rows[1]) // 2], *rows[2:]]))
    for record in times.TIMES.glob("*.json"):
        change(record, {"interrupted": "none", "processes": None})
    change(metrics, {"reconstruction.psnr": float("inf")})
    assert "Times of stages are not recorded" in written().text
    curve.write_bytes(whole)
    picture = paths.RESULTS / "reconstruct" / "images" / "validation.png"
    pixels = picture.read_bytes()
    for damage in (pixels[: len(pixels) // 2], b"GIF89a", b""):
        picture.write_bytes(damage)
        assert report.main([]) == 2
        assert last_line(capsys).startswith(f"error: {picture}: a damaged picture")
    picture.write_bytes(pixels)
    for damage in (b"[1]", b'{"images": 3}', figures[: len(figures) // 2]):
        metrics.write_bytes(damage)
        assert report.main([]) == 2
        said = last_line(capsys)
        assert said.startswith("error: ") and "results/evaluate/metrics.json: " in said


def test_another_file_may_be_written_and_no_stage_is_recorded_then(evaluated):
    evaluated()
    assert report.main(["--output", "elsewhere.html"]) == 0
    check(Document(Path("elsewhere.html")))
    assert not report.REPORT.exists() and not (times.TIMES / "evaluation.report.json").exists()
