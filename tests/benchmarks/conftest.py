"""The leaderboard, and stages that only leave figures, for tests of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sampling.generate  # noqa: F401 (before benchmarks/sampling.py, which would hide the package)


@pytest.fixture
def leaderboard(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import leaderboard

    return leaderboard


@pytest.fixture
def finished(leaderboard: ModuleType, monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> list[tuple]:
    """What is asked of the stages, which only leave their folders and some figures."""
    asked: list[tuple] = []

    def run_once(options: Any) -> None:
        asked.append(("tokenizer", Path.cwd().name, dict(options.changes)))
        for part in (leaderboard.paths.PREPARED, leaderboard.paths.CLASSIFIER):
            if not part.exists():
                asked.append((part.name, Path.cwd().name))
                part.mkdir(parents=True)
                (part / "file").write_text(Path.cwd().name, encoding="utf-8")

    def measure(label: str, steps: int, options: Any) -> dict[str, Any]:
        asked.append((Path.cwd().name, label, steps, dict(options.changes)))
        bits = {"distortion": 4.0, "rate_prior": 0.5, "total_prior": 4.5}
        if label == "masked":
            bits["rate_prior_standard_error"] = 0.01
        distances = {"reconstructions": 1.0, "default": 2.0, "unguided": 3.0}
        return {
            **{"bits_per_dim": bits, "classifier": {"sample_agreement": 0.25}, "nats_per_token": {}},
            "distribution": {"features": "classifier"}
            | {kind: {"frechet_distance": d} for kind, d in distances.items()},
            "images_per_second": {"guided": 7.0, "unguided": 9.0},
            **{"seconds": 90.0, "steps": steps, "parameters": 3, "code": "c"},
            **{"completed": dict.fromkeys(options.given, 0.5), "completed_images": options.completed},
        }

    monkeypatch.setattr(leaderboard.priors, "run_once", run_once)
    monkeypatch.setattr(leaderboard.priors, "measure", measure)
    monkeypatch.setattr(leaderboard, "import_code", lambda options: None)
    monkeypatch.setattr(leaderboard.priors, "steps_in", lambda *a: asked.append(("timed", a[1])) or 8 * len(asked))
    monkeypatch.setattr(leaderboard, "size_of_codes", lambda: {"tokens": 64, "bits": 576.0})
    return asked
