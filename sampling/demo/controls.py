"""The page's controls for what is drawn: class, seed, settings. Where one would do nothing, it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sampling.demo.values import OFF, choices_of, shown
from sampling.options import drawn_by
from sampling.parameters import MOST_GUIDANCE
from sampling.pipeline import TwoStagePipeline

# What a control's second line says.
SAID = {
    "temperature": "below 1: likelier codes; 0: the likeliest one",
    "top_k": "keep the K likeliest codes; 0: all",
    "top_p": "keep the likeliest codes that hold this probability; 1: all",
    "min_p": "keep codes with at least this share of the likeliest one's probability; 0: all",
    "guidance_scale": "more follows the class more closely; 1: no guidance",
    "guidance_schedule": "linear: guidance rises from 1 to its scale over the image's codes",
    "decoding_steps": "in how many passes the codes are filled in",
    "choice_temperature": "noise in the order in which codes are filled in",
    "order": "in which codes are drawn: row by row, at random, or many at a time in random order",
}
RADIOS = {"guidance_schedule": ["constant", "linear"], "order": ["layout", "random", "parallel"]}
SLIDERS = {
    "temperature": (0, 2, 0.05),
    "top_p": (0.01, 1, 0.01),
    "min_p": (0, 0.99, 0.01),
    "guidance_scale": (0, 8, 0.25),
}


def label(pipeline: TwoStagePipeline) -> gr.Dropdown | None:
    """The control for the class; None where the model has no classes."""
    choices = choices_of(pipeline)
    if not choices:
        return None
    return gr.Dropdown(choices, value=choices[0][1], label="Class", elem_id="class", filterable=len(choices) > 12)


def settings(pipeline: TwoStagePipeline, values: dict[str, Any]) -> dict[str, gr.Component]:
    """The controls of the sampling settings by name: temperature and seed, and the others in a part that opens.

    Args:
        values: with which the controls begin, by name.
    """
    several = len(pipeline.layout.levels) > 1
    made: dict[str, gr.Component] = {}

    def add(names: Sequence[str]) -> None:
        for name in names:
            made[name] = _control(name, values[name], several)

    made["seed"] = gr.Number(values["seed"], label="Seed", precision=0, elem_id="seed")
    add(["temperature"])
    with gr.Accordion("Filters and guidance" if pipeline.num_classes else "Filters", open=False, elem_id="more"):
        if several:
            gr.Markdown(
                f"One value, or one for each of the {len(pipeline.layout.levels)} levels with commas, coarsest "
                "first. `none` switches a filter off."
            )
        if pipeline.num_classes and pipeline.prior.null_label:
            add(["guidance_scale", "guidance_schedule"])
        add(["top_k", "top_p", "min_p"])
        add(drawn_by(pipeline))
    return made


def _control(name: str, value: Any, several: bool) -> gr.Component:
    """The control of one setting. Settings that may differ by level are text where there are several levels."""
    title = name.replace("_", "-" if name in OFF else " ").capitalize()
    common = {"label": title, "info": SAID[name], "elem_id": name}
    if name in RADIOS:
        return gr.Radio(RADIOS[name], value=value, **common)
    if name in ("decoding_steps", "choice_temperature"):
        return gr.Number(value, precision=0 if name == "decoding_steps" else None, **common)
    if several:
        return gr.Textbox(shown(name, value, several), **common)
    now = shown(name, value, several)
    if name not in SLIDERS:
        return gr.Number(now, precision=0, **common)
    least, most, step = SLIDERS[name]
    most = min(max(most, now), MOST_GUIDANCE)
    return gr.Slider(least, most, value=now, step=step, **common)
