"""The tabs that draw: samples, and completions of a painted picture."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from sampling.demo import actions
from sampling.demo.answers import colours, large
from sampling.demo.shared import GALLERY, Shared

BRUSH = "#ff0080"


class SampleTab:
    """Draws images, of which one can become the picture of the other tabs.

    Attributes:
        use: the button that takes the chosen image.
        chosen: the inputs of `taken`.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        draw = gr.Button("Draw samples", variant="primary", elem_id="draw")
        gallery = gr.Gallery(label="Samples", elem_id="samples", **GALLERY)
        with gr.Row():
            download = gr.DownloadButton("Download as one picture", interactive=False, elem_id="samples-file")
            self.use = gr.Button("Use the chosen sample as the picture", interactive=False, elem_id="use")
        drawn, place = gr.State(), gr.State(0)
        self.chosen = [drawn, place]
        outputs = [gallery, download, self.use, drawn, place]
        draw.click(shared.answers.of(self.draw), shared.inputs, outputs, api_name="sample", concurrency_id="models")
        gallery.select(_place, None, place, api_visibility="private")

    def draw(self, *values: Any) -> tuple[Any, ...]:
        """Samples, for the gallery and the file; their images; and that the first one is chosen."""
        asked, shared = self.shared.asked(values), self.shared
        found = actions.sample(shared.pipeline, asked.label, asked.count, shared.beginning.columns, **asked.settings)
        file = gr.DownloadButton(value=shared.answers.file(found.picture, "samples"), interactive=True)
        shown = _gallery(found)
        return gr.Gallery(shown, columns=_columns(len(shown))), file, gr.Button(interactive=True), found.images, 0

    @staticmethod
    def taken(images: np.ndarray, place: int) -> np.ndarray:
        """The chosen image, uint8 (C, H, W)."""
        return images[place]


class CompleteTab:
    """Draws the painted part of the picture anew.

    Attributes:
        outputs: what another picture changes; `fill` gives their values.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        height, width = large(np.zeros(shared.pipeline.layout.image_shape, np.uint8)).shape[:2]
        gr.Markdown("Paint over the part of the picture that is to be drawn anew. The rest stays as it is.")
        editor = gr.ImageEditor(
            label="Picture to complete",
            show_label=False,
            type="numpy",
            image_mode="RGBA",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=max(height, width) // 8, colors=[BRUSH], color_mode="fixed"),
            eraser=gr.Eraser(default_size=max(height, width) // 8),
            canvas_size=(width, height),
            fixed_canvas=True,
            buttons=[],
            elem_id="paint",
        )
        draw = gr.Button("Complete", variant="primary", elem_id="finish")
        gallery = gr.Gallery(label="Completions", elem_id="completions", **GALLERY)
        download = gr.DownloadButton("Download as one picture", interactive=False, elem_id="completions-file")
        self.outputs = [editor, gallery, download]
        inputs = [shared.picture, editor, *shared.inputs]
        answer = shared.answers.of(self.draw)
        draw.click(answer, inputs, [gallery, download], api_name="complete", concurrency_id="models")

    def fill(self, pixels: np.ndarray) -> list[Any]:
        """The picture to paint on, and no completions yet."""
        editor = {"background": large(pixels), "layers": [], "composite": None}
        return [editor, None, gr.DownloadButton(interactive=False)]

    def draw(self, pixels: np.ndarray, editor: dict[str, Any] | None, *values: Any) -> tuple[Any, ...]:
        """Completions, for the gallery and the file."""
        asked, shared, pixels = self.shared.asked(values), self.shared, self.shared.looked_at(pixels)
        known = actions.painted((editor or {}).get("layers") or (), pixels.shape[1:])
        columns = shared.beginning.columns
        found = actions.complete(shared.pipeline, pixels, known, asked.label, asked.count, columns, **asked.settings)
        file = gr.DownloadButton(value=shared.answers.file(found.picture, "completed"), interactive=True)
        return _gallery(found), file


def _place(event: gr.SelectData) -> int:
    return event.index


def _gallery(found: actions.Drawn) -> list[Any]:
    """What a gallery shows: images, with the names of their classes where there are several."""
    images = [colours(image) for image in found.images]
    return list(zip(images, found.names, strict=True)) if len(set(found.names)) > 1 else images


def _columns(count: int) -> int:
    return min(8, max(2, count // 2))
