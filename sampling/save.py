"""Save the run's models as a folder that loads anywhere, with a card; or publish them on the Hugging Face Hub.

    python -m sampling.save FOLDER
    python -m sampling.save --push OWNER/NAME
    python -m sampling.save --push OWNER/NAME --models FOLDER

Reads models, params.yaml, data/prepared and results of the run in the current folder. Writes the models with a card
that says how they were made and what they score, and lists the files. docs/guide/publishing.md says what a card holds.

--push uploads the same files in one commit. It needs a token that may write: `hf auth login`, or HF_TOKEN. With
--dry-run the files are listed, and nothing is uploaded. A folder that was saved before, and whose card was edited, is
published by --models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sampling import options
from tessera import entry
from tessera.artifacts.publishing import new_folder
from tessera.errors import UserError, printable
from tessera.parameters import Params


def listed(folder: Path) -> list[str]:
    """The files of a folder with their sizes, a line each, and their sum."""
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    lines = [f"{size:>12,}  {printable(name)}" for name, size in sizes.items()]  # names may come from the Hub
    return [*lines, f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files"]


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Check what can be checked at once, load the models, and write or upload them."""
    if arguments.folder is None and arguments.push is None:
        raise UserError("name a FOLDER to write, or a model of the Hub by --push OWNER/NAME")
    if arguments.folder is not None:
        new_folder("FOLDER", arguments.folder)
    if arguments.push is not None:
        from sampling.hub import require_id, require_token

        require_id(arguments.push)
        if not arguments.dry_run:
            require_token(None)
    from tempfile import TemporaryDirectory

    pipeline = options.load(arguments, params.sampling, params.runtime.threads)
    told = {"license": arguments.license, "dataset": arguments.dataset}
    if arguments.folder is not None:
        written = pipeline.save_pretrained(arguments.folder, **told)
        print(*listed(written), f"{written}: saved", sep="\n")
    if arguments.push is None:
        return
    if arguments.dry_run:
        with TemporaryDirectory() as place:
            print(*listed(pipeline.save_pretrained(Path(place) / arguments.push.rpartition("/")[2], **told)), sep="\n")
        print(f"{arguments.push}: nothing uploaded, because of --dry-run")
        return
    address = pipeline.push_to_hub(
        arguments.push, revision=arguments.branch, private=arguments.private or None, message=arguments.message, **told
    )
    print(f"{arguments.push}: uploaded, {address}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="a new or empty folder to write")
    parser.add_argument("--push", metavar="OWNER/NAME", help="the model on the Hub to upload to; made if need be")
    parser.add_argument("--dry-run", action="store_true", help="list what --push would upload, and upload nothing")
    parser.add_argument("--private", action="store_true", help="a new model is private; a public one is refused")
    parser.add_argument("--branch", help="of the model on the Hub (default: its main one)")
    parser.add_argument("--message", default="Models and card", help="of the commit (default: %(default)s)")
    parser.add_argument("--license", metavar="NAME", help="a licence as the Hub names it, such as mit (default: none)")
    parser.add_argument(
        "--dataset", metavar="OWNER/NAME", help="the data's id on the Hub, for its leaderboards (default: data.source)"
    )
    options.add_models(parser)


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    raise SystemExit(main())
