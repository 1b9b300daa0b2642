"""Opening image sources in an empty folder, reading single images, and running `prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stage0_images.pixels import decoding, read_image
from stage0_images.prepare import main
from stage0_images.sources import open_source
from tessera.errors import UserError


@pytest.fixture
def opened(in_tmp, params):
    """`opened(source, label_column="y", ...)`, watching what the source needs, from an empty current folder."""
    (in_tmp / "cache").mkdir()
    (in_tmp / "stand-in").touch()

    def opener(source, **changes):
        local = Path(source).expanduser().is_dir()
        data = {"source": str(source), "watch": str(source) if local else "stand-in"} | changes
        return open_source(params().data.model_copy(update=data), in_tmp / "cache")

    return opener


@pytest.fixture
def refused(opened):
    """`refused(source, label_column="y", ...)`: the one line by which a source is refused."""

    def refusal(source, **changes) -> str:
        with pytest.raises(UserError) as error:
            opened(source, **changes)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refusal


@pytest.fixture
def read(params):
    """`read(content, channels=3, ...)`: an image of 6x8 unless the parameters say otherwise; any size, odd ones too."""
    repository_data = params().data

    def reader(content, **changes):
        data = {"height": 6, "width": 8, "channels": 3} | changes
        with decoding():
            return read_image(content, repository_data.model_copy(update=data))

    return reader


@pytest.fixture
def prepare(in_tmp, raw_params):
    """`prepare(source=..., height=...)` in an empty folder: the exit status; `data.watch` follows the source."""
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "embedded.txt").touch()

    def run(**changes) -> int:
        source = changes.get("source", "digits")
        changes = {"watch": "data/embedded.txt" if source == "digits" else source} | changes
        raw_params["data"] |= changes
        Path("params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
        return main([])

    return run
