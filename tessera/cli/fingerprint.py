"""Check params.yaml and write what each stage depends on: the first stage of the pipeline.

For every stage of dvc.yaml, results/fingerprint/STAGE.json holds the parameters and the code that the stage uses with
the options that params.yaml chooses (`tessera.fingerprint`). The stages depend on these files, and so run again only
when what they use has changed.

It refuses batch sizes that `runtime.processes` cannot share equally, and a `runtime.log_every` for which train.csv
would have too many rows, before any time is spent.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from tessera import paths
from tessera.artifacts.files import json_text, write_text
from tessera.errors import UserError
from tessera.fingerprint import fingerprint
from tessera.parameters import load, read_yaml
from tessera.training.checks import require_trainings
from tessera.training.tracked import require_trackers

PIPELINE = Path("dvc.yaml")


def stages(pipeline: Path = PIPELINE) -> dict[str, str]:
    """The name of each stage that depends on a fingerprint, and its entry point's module.

    Raises:
        UserError: the file is no pipeline of such stages.
    """
    found = {}
    try:
        for name, stage in read_yaml(pipeline)["stages"].items():
            if f"{paths.FINGERPRINTS.as_posix()}/{name}.json" in [str(dep) for dep in stage.get("deps", ())]:
                found[name] = stage["cmd"].split(" -m ")[1].split()[0]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(
            f"{pipeline}: not a pipeline of stages with commands `python -m MODULE` "
            f"({type(error).__name__}: {error}); restore it by Git"
        ) from error
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera fingerprint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="parameter file (default: %(default)s)")
    params = load(parser.parse_args(argv).params)
    require_trackers(params.runtime.trackers)
    require_trainings(params)
    for name, module in stages().items():
        found = fingerprint(module, import_module(module).USES, params)
        write_text(paths.FINGERPRINTS / f"{name}.json", json_text(found))
    return 0
