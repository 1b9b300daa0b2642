"""`python -m sampling.demo`: mistakes are answered in a line, before models are loaded."""

from __future__ import annotations

import pytest

from sampling.demo import __main__ as demo
from sampling.demo import models, serving
from tessera import paths
from tessera.parameters import load


@pytest.fixture
def with_gradio(monkeypatch):
    """As if gradio was installed."""
    monkeypatch.setattr(serving, "require_gradio", lambda: None)


def told(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_without_gradio_a_line_says_how_to_install_it(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    assert demo.main([]) == 2
    assert 'pip install -e ".[demo]"' in told(capsys)


def test_models_that_are_missing_are_told(in_tmp, with_gradio, capsys):
    assert demo.main(["nowhere"]) == 2
    assert "nowhere" in told(capsys)


def test_a_parameter_file_that_is_named_must_be_there_and_params_yaml_need_not(in_tmp, capsys):
    assert demo.main(["--params", "other.yaml"]) == 2
    assert "other.yaml" in told(capsys)
    assert demo.parameters(None) is None


def test_params_yaml_of_this_folder_is_used_if_it_is_there(write_params):
    write_params({"sampling.seed": 8})
    assert demo.parameters(None) == load(paths.PARAMS) and demo.parameters(None).sampling.seed == 8


def test_an_id_and_its_revision_go_to_the_pipeline(monkeypatch):
    asked = []
    monkeypatch.setattr(models.TwoStagePipeline, "from_pretrained", lambda *a, **k: asked.append((a, k)))
    models.open_models("OWNER/NAME", "v1", None)
    assert asked == [(("OWNER/NAME",), {"revision": "v1"})]
