"""Write params.yaml for a known model and dataset: python -m tessera preset NAME [-S key=value ...].

The new file is the default one, presets/digits.yaml, with the values of presets/NAME.yaml in place of its own, and
those of -S on top. Only the section `runtime` is kept from the file before. `-S data.source=FOLDER` takes the images
from a local folder instead of the Hub. The result is checked before it is written, whole or not at all.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from stage0_images.parameters import absolute
from stage0_images.places import local_folder
from tessera import paths
from tessera.artifacts.files import write_text
from tessera.documents import parse_yaml
from tessera.errors import UserError
from tessera.parameters import read_yaml, validate
from tessera.parameters.inherit import section_in
from tessera.parameters.root import schema
from tessera.project import ROOT

PRESETS = ROOT / "presets"
DEFAULT = "digits"  # the preset that is complete, and that the others are written over
FREE_FORM = "extra"  # a mapping with keys of its own: one value, replaced whole


class _Representer(RoundTripRepresenter):
    """Writes `null`, where ruamel would leave the value out."""


_Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def editor() -> YAML:
    """A YAML 1.2 reader and writer that keeps comments, quotes and layout."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a parameter tree by its dotted path; an empty section is a value too."""
    if not isinstance(tree, dict) or not tree or prefix.split(".")[-1] == FREE_FORM:
        return {prefix: tree}
    joined = (leaves(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items())
    return {path: value for part in joined for path, value in part.items()}


def read_preset(name: str, folder: Path = PRESETS) -> dict[str, Any]:
    """A preset's values by dotted path.

    Raises:
        UserError: no preset has this name; lists those there are.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        raise UserError(f"unknown preset `{name}`; choose one of: {', '.join(names)}{hint}")
    found = read_yaml(folder / f"{name}.yaml")
    if name == DEFAULT:
        found.pop("runtime")  # which presets leave alone
    return leaves(found)


def read_changes(words: list[str]) -> dict[str, Any]:
    """`key=value` words by dotted path; values are YAML 1.2, as in params.yaml.

    Where params.yaml expects a text, the value is the text as it is, so that a path may hold " #" or ": " and a folder
    may be called 2024. `null` still stands for no value where there may be none, and quotes around the whole are
    dropped.

    Raises:
        UserError: a word without `=`, or a value that is not YAML.
    """
    changes: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.removeprefix("+").partition("=")  # DVC wants a + before a key that is not there yet
        if not path or not equals:
            raise UserError(f"-S {word}: expected key=value, such as -S data.source=FOLDER")
        kinds, quoted = _kinds(path), re.fullmatch(r"""(["']).*\1""", text)
        if str in kinds and not quoted and not (type(None) in kinds and text in ("null", "")):
            changes[path] = text
        else:
            changes[path] = parse_yaml(text, f"-S {word}", "correct the value")
    return _follow_source(changes)


def _kinds(path: str) -> tuple[Any, ...]:
    """The types of values that params.yaml takes at a dotted path; none if there is no such path."""
    model, *keys = schema(), *path.split(".")
    for key in keys[:-1]:
        info = model.model_fields.get(key)
        model = section_in(info.annotation) if info else None
        if model is None:
            return ()
    info = model.model_fields.get(keys[-1])
    if info is None:
        return ()
    return get_args(info.annotation) if get_origin(info.annotation) in (Union, UnionType) else (info.annotation,)


def _follow_source(changes: dict[str, Any]) -> dict[str, Any]:
    """A local `data.source` is also what DVC watches, and has no revision.

    The path of a folder outside this one is written in full, since `dvc exp run --queue` and `--temp` work in a copy of
    this folder, from which a relative path would lead elsewhere.

    Raises:
        UserError: the source is no folder, and no Hub id either.
    """
    source = changes.get("data.source")
    if not isinstance(source, str):
        return changes
    folder = local_folder(source)
    if folder is None:
        return changes
    if source.startswith("~") or not folder.is_relative_to(absolute(".")):  # DVC does not expand `~`
        source = str(folder)
    changes = {"data.watch": source, "data.revision": None} | changes | {"data.source": source}
    if isinstance(watched := changes["data.watch"], str) and absolute(watched) == folder:
        changes["data.watch"] = source
    return changes


def patch(tree: Any, changes: dict[str, Any]) -> None:
    """Set each dotted path in `tree` in place.

    A key that the tree does not have is set too: validation knows the valid names.

    Raises:
        UserError: a path through something that is not a section.
    """
    for path, value in changes.items():
        *sections, key = path.split(".")
        node = tree
        for depth, section in enumerate(sections):
            if isinstance(node, dict) and section not in node and depth:
                node[section] = {}  # an option's section inside another, or an override's
            node = node.get(section) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            close = difflib.get_close_matches(path, leaves(tree), n=1, cutoff=0.0)
            raise UserError(f"{path}: no such section{f'; did you mean `{close[0]}`?' if close else ''}")
        if not _equal(node, {key: value}, key):
            node[key] = _in_line(value)


def _in_line(value: Any) -> Any:
    """A list is written as in params.yaml: [4, 2]."""
    if not isinstance(value, list):
        return value
    sequence = CommentedSeq(value)
    sequence.fa.set_flow_style()
    return sequence


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _written(text: str, changes: dict[str, Any], origin: str) -> str:
    """A parameter file's text with some values changed, comments and layout kept.

    Raises:
        UserError: a path or the changed whole is not valid.
    """
    yaml = editor()
    tree, stream = yaml.load(text), io.StringIO()
    patch(tree, changes)
    yaml.dump(tree, stream)
    validate(parse_yaml(stream.getvalue(), origin), origin)
    return stream.getvalue()


def edit(file: Path, changes: dict[str, Any]) -> list[str]:
    """Change values of a parameter file; returns a line for each value that changed.

    Raises:
        UserError: the file, a path or the changed whole is not valid; the file is then as it was.
    """
    before = read_yaml(file)  # its errors are one line
    text = _written(file.read_text(encoding="utf-8"), changes, f"{file} with these changes")
    return _replace(file, before, text)


def apply(file: Path, name: str, changes: dict[str, Any]) -> list[str]:
    """Write a parameter file by a preset, with further changes; returns a line for each value that changed.

    Raises:
        UserError: the file, a path or the result is not valid; the file is then as it was.
    """
    before = read_yaml(file)
    runtime = {path: value for path, value in leaves(before).items() if path.startswith("runtime.")}
    text = (PRESETS / f"{DEFAULT}.yaml").read_text(encoding="utf-8")
    return _replace(file, before, _written(text, runtime | read_preset(name) | changes, f"{file} by preset {name}"))


def for_this_machine(preset: dict[str, Any], changes: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a preset's values must be changed to for this machine, and lines that say so.

    Where bf16 is not faster than fp32, fp32 takes its place. Where there is no compiler, `compile` is false.

    Args:
        preset: the preset's values by dotted path.
        changes: the user's values, which stay.
    """
    own = {path: preset[path] for path in sorted(preset.keys() - changes.keys())}
    low = [path for path, value in own.items() if path.endswith(".precision") and value == "bf16"]
    compiled = [path for path, value in own.items() if path.endswith(".compile") and value]
    if not low and not compiled:
        return {}, []
    from tessera.cli.start import machine  # it imports torch, which takes seconds

    found, mended, notes = machine.look(None), {}, []
    if low and found.slow_bf16:
        channels = [path.replace(".precision", ".channels_last") for path in low]
        mended = dict.fromkeys(low, "fp32") | {path: False for path in channels if own.get(path)}
        notes.append(f"note: {found.slow_bf16}; in place of the preset's bf16: {', '.join(mended)}")
    if compiled and not found.compiler:
        mended |= dict.fromkeys(compiled, False)
        notes.append(f"note: there is no compiler, so these are false: {', '.join(compiled)}")
    return mended, notes


def _replace(file: Path, before: Any, text: str) -> list[str]:
    """Write the text if a value differs; a line for each that does."""
    old, new = leaves(before), leaves(parse_yaml(text, file))
    paths = [path for path in dict.fromkeys([*new, *old]) if not _equal(old, new, path)]
    if paths:
        write_text(Path(os.path.realpath(file)), text)  # a link to the user's own file stays
    return [f"{path}: {_shown(old.get(path, 'nothing'))} -> {_shown(new.get(path, 'nothing'))}" for path in paths]


def _equal(old: dict[str, Any], new: dict[str, Any], path: str) -> bool:
    """Whether a value is there in both, and the same; 1 is not true."""
    if path not in old or path not in new:
        return False
    return old[path] == new[path] and isinstance(old[path], bool) == isinstance(new[path], bool)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera preset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=f"one of: {', '.join(sorted(path.stem for path in PRESETS.glob('*.yaml')))}")
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="key=value", help="on top of it")
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="parameter file (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if not PRESETS.is_dir():
        raise UserError(f"{PRESETS}: no such folder; presets are in the repository, so run this there")
    changes = read_changes(arguments.changes)
    mended, notes = for_this_machine(read_preset(arguments.name), changes)
    lines = apply(arguments.params, arguments.name, mended | changes)
    print("\n".join([*lines, f"{arguments.params}: {len(lines)} values changed", *notes]))
    return 0
