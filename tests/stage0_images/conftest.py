"""Opening image sources in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

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
