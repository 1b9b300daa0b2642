"""What the page's tabs share: the models, the controls for what is drawn, and the picture that is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from sampling.demo import controls
from sampling.demo.answers import Answers
from sampling.demo.models import Beginning
from sampling.demo.values import settings_of
from sampling.pipeline import TwoStagePipeline
from tessera.errors import UserError

IMAGES = 4  # of each class, at the beginning
PLAIN = {"show_label": False, "format": "png", "elem_classes": "pixels"}
PICTURE = {**PLAIN, "interactive": False, "buttons": []}  # how an image is shown
GALLERY = {**PLAIN, "height": "auto", "object_fit": "contain", "buttons": ["download"], "columns": 4}


@dataclass(frozen=True)
class Asked:
    """What the controls say.

    Attributes:
        label: the number of a class, `num_classes`, `actions.EVERY`, or None where the model has no classes.
        count: images of each class, or completions.
        settings: of the pipeline's methods that draw.
    """

    label: int | None
    count: Any
    settings: dict[str, Any]


class Shared:
    """The controls, and the state of one person's page. It is made inside of `gr.Blocks`, where the controls go.

    Attributes:
        picture: holds the picture that is looked at, uint8 (C, H, W).
        inputs: the controls, whose values `asked` understands.
    """

    def __init__(self, pipeline: TwoStagePipeline, beginning: Beginning, answers: Answers) -> None:
        self.pipeline, self.beginning, self.answers = pipeline, beginning, answers
        self.picture = gr.State()
        label = controls.label(pipeline)
        each = "Images of each class" if pipeline.num_classes else "Images"
        count = gr.Number(IMAGES, label=each, precision=0, elem_id="count")
        settings = controls.settings(pipeline, beginning.settings)
        self._labelled, self._names = label is not None, list(settings)
        self.inputs = [*([label] if label else []), count, *settings.values()]

    def asked(self, values: Sequence[Any]) -> Asked:
        """Turns values of the controls, in the order of `inputs`, into a class, a number of images and settings."""
        label, count, *given = values if self._labelled else (None, *values)
        return Asked(label, count, self.settings(dict(zip(self._names, given, strict=True))))

    @staticmethod
    def looked_at(picture: np.ndarray | None) -> np.ndarray:
        """The picture that is looked at, uint8 (C, H, W). Raises UserError: there is none yet."""
        if picture is None:
            raise UserError("there is no picture yet: upload one, or use a sample as the picture")
        return picture

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """Settings from the values of controls. Those that are not given keep the values of the beginning."""
        settings = self.beginning.settings | settings_of(given) | {"batch_size": self.beginning.batch_size}
        if not self.pipeline.prior.null_label:
            settings["guidance_scale"] = 1.0  # guidance needs the null label
        return settings
