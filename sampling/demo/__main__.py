"""Show published models on a page in the browser: draw, complete, take apart and measure images.

    python -m sampling.demo
    python -m sampling.demo FOLDER
    python -m sampling.demo OWNER/NAME --revision main

FOLDER holds vqvae and prior; without it: models. OWNER/NAME is a model on the Hub. The page is at an address of this
machine, which no other machine reaches, and asks nothing of the network. Ctrl+C ends it. It needs gradio:
`pip install -e ".[demo]"`.

The page's controls begin with the values of `sampling` in params.yaml if there is one in this folder, and else with the
values that params.yaml ships with. The same seed and values give the picture that `python -m sampling.sample` writes.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tessera import paths
from tessera.explained import exit_status
from tessera.launch.threads import number_of_threads, thread_environment
from tessera.parameters import Params, load


def run(arguments: argparse.Namespace) -> None:
    """Open the models, serve the page, and wait."""
    params = parameters(arguments.params)
    threads = params.runtime.threads if params else None
    with thread_environment(number_of_threads(threads)):
        from sampling.demo import serving

        serving.require_gradio()
        from sampling.demo.models import open_models
        from tessera.launch.devices import configure_torch

        configure_torch(threads)
        section = params.sampling if params else None
        pipeline, beginning = open_models(arguments.models, arguments.revision, section)
        print(pipeline)
        with serving.serving(pipeline, beginning, arguments.port) as address:
            print(f"\nopen {address} in a browser; Ctrl+C ends it", flush=True)
            serving.wait()


def parameters(file: Path | None) -> Params | None:
    """The parameters of a file; without a name those of params.yaml, if it is there."""
    if file is not None:
        return load(file)
    return load(paths.PARAMS) if paths.PARAMS.exists() else None


def main(argv: list[str] | None = None) -> int:
    """Run the demo. The exit status is 2 after a mistake of the user, which is printed as one line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m sampling.demo", description=__doc__, formatter_class=plain)
    parser.add_argument("models", nargs="?", metavar="FOLDER|ID", help="the models (default: models)")
    parser.add_argument("--revision", help="of a model on the Hub: a branch, a tag or a commit (default: the newest)")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument("--params", type=Path, help="parameter file (default: params.yaml, if it is there)")
    arguments = parser.parse_args(argv)
    ended = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run(arguments)
    except KeyboardInterrupt:
        pass  # Ctrl-C is how a user ends the demo, so it is no failure
    except Exception as error:
        return exit_status(error)
    finally:
        signal.signal(signal.SIGTERM, ended)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
