"""What a stage is: the code that it uses with the chosen options, and the parameters that it uses.

A stage's entry point says in `USES` which sections of params.yaml change its results. Its code is what it imports, and
the files of the chosen options where it builds one. Code counts by its syntax (`tessera.project.syntax`), so that a
comment, a docstring, or an option that is not chosen is no part of any stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tessera.parameters.parts import folder_of, options
from tessera.parameters.root import Params
from tessera.parameters.sections import Choice, Section
from tessera.project import ROOT, closure, files_of, syntax

BUILDER = "build.py"  # whoever imports this file of a package of options uses those that are chosen


def chosen_options(value: Any, own: bool = False) -> Iterator[tuple[str, str]]:
    """The package and the name of every chosen option in a section, and of the options inside these.

    Args:
        own: also the options from which no published model is built (`Section.published`).
    """
    if isinstance(value, Section):
        if own or value.published:
            yield from value.options_used()
            for part in value.parts_used():
                yield from chosen_options(part, own)
    elif isinstance(value, tuple):
        for part in value:
            yield from chosen_options(part, own)


def used_options(uses: tuple[str, ...], params: Params) -> Iterator[tuple[str, str]]:
    """The package and the name of every option in the sections that a stage uses.

    A path may name an option, chosen or not, such as "stage2_prior.counts".
    """
    for path in uses:
        *sections, name = path.split(".")
        node: Any = params
        for key in sections:
            node = getattr(node, key)
        if isinstance(node, Choice):
            yield node.package, name
        yield from chosen_options(getattr(node, name), own=True)


def code(module: str, uses: tuple[str, ...], params: Params) -> dict[str, str]:
    """The files that a stage uses, relative to the project, and the hash of what each does.

    Args:
        module: the stage's entry point, a dotted name.
        uses: the sections of params.yaml that it uses.
    """
    chosen = {*chosen_options(params), *used_options(uses, params)}
    found = closure(files_of(module))
    while True:
        used = {options(package)[name] for package, name in chosen if folder_of(package) / BUILDER in found}
        if used <= found:
            break
        found = closure(found | used)
    return {file.relative_to(ROOT).as_posix(): syntax(file.read_bytes()) for file in sorted(found)}


def fingerprint(module: str, uses: tuple[str, ...], params: Params) -> dict[str, Any]:
    """What a stage's results depend on besides its data, as JSON values: `module`, `code` and `parameters`."""
    return {
        "module": module,
        "code": code(module, uses, params),
        "parameters": {path: params.used(path) for path in uses},
    }
