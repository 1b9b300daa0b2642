"""Opens the models that the demo shows, and says with which values its page begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sampling import options
from sampling.parameters import SamplingParams
from sampling.pipeline import TwoStagePipeline
from sampling.settings import Settings
from tessera import paths

COLUMNS = 8  # images a row of a picture, where params.yaml does not say it


@dataclass(frozen=True)
class Beginning:
    """With which values the page begins.

    Attributes:
        settings: the fields of `Settings`, and `seed`.
        batch_size: images drawn at once; None: as many as memory holds.
        columns: images a row of a picture of several classes.
    """

    settings: dict[str, Any]
    batch_size: int | None = None
    columns: int = COLUMNS


def open_models(
    source: str | None, revision: str | None, section: SamplingParams | None
) -> tuple[TwoStagePipeline, Beginning]:
    """The pipeline of a folder that holds `vqvae` and `prior`, or of a model's id on the Hub.

    Args:
        source: the folder or the id; None for models/.
        revision: of a model on the Hub: a branch, a tag or a commit.
        section: `sampling` of params.yaml. None: the values that params.yaml ships with.

    Raises:
        UserError: a model is missing, damaged, or made for another one; or a value does not fit it.
    """
    named = paths.MODELS if source is None else source
    if section is None:
        return TwoStagePipeline.from_pretrained(named, revision=revision), Beginning(asdict(Settings()) | {"seed": 0})
    choices = {"precision": section.precision, "decoder": section.decoder}
    pipeline = TwoStagePipeline.from_pretrained(named, revision=revision, **choices)
    settings = asdict(options.settings_of(section, pipeline)) | {"seed": section.seed}
    return pipeline, Beginning(settings, section.batch_size, section.grid_columns)
