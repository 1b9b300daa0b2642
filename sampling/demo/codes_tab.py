"""The tab that takes a picture apart: its reconstruction, its codes, and other codes in their place."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from sampling.demo import actions, codes
from sampling.demo.answers import colours, large
from sampling.demo.shared import PICTURE, Shared
from tessera.errors import UserError


class CodesTab:
    """Reconstructs the picture, and puts codes of a person's choice into it.

    Attributes:
        outputs: what another picture changes; `fill` gives their values.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared, self.layout = shared, shared.pipeline.layout
        gr.Markdown("Click on a part of the reconstruction to choose its code, and put another code there.")
        with gr.Row():
            with gr.Column(min_width=240):
                gr.Markdown("Reconstruction:")
                before = gr.Image(label="Reconstruction", elem_id="before", **PICTURE)
            with gr.Column(min_width=240):
                gr.Markdown("With your codes:")
                after = gr.Image(label="With your codes", elem_id="after", **PICTURE)
        with gr.Row():
            self.place = self._place()
            code = gr.Number(label="Code", precision=0, min_width=90, elem_id="code")
        said = gr.Markdown(elem_id="said")
        with gr.Row():
            put = gr.Button("Put this code there", variant="primary", elem_id="put")
            undo = gr.Button("Undo all", elem_id="undo")
            download = gr.DownloadButton("Download", elem_id="codes-file")
        first, now = gr.State(), gr.State()
        self.outputs = [first, now, *self.place, code, before, after, said, download]
        self._wire(before, code, said, put, undo, [first, now], [now, code, after, said, download])

    def _place(self) -> list[gr.Component]:
        """The controls for a place: level and depth where there are several, row and column."""
        levels, depth = len(self.layout.levels), max(level.depth for level in self.layout.levels)
        made = []
        for name, wanted in (("Level", levels > 1), ("Row", True), ("Column", True), ("Depth", depth > 1)):
            common = {"label": name, "precision": 0, "min_width": 90, "elem_id": name.lower()}
            made.append(gr.Number(1, visible=wanted, **common))
        return made

    def _wire(
        self,
        before: gr.Image,
        code: gr.Number,
        said: gr.Markdown,
        put: gr.Button,
        undo: gr.Button,
        tokens: list[gr.State],
        changed: list[gr.Component],
    ) -> None:
        of, private = self.shared.answers.of, {"api_visibility": "private", "concurrency_id": "models"}

        def click(level: Any, event: gr.SelectData) -> list[Any]:
            height, width = large(np.zeros(self.layout.image_shape, np.uint8)).shape[:2]
            x, y = event.index
            place = codes.place_at(self.layout, self._read(level, 1, 1, 1).level, x / width, y / height)
            return [place.row + 1, place.column + 1]

        level, row, column, _ = self.place
        before.select(of(click), level, [row, column], **private)
        for control in self.place:
            control.change(of(self.look), [*tokens, *self.place], [before, code, said], **private)
        put.click(of(self.put), [*tokens, *self.place, code], changed, **private)
        undo.click(of(self.undo), [*tokens, *self.place], changed, **private)

    def fill(self, pixels: np.ndarray) -> list[Any]:
        """The codes of a picture, unchanged, and its reconstruction twice."""
        tokens, place = actions.reconstruct(self.shared.pipeline, pixels), codes.Place(0, 0, 0)
        code, *rest = self._shown(tokens, tokens, place)
        return [tokens, tokens, 1, 1, 1, 1, code, self._framed(tokens, place), *rest]

    def look(self, first: np.ndarray | None, now: np.ndarray, *place: Any) -> tuple[Any, ...]:
        """The frame around a place, the code that stands there, and what is said of it."""
        first = self.shared.looked_at(first)
        at = self._read(*place)
        return self._framed(first, at), codes.code_at(self.layout, now, at), self._said(first, now, at)

    def put(self, first: np.ndarray | None, now: np.ndarray, *place_and_code: Any) -> list[Any]:
        """The codes with another one at a place, and the picture that they give."""
        first = self.shared.looked_at(first)
        *place, code = place_and_code
        at = self._read(*place)
        if code is None:
            raise UserError("code: write the number of a code")
        now = codes.with_code(self.layout, now, at, int(code))
        return [now, *self._shown(first, now, at)]

    def undo(self, first: np.ndarray | None, now: np.ndarray, *place: Any) -> list[Any]:
        """The picture's own codes."""
        first = self.shared.looked_at(first)
        return [first, *self._shown(first, first, self._read(*place))]

    def _read(self, level: Any, row: Any, column: Any, depth: Any) -> codes.Place:
        if None in (level, row, column, depth):
            raise UserError("write the number of a row and of a column, or click on the reconstruction")
        return codes.checked(self.layout, codes.Place(level - 1, row - 1, column - 1, depth - 1))

    def _shown(self, first: np.ndarray, now: np.ndarray, place: codes.Place) -> list[Any]:
        """The code at the place, the picture of the codes, what is said, and the file to download."""
        pixels = actions.decoded(self.shared.pipeline, now)
        file = self.shared.answers.file(colours(pixels), "codes")
        return [codes.code_at(self.layout, now, place), large(pixels), self._said(first, now, place), file]

    def _framed(self, tokens: np.ndarray, place: codes.Place) -> np.ndarray:
        return codes.outlined(large(actions.decoded(self.shared.pipeline, tokens)), self.layout, place)

    def _said(self, first: np.ndarray, now: np.ndarray, place: codes.Place) -> str:
        own, code, size = (
            codes.code_at(self.layout, first, place),
            codes.code_at(self.layout, now, place),
            codes.size_at(self.layout, place),
        )
        stands = f"code {code}" + (f" in place of {own}" if own != code else "")
        changed = codes.changes(first, now)
        where = f"Row {place.row + 1}, column {place.column + 1}: {stands}, of codes 0 to {size - 1}."
        return f"{where} {changed} of {len(now)} codes changed."
