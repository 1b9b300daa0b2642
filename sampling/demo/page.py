"""The page: its tabs, and the picture that they look at."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from sampling.demo import actions
from sampling.demo.answers import Answers, large
from sampling.demo.codes_tab import CodesTab
from sampling.demo.models import Beginning
from sampling.demo.shared import PICTURE, Shared
from sampling.demo.tabs import CompleteTab, SampleTab
from sampling.demo.uploads import read_upload
from sampling.describe import grid
from sampling.pipeline import TwoStagePipeline
from tessera.errors import printable

# Pixels stay sharp. A gallery is as tall as its images, and has four of them side by side on a phone.
CSS = """
.pixels img { image-rendering: pixelated; }
.pixels .grid-wrap { overflow: visible; height: auto; min-height: 0; max-height: none; }
.pixels .grid-container {
  grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important;
  grid-template-rows: none !important;
  grid-auto-rows: auto !important;
}
button[role="tab"] { padding-left: 10px !important; padding-right: 10px !important; }
footer { display: none !important; }
@media (max-width: 640px) { .pixels .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; } }
"""


def page(pipeline: TwoStagePipeline, beginning: Beginning, answers: Answers) -> gr.Blocks:
    """The whole page of a pipeline. It begins with a sample as the picture.

    Args:
        beginning: the values with which its controls begin.
        answers: runs its requests.
    """
    with gr.Blocks(title=f"Tessera: {printable(pipeline.source)}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Tessera\n{_summary(pipeline)}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                shared = Shared(pipeline, beginning, answers)
            with gr.Column(scale=3, min_width=320), gr.Tabs() as tabs:
                with gr.Tab("Sample"):
                    samples = SampleTab(shared)
                with gr.Tab("Picture", id="picture"):
                    looked_at = PictureTab(shared)
                with gr.Tab("Complete"):
                    completions = CompleteTab(shared)
                with gr.Tab("Codes"):
                    codes = CodesTab(shared)
        filled = (looked_at, completions, codes)
        outputs = [shared.picture, *(output for tab in filled for output in tab.outputs)]

        def take(pixels: np.ndarray) -> list[Any]:
            return [pixels, *(value for tab in filled for value in tab.fill(pixels))]

        def upload(path: str | None) -> list[Any]:
            return take(read_upload(path, pipeline.vqvae.config["preparation"]))

        def use(images: np.ndarray, place: int) -> list[Any]:
            return [*take(samples.taken(images, place)), gr.Tabs(selected="picture")]

        def begin() -> list[Any]:
            label = pipeline.classes.trained[0] if pipeline.num_classes else None
            return take(actions.sample(pipeline, label, 1, 1, **shared.settings({})).images[0])

        private = {"api_visibility": "private", "concurrency_id": "models"}
        blocks.load(answers.of(begin), None, outputs, **private)
        hidden = {"show_progress": "hidden"}  # or a refused upload would cover the picture with the word "Error"
        looked_at.upload.upload(answers.of(upload), looked_at.upload, outputs, **private, **hidden)
        samples.use.click(answers.of(use), samples.chosen, [*outputs, tabs], **private)
    return blocks


class PictureTab:
    """Takes a picture from outside, shows it as the model sees it, and tells its likelihood.

    Attributes:
        upload: the control that takes a file.
        outputs: what another picture changes; `fill` gives their values.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        gr.Markdown("Upload a picture, or take a sample from the first tab. The other tabs look at the same picture.")
        with gr.Row():
            self.upload = gr.File(label="Your picture", elem_id="upload", height=150)
            with gr.Column():
                gr.Markdown("As the model sees it:")
                shown = gr.Image(label="Picture", elem_id="picture", **PICTURE)
        measure = gr.Button("Measure its likelihood", variant="primary", elem_id="measure")
        said = gr.Markdown(elem_id="likelihood")
        self.outputs = [shown, said]
        answer, inputs = shared.answers.of(self.measure), [shared.picture, *shared.inputs]
        measure.click(answer, inputs, said, api_name="likelihood", concurrency_id="models")

    def fill(self, pixels: np.ndarray) -> list[Any]:
        """The picture, and no likelihood yet."""
        return [large(pixels), ""]

    def measure(self, pixels: np.ndarray, *values: Any) -> str:
        """The likelihood of the picture, as a table."""
        pixels, asked = self.shared.looked_at(pixels), self.shared.asked(values)
        rows = actions.likelihood(self.shared.pipeline, pixels, asked.label)
        table = "\n".join(f"| {name} | {bits:.3f} |" for name, bits in rows)
        return f"| | bits per dimension |\n| --- | ---: |\n{table}\n\nLess is better: fewer bits, a likelier picture."


def _summary(pipeline: TwoStagePipeline) -> str:
    """The model in a line."""
    channels, height, width = pipeline.layout.image_shape
    count, grids = pipeline.layout.num_tokens, [grid(level) for level in pipeline.layout.levels]
    kind = "grey" if channels == 1 else "colour"
    return f"{kind.capitalize()} images of {height}x{width} pixels, each made of {count} codes ({' + '.join(grids)})."
