"""How every entry point starts: arguments, the whole of params.yaml checked, errors as one line.

Imports nothing heavy, so that `--help` and a mistake in params.yaml answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tessera import paths
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.fingerprint import fingerprint
from tessera.parameters import Params, load
from tessera.project import files, loaded, syntax


def main(
    run: Callable[[Params, argparse.Namespace], None],
    description: str,
    argv: list[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse the command line, check params.yaml, run; a `UserError` becomes one line and exit status 2.

    The module of `run` says in `USES` which sections of params.yaml change its results; one without `USES` is no stage.
    An edit of these or of the code while a stage runs is an error too: its result would pass for that of the edited.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="parameter file (default: %(default)s)")
    if add_arguments:
        add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        stage = sys.modules[run.__module__]
        uses = getattr(stage, "USES", ())
        code = Code()
        params = load(arguments.params)
        _check_fingerprint(stage.__spec__.name if stage.__spec__ else stage.__name__, uses, params)
        run(params, arguments)
        changed = code.changed()
        if [params.used(path) for path in uses] != [load(arguments.params).used(path) for path in uses]:
            changed.append(arguments.params)
        if changed:
            raise UserError(
                f"{changed[0]}: edited while this ran; what it made is of the file as it was; run it again (a training "
                "goes on from what it saved, unless its parameters have changed, or it was finished with other code)"
            )
    except Exception as error:
        if not isinstance(error, UserError):
            error = _explained(error)
            if error is None:
                raise
        # The processes of a machine fail alike, and one voice is enough; but each machine has its own.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            rank = os.environ.get("RANK", "0")
            print("error: " + (f"[process {rank}] " if rank != "0" else "") + str(error), file=sys.stderr)
        return 2
    return 0


class Code:
    """The text of the project's files at one moment."""

    def __init__(self) -> None:
        self.texts = {file: file.read_text(encoding="utf-8") for file in files()}

    def changed(self) -> list[Path]:
        """The files which this process has loaded and which do something else now than at that moment."""
        now = {file: file.read_text(encoding="utf-8") for file in loaded() if file.is_file()}
        edited = [file for file in loaded() if now.get(file) != self.texts.get(file)]
        return [file for file in edited if not (file in now and file in self.texts and self._alike(file, now[file]))]

    def _alike(self, file: Path, text: str) -> bool:
        try:
            return syntax(text) == syntax(self.texts[file])
        except SyntaxError:
            return False


def _check_fingerprint(module: str, uses: tuple[str, ...], params: Params) -> None:
    """Refuse to run under DVC with other code or parameters than those by which DVC knows this stage.

    DVC reads what `fingerprint` wrote. An edit between that moment and this one would not be seen.

    Raises:
        UserError: the code or the parameters were edited since.
    """
    recorded = paths.FINGERPRINTS / f"{os.environ.get('DVC_STAGE')}.json"
    if not recorded.is_file():
        return
    before, now = read_json(recorded), fingerprint(module, uses, params)
    for kind in ("parameters", "code"):
        names = sorted({*before[kind], *now[kind]})
        if edited := [name for name in names if before[kind].get(name) != now[kind].get(name)]:
            what = "params.yaml: " + edited[0] if kind == "parameters" else edited[0]
            raise UserError(
                f"{what}: edited since the stage `fingerprint` ran, so DVC would take this run for one of the older "
                f"version; run `dvc repro {os.environ['DVC_STAGE']}`, which begins with `fingerprint`"
            )


def _explained(error: Exception) -> UserError | None:
    """What a user can do about an error of torch's, or None; by name, since torch is not imported here."""
    names, said = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if "OutOfMemoryError" in names:
        return UserError(
            f"the GPU's memory is not enough ({said.split('. ')[0]}); lower the batch_size of what ran: that "
            "in the stage's training section, or runtime.batch_size where it measures, or sampling.batch_size"
        )
    if names & {"BackendCompilerFailed", "InductorError"}:
        reason = " ".join(said.split("\n\nSet TORCH")[0].split())[:300]
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's cache of compiled code")
        return UserError(
            f"torch.compile failed ({reason}); set compile to false in the stage's training section, install a C++ "
            f"compiler if there is none, or delete {cache}, where a run that was killed may have left half a file"
        )
    return None
