"""Runs side by side on one page, from Git, with what DVC has of their pictures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import report_pages as pages
from PIL import Image

from evaluation import report
from tessera import paths
from tessera.artifacts.files import json_text, write_text
from tessera.cli.preset import edit


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def three_priors(in_tmp: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Three commits with made-up figures and curves, tagged by the names of their priors; the hash of each."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    (in_tmp / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    git("init", "--quiet")
    found = {}
    for prior, rate in (("transformer", 0.75), ("pixelcnn", 0.71), ("counts", 0.93)):
        edit(paths.PARAMS, {"stage2_prior.name": prior})
        bits = {"distortion": 3.5, "rate_prior": rate, "total_prior": 3.5 + rate}
        write_text(
            paths.RESULTS / "evaluate" / "metrics.json", json_text({"bits_per_dim": bits, "images": {"test": 252}})
        )
        nats = {"validation": {"nats_per_token": 2 * rate, "step": 900, "steps": 900}}
        write_text(paths.RESULTS / "train_prior" / "metrics.json", json_text(nats))
        curve = "step,nats_per_token\n" + "".join(f"{step},{2 * rate + 1 / step}\n" for step in (100, 500, 900))
        write_text(paths.RESULTS / "train_prior" / "validation.csv", curve)
        git("add", ".")
        git("commit", "--quiet", "-m", prior)
        git("tag", prior)
        found[prior] = git("rev-parse", "HEAD")
    return found


def test_three_priors_are_compared_by_one_command(three_priors, in_tmp):
    before = {path: path.read_bytes() for path in in_tmp.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert report.main(["--compare", "transformer", "pixelcnn", "counts"]) == 0
    page = pages.Document(report.COMPARISON)
    pages.check(page)
    assert page.sections == ["figures", "pictures", "bits", "curves"]
    for name, commit in three_priors.items():
        assert f"{name} {commit[:7]}" in page.text
    assert "evaluate:bits_per_dim.rate_prior lower 0.7500 ★ 0.7100 0.9300" in page.text
    assert "stage2_prior.name transformer pixelcnn counts" in page.text
    labels = page_labels(report.COMPARISON)
    assert "pixelcnn" in labels and "4.21" in labels, "the account in bits, in words too"
    assert "The prior: nats per token" in page.text
    assert "Samples: not in DVC's cache or remote, or never made" in page.text
    report.COMPARISON.unlink()
    after = {path: path.read_bytes() for path in in_tmp.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert {path: data for path, data in after.items() if ".state" not in path.parts} == before, "it changes no result"


def page_labels(file: Path) -> str:
    """The words that stand in place of pictures and charts."""
    import re

    return " ".join(re.findall(r'(?:aria-label|alt)="([^"]*)"', file.read_text(encoding="utf-8")))


def test_the_workspace_shows_its_own_pictures(three_priors):
    paths.SAMPLES.mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(paths.SAMPLE_GRID)
    assert report.main(["--compare", "pixelcnn", "workspace", "--output", "here.html"]) == 0
    page = pages.Document(Path("here.html"))
    pages.check(page)
    assert "Samples of workspace" in page_labels(Path("here.html"))
    assert f"for pixelcnn {three_priors['pixelcnn'][:7]}." in page.text


def test_a_name_that_nothing_has_is_refused(three_priors, capsys):
    assert report.main(["--compare", "pixelcnn", "nothing"]) == 2
    assert "nothing: no revision" in capsys.readouterr().err and not report.COMPARISON.exists()
