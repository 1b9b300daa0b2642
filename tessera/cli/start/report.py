"""Writes the chosen parameters with their reasons, and says what they will make."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from stage0_images.columns import some_of
from stage0_images.survey import Survey
from tessera.artifacts.files import write_text
from tessera.cli.preset import DEFAULT, PRESETS, editor, leaves, patch
from tessera.cli.start import MOST_MINUTES
from tessera.cli.start.machine import Machine
from tessera.cli.start.plan import STAGES, Plan
from tessera.cli.start.rules import SMALLEST, Choice
from tessera.documents import parse_yaml
from tessera.launch.cores import available_cores
from tessera.launch.load import cores_of_others_now, crowded
from tessera.parameters import Params, validate

WIDTH = 120  # columns of a line of params.yaml
LONGER = 1.2  # times the minutes given: if a longer run than that would help, it is said
SQUARE = 0.05  # the part by which the sides of a square may differ


def write(file: Path, choice: Choice) -> Path | None:
    """Write the whole parameter file: the default one with the chosen values, and a reason beside those that have one.

    A file that was there and differs is kept beside it, with the ending .old. If a copy with other contents has this
    name, the next copies end in .old2, .old3 and so on, so that no copy is lost.

    Returns:
        The copy of the file that was there; None if there was no file, or nothing that a preset does not write again.

    Raises:
        UserError: the result is not valid; the file is then as it was.
    """
    yaml = editor()
    tree, stream = yaml.load((PRESETS / f"{DEFAULT}.yaml").read_text(encoding="utf-8")), io.StringIO()
    patch(tree, choice.values)
    yaml.dump(tree, stream)
    text = commented(stream.getvalue(), choice.reasons)
    validate(parse_yaml(text, str(file)), str(file))
    assert leaves(parse_yaml(text, str(file))) == leaves(parse_yaml(stream.getvalue(), str(file)))
    before = file.read_text(encoding="utf-8") if file.exists() else text
    kept = None
    if before not in (text, (PRESETS / f"{DEFAULT}.yaml").read_text(encoding="utf-8")):
        kept = _place_of_copy(file, before)
        write_text(kept, before)
    write_text(Path(os.path.realpath(file)), text)  # a link to the user's own file stays
    return kept


def _place_of_copy(file: Path, text: str) -> Path:
    """The first name for a copy of the file that is free, or has this text already."""
    names = (file.with_name(f"{file.name}.old{number if number > 1 else ''}") for number in count(1))
    return next(name for name in names if not name.exists() or name.read_bytes() == text.encode("utf-8"))


def commented(text: str, reasons: dict[str, str]) -> str:
    """A parameter file with a reason as the comment beside some values, in place of the comment that was there.

    A reason that is too long for its line is left out, and the comment stays.

    Args:
        text: block YAML, each value of `reasons` in one line.
        reasons: by dotted path.
    """
    tree, lines = editor().load(text), text.splitlines()
    for path, reason in reasons.items():
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node[section]
        number = node.lc.key(key)[0]
        line = f"{lines[number].split(' # ')[0].rstrip()} # {reason}"
        if len(line) <= WIDTH:
            lines[number] = line
    return "\n".join(lines) + "\n"


def report(
    source: str,
    survey: Survey,
    machine: Machine,
    params: Params,
    plan: Plan,
    minutes: float,
    file: Path,
    kept: Path | None = None,
    understood: Sequence[str] = (),
) -> str:
    """What was found and what will be made, as lines for a person.

    Args:
        kept: the copy of the parameter file as it was before, see `write`.
        understood: how the source was understood, see `Source.understood`.
    """
    images, *others = _found(source, survey, machine)
    found = [images, *(f"{'':<10}{line}" for line in understood), *others]
    return "\n".join([*found, "", *_made(params), "", *_stages(plan, minutes), "", *_end(file, kept)])


def _found(source: str, survey: Survey, machine: Machine) -> list[str]:
    counts = ", ".join(f"{count:,} {name}" for name, count in survey.images.items())
    sides = {survey.sides[0], survey.sides[-1]}
    size = " to ".join(str(side) for side in sorted(sides)) + " pixels on the shorter side"
    colours = "grey" if survey.grey else "colours"
    clear = f", {survey.transparent:.0%} transparent, laid over {survey.background}" if survey.transparent else ""
    if survey.background != "white":
        clear += f" ({survey.vanish['white']:.0%} would vanish on white)"
    labels = f"{len(survey.classes)} classes ({some_of(survey.classes)})" if survey.classes else "no labels"
    low = machine.slow_bf16 or "bf16 is faster than fp32"
    cores = "1 core" if machine.threads == 1 else f"{machine.threads} cores"
    memory = f", {machine.memory / 2**30:.0f} GB of memory" if machine.memory else ""
    refused = (
        f"; {max(survey.refused, 0.01):.0%} of the files looked at cannot be read as images" if survey.refused else ""
    )
    wide = survey.aspects[0] < 1 - SQUARE or survey.aspects[-1] > 1 + SQUARE
    squares = (
        "; not all are square, so each is cropped to the square at its centre (data.fit: stretch keeps all of it)"
        if wide
        else ""
    )
    return [
        f"images    {source}: {counts}; {size}, {colours}{clear}; {labels}{squares}{refused}",
        f"machine   {machine.gpu or f'{cores}, no GPU'}{memory}; {low}"
        + ("" if machine.compiler else "; no compiler, so nothing is compiled"),
        *_processes(machine),
        *_others(machine),
    ]


def _processes(machine: Machine) -> list[str]:
    """A line that says what is assumed where several processes share the work."""
    if machine.processes == 1:
        return []
    assumed = "one was timed with its share of each batch, without what they exchange"
    return [f"          {machine.processes} processes share the work: {assumed}"]


def _others(machine: Machine) -> list[str]:
    """A line if other programs keep cores busy that the stages want."""
    cores = cores_of_others_now()
    if not crowded(cores, machine.threads * machine.processes):
        return []
    return [
        f"          other programs keep {cores:.1f} of {available_cores()} cores busy now: times are longer than on an "
        "idle machine"
    ]


def _made(params: Params) -> list[str]:
    data, stage1, prior = params.data, params.stage1_vqvae, params.stage2_prior
    factor = stage1.network.chosen.factor
    grid = f"{data.height // factor}x{data.width // factor} codes of {stage1.quantizer.chosen.sizes[0]}"
    kind = "grey" if data.channels == 1 else "RGB"
    return [
        f"makes     {kind} images of {data.height}x{data.width}, each {grid}, "
        f"by a {prior.name} of {prior.layers} layers and width {prior.width}",
    ]


def _stages(plan: Plan, minutes: float) -> list[str]:
    sections = {stage: section for section, stage in STAGES.items()}
    lines = [f"{'stage':<18} minutes"]
    for stage, seconds in plan.seconds.items():
        steps = plan.steps.get(sections.get(stage, ""))
        lines.append(f"{stage:<18} {seconds / 60:7.1f}" + (f"   {steps:,} steps at most" if steps else ""))
    whole = f"{'in all':<18} {plan.expected_minutes:7.1f}   about, if nothing else runs"
    if plan.expected_minutes > minutes:
        least = (
            f"{plan.expected_minutes:.1f} minutes are the least for these images here, more than the {minutes:g} given"
        )
        smaller = "; a smaller --side takes less" if plan.params.data.height > SMALLEST else ""
        whole += f"\n{'':<18} {least}{smaller}"
    useful = min(plan.useful_minutes, MOST_MINUTES)
    if useful > LONGER * minutes:
        whole += f"\n{'':<18} more time makes better pictures, up to `--minutes {useful:.0f}` or so"
    if (more := plan.refining_minutes) is not None:
        whole += f"\n{'':<18} refine_decoder.name=objective and sampling.decoder=refined take {more:.1f} minutes more"
    return [*lines, whole, f"disk      about {max(1, plan.disk // 2**20):,} MB, caches and saved states included"]


def _end(file: Path, kept: Path | None) -> list[str]:
    old = f" The file as it was before is {kept}." if kept else ""
    return [f"{file} is written; `dvc repro` makes it. The picture will be results/sample/grid.png.{old}"]
