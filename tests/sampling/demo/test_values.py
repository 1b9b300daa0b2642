"""The page's controls: what they offer, and the settings that their values are."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from sampling.demo.actions import EVERY
from sampling.demo.models import open_models
from sampling.demo.values import choices_of, settings_of, shown
from sampling.options import drawn_by
from sampling.pipeline import TwoStagePipeline
from sampling.settings import Settings


def test_a_filter_that_filters_nothing_is_none_as_on_the_command_line():
    off = settings_of({"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 0, "seed": 0})
    assert off == {"top_k": None, "top_p": None, "min_p": None, "temperature": 0, "seed": 0}
    on = settings_of({"top_k": 5.0, "top_p": 0.9, "min_p": 0.1, "guidance_schedule": "linear"})
    assert on == {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "guidance_schedule": "linear"}
    assert isinstance(on["top_k"], int)


def test_values_for_each_level_are_written_with_commas():
    several = settings_of({"temperature": "0.9, 1", "top_k": "none", "top_p": " ", "min_p": "0.1"})
    assert several == {"temperature": [0.9, 1], "top_k": None, "top_p": None, "min_p": 0.1}


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "guidance_scale"])
def test_what_stands_in_a_control_is_the_setting_again(name, several):
    value = getattr(Settings(), name)
    assert settings_of({name: shown(name, value, several)}) == {name: value}
    if several:
        assert settings_of({name: shown(name, [0.5, 0.7], True)}) == {name: [0.5, 0.7]}


def test_classes_to_choose_from_are_those_that_can_be_drawn(tiny_run):
    tiny_run(names=("ankle boot", "\u202ebag", "7"), untrained=2)
    pipeline = TwoStagePipeline.load("models", "cpu")
    expected = [("every class", EVERY), ("ankle boot", 0), ("\\u202ebag", 1), ("no class in particular", 3)]
    assert choices_of(pipeline) == expected
    pipeline.prior.null_label = False
    assert choices_of(pipeline) == expected[:-1]


def test_without_classes_there_is_nothing_to_choose(tiny_run):
    tiny_run(classes=0)
    assert choices_of(TwoStagePipeline.load("models", "cpu")) == []


@pytest.mark.parametrize(
    ("prior", "settings"),
    [("counts", []), ("chain", ["choice_temperature", "decoding_steps"]), ("any_order", ["decoding_steps", "order"])],
)
def test_settings_that_the_prior_does_not_use_have_no_control(tiny_run, prior, settings):
    tiny_run((1, 8, 16), strides=[2, 2], sizes=4, prior=prior)
    assert drawn_by(TwoStagePipeline.load("models", "cpu")) == settings


def test_the_page_begins_with_the_values_of_params_yaml_and_else_with_the_defaults(tiny_run, params):
    tiny_run()
    section = params({"sampling.temperature": 0.5, "sampling.seed": 9, "sampling.grid_columns": 3}).sampling
    _, beginning = open_models(None, None, section)
    assert (beginning.settings["temperature"], beginning.settings["seed"], beginning.columns) == (0.5, 9, 3)
    _, beginning = open_models("models", None, None)
    assert beginning.settings == asdict(Settings()) | {"seed": 0}
