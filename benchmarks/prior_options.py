"""The options of a comparison of priors: its parameters, and which rows were measured with the same options."""

from __future__ import annotations

import argparse
from typing import Any

import completion
from runs import parameters

from tessera.cli.preset import read_changes
from tessera.parameters import Params


def params_of(options: argparse.Namespace, changes: dict[str, Any] | None = None) -> Params:
    """The preset with the changes of a comparison, and with the overrides of -S, none of which may be in the changes.

    Raises:
        SystemExit: the comparison itself sets what -S names, so that a row would not say what was run.
    """
    found = getattr(options, "changes", {}) | (changes or {}) | {"runtime.threads": options.threads}
    overrides = read_changes(options.overrides)
    trainings = [path.removesuffix("compile") for path in found if path.endswith(".training.compile")]
    trainings += ["stage1_vqvae.training.", "classifier.training."]
    if options.eager:
        found |= {f"{training}compile": False for training in trainings}
    if options.precision:
        found |= {f"{training}precision": options.precision for training in trainings}
    for name in overrides:
        if any(overlap(name, path) or overlap(name, shared(path)) for path in found):
            raise SystemExit(f"-S {name}: the comparison sets it")
    return parameters(found | overrides, options.preset, options.dataset)


def overlap(one: str, other: str) -> bool:
    """Whether two dotted paths are the same, or one is a section that holds the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def shared(path: str) -> str:
    """Where a prior's value stands if it is given for all priors: without effect, where a comparison sets the value."""
    section, _, inner = path.partition(".")
    value = inner.partition(".")[2]
    return f"{section}.{value}" if section == "stage2_prior" and value else path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options by which a comparison takes less time."""
    said = "a value of params.yaml beside the preset's; rows say it"
    parser.add_argument("-S", dest="overrides", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=said)
    parser.add_argument("--eager", action="store_true", help="compile nothing; rows say it")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of every training; rows say it")
    parts = list(completion.GIVEN)
    parser.add_argument("--given", nargs="+", choices=parts, default=parts, help="parts that are given, to complete")
    parser.add_argument("--completed", type=int, default=1000, help="test images that are completed (default: 1000)")
    parser.add_argument("--threads", type=int, help="default: every core")


def budget_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row says beside steps and minutes of how it was measured: rows that differ in it are no comparison.

    Rows that are older than these options were measured without them.
    """
    given = sorted(row.get("completed", completion.GIVEN))
    changes, options = sorted(row.get("changes", [])), (row.get("eager", False), row.get("precision"))
    return changes, options, given, row.get("completed_images", 1000)


def asked(options: argparse.Namespace) -> tuple[Any, ...]:
    """`budget_of` of a row that is measured with these options."""
    return sorted(options.overrides), (options.eager, options.precision), sorted(set(options.given)), options.completed
