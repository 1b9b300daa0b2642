"""Commits with made-up figures, and the rows of their tables, for tests of `python -m tessera compare`."""

from __future__ import annotations

import subprocess

import pytest

from tessera import paths
from tessera.artifacts.files import json_text, write_text
from tessera.cli import main as command

PER_CLASS = [{"class": "cat", "sample_agreement": 0.5, "samples": 100}]


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def write_metrics(rate: float, distortion: float = 3.5, stages: tuple[str, ...] = ("evaluate", "train_prior")) -> None:
    """Made-up figures in the shape of the real ones."""
    evaluated = {
        "bits_per_dim": {"distortion": distortion, "rate_prior": rate, "total_prior": distortion + rate},
        "reconstruction": {"nmse": 0.03282198, "psnr": 23.5},
        "classifier": {"sample_agreement": 1 - rate / 2, "unguided_agreement": 0.85, "per_class": PER_CLASS},
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


def compare(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert command(["compare", *arguments]) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    """The cells after a row's name. Two cells stand two columns apart."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return [cell.strip() for cell in line.removeprefix(name).split("  ") if cell.strip()]
