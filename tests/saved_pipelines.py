"""Folders with saved pipelines: the bytes in them, and the pipeline that they hold."""

from __future__ import annotations

from pathlib import Path

from sampling.pipeline import TwoStagePipeline


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(folder: Path | str, **options) -> TwoStagePipeline:
    return TwoStagePipeline.from_pretrained(folder, device="cpu", **options)
