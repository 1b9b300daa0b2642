"""Options are the files of a package: which files are options, and how their parameters are read."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from tessera.errors import UserError
from tessera.parameters.parts import class_of, options, parameters_of
from tessera.parameters.sections import Choice, choice


@pytest.mark.parametrize("package", ["stage1_vqvae.quantizers", "stage1_vqvae.networks", "stage2_prior.priors"])
def test_parameters_read_without_the_option_are_those_of_its_file(package):
    """They are executed apart from the modules in the file; the class must be the same."""
    for name in options(package):
        whole = import_module(f"{package}.{name}").Parameters
        assert parameters_of(package, name).model_json_schema() == whole.model_json_schema(), name


# A file beside the options that is no option, and one that is broken.


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of options with one file, `good`, which a test may add to."""
    folder = tmp_path / "some_options"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    good = "from tessera.parameters.sections import Section\nclass Parameters(Section):\n    size: int\n"
    (folder / "good.py").write_text(good, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    options.cache_clear()
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "some_options"]:
        del sys.modules[name]
    options.cache_clear()
    parameters_of.cache_clear()


def test_files_that_cannot_be_imported_are_no_options(package):
    (package / ".#good.py").symlink_to("nobody@nowhere.1")  # an editor's lock
    (package / "._good.py").write_bytes(b"\0\5\xff")
    (package / "good copy.py").write_bytes((package / "good.py").read_bytes())
    (package / "folder.py").mkdir()
    assert list(options("some_options")) == ["good"]
    assert list(parameters_of("some_options", "good").model_fields) == ["size"]


@pytest.mark.parametrize("text", ["class Parameters(Section):  (((", "class Parameters(Nowhere):\n    size: int\n"])
def test_an_option_that_is_being_written_is_one_line_with_its_file(package, text):
    (package / "half.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"half\.py: its class Parameters cannot be read") as caught:
        parameters_of("some_options", "half")
    assert "\n" not in str(caught.value)


def test_an_option_without_its_class_says_what_is_missing(package):
    with pytest.raises(UserError, match=r"good\.py: expected one public subclass of Choice, found none"):
        class_of("some_options", "good", Choice)


def test_an_option_cannot_have_the_name_of_a_shared_value(package):
    (package / "width.py").write_bytes((package / "good.py").read_bytes())
    base = type("Base", (Choice,), {"__module__": __name__, "__annotations__": {"width": int}})
    base.package = "some_options"
    with pytest.raises(UserError, match=r"width\.py: an option cannot be called `width`"):
        choice(base)
