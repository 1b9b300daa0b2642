"""Options of the command line that `sampling.sample` and `sampling.complete` share. Imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sampling.parameters import SamplingParams
from tessera import paths
from tessera.console import starting
from tessera.errors import UserError
from tessera.parameters.parts import parameters_of

if TYPE_CHECKING:
    from sampling.labels import Classes
    from sampling.pipeline import TwoStagePipeline
    from sampling.settings import Settings

PRIORS = "stage2_prior.priors"

# The values of `sampling` in params.yaml that have an option, and what the option's help says.
VALUES = {
    "temperature": "logits are divided by it; 0 takes the likeliest code",
    "top_k": "keep the K likeliest codes",
    "top_p": "keep the fewest likeliest codes that hold this probability",
    "min_p": "keep the codes with at least this share of the likeliest one's probability",
    "guidance_scale": "1: no guidance; more follows the class more closely",
    "guidance_schedule": "constant or linear",
    "decoding_steps": "of a masked prior, and of an any-order prior in parallel: forward passes",
    "choice_temperature": "of a masked prior: scale of the noise added to each code's confidence",
    "order": "of an any-order prior: layout, random or parallel",
    "seed": "random seed",
    "batch_size": "images drawn at once",
    "decoder": "likelihood, or refined where `refine_decoder` has trained one",
}


def add_values(parser: Any) -> None:
    """Adds an option for each value of `VALUES`. One that is not given is None."""
    for name, help in VALUES.items():
        metavar = "NAME" if name in ("guidance_schedule", "order", "decoder") else "N"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=metavar, help=help)


def add_models(parser: Any) -> None:
    """Adds the options that say which models are used."""
    parser.add_argument(
        "--models", metavar="FOLDER", help=f"of vqvae and prior, or a model's id on the Hub (default: {paths.MODELS})"
    )
    parser.add_argument("--revision", help="of a model on the Hub: a branch, tag or commit (default: the newest)")


def section_with(arguments: argparse.Namespace, section: SamplingParams) -> SamplingParams:
    """The section `sampling` of params.yaml with the values that options gave.

    Raises:
        UserError: a value is of another type or out of range.
    """
    given = {name: getattr(arguments, name) for name in VALUES if getattr(arguments, name) is not None}
    changes = {name: value_of(text) for name, text in given.items()}
    try:
        return SamplingParams.model_validate_json(json.dumps(section.values() | changes))
    except ValidationError as error:
        faults = error.errors()
        name = next((part for part in faults[0]["loc"] if part in given), None)
        # Where a value may be one or a list, the first fault is that it is not a good one, the last that of the list.
        fault = faults[-1 if isinstance(changes.get(name), list) else 0]
        reason = fault["msg"].removeprefix("Value error, ")
        if name is None:  # values that do not fit together
            raise UserError(reason) from None
        raise UserError(
            f"--{name.replace('_', '-')}: {reason[0].lower()}{reason[1:]}, got {given[name]}; give one value, or one "
            "for each level of codes with commas between them, coarsest first; `none` switches a filter off"
        ) from None


def value_of(text: str) -> Any:
    """The value of an option's text: a number, None for "none", several of these between commas, or else the text."""
    if "," in text:
        return [value_of(part) for part in text.split(",")]
    if text.strip().lower() in ("none", "null"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def picture_path(path: Path) -> Path:
    """A path to which a picture can be written.

    Raises:
        UserError: it is a folder, or does not end in .png, the only format that is written.
    """
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; give a file's name, such as {path / 'grid.png'}")
    if path.suffix.lower() != ".png":
        raise UserError(
            f"--output: {path} does not end in .png, the only format that is written; name it {path.stem}.png"
        )
    return path


def load(arguments: argparse.Namespace, section: SamplingParams, threads: int | None) -> TwoStagePipeline:
    """The pipeline that `--models` names, or that of models/. Notes tell of options that change nothing.

    Args:
        threads: `runtime.threads`.
    """
    source, choices = arguments.models or paths.MODELS, {"precision": section.precision, "decoder": section.decoder}
    with starting():
        from sampling.pipeline import TwoStagePipeline
        from tessera.launch.devices import configure_torch

        configure_torch(threads)
        pipeline = TwoStagePipeline.from_pretrained(source, revision=arguments.revision, **choices)
    without = () if pipeline.prior.num_classes else ("guidance_scale", "guidance_schedule")
    reasons = dict.fromkeys(without, "the prior was trained without labels")
    used = _sampled_by(pipeline)
    for name in {"decoding_steps", "choice_temperature", "order"} - used:
        reasons[name] = f"the prior {pipeline.prior.name} does not draw by it"
    if "order" in used and section.order == "parallel":
        reasons.pop("decoding_steps", None)
    elif "order" in used and "decoding_steps" in reasons:
        reasons["decoding_steps"] = f"the order is {section.order}, and only the order parallel draws by it"
    for name, reason in reasons.items():
        if getattr(arguments, name, None) is not None:  # `sampling.save` has no such options
            print(f"note: --{name.replace('_', '-')} changes nothing, because {reason}", file=sys.stderr)
    return pipeline


def drawn_by(pipeline: TwoStagePipeline) -> list[str]:
    """The names, sorted, of the settings in which a pipeline's prior differs from others, such as `order`.

    Filters and guidance are left out, because every prior has them. For a chain, the names of all its priors are put
    together.
    """
    found = _sampled_by(pipeline)
    return sorted(found | {"decoding_steps"} if "order" in found else found)  # of the order `parallel`


def _sampled_by(pipeline: TwoStagePipeline) -> set[str]:
    """`sampled_by` of all priors of a pipeline together."""
    priors = [pipeline.prior, *pipeline.prior.chained()]
    return {name for prior in priors for name in parameters_of(PRIORS, prior.name).sampled_by}


def settings_of(section: SamplingParams, pipeline: TwoStagePipeline) -> Settings:
    """The settings of a section, checked against the pipeline's codes.

    Raises:
        UserError: a setting does not fit.
    """
    from dataclasses import fields

    from sampling.settings import Settings

    return Settings.checked(pipeline.layout, {f.name: getattr(section, f.name) for f in fields(Settings)})


def whole(arguments: argparse.Namespace, name: str, most: int = 10**9) -> int:
    """The value of an option that is a number of images.

    Raises:
        UserError: it is not from 1 to `most`.
    """
    value = getattr(arguments, name)
    if not 1 <= value <= most:
        raise UserError(f"--{name}: expected a number from 1 to {most}, got {value}")
    return value


def class_of(text: str, classes: Classes) -> int:
    """The number of the class that `--class` names. A note is printed where a name is another class's number."""
    number, note = classes.word(text)
    if note:
        print(f"note: {note}", file=sys.stderr)
    return number
