"""Trainings of both stages in TensorBoard, trackio and W&B, read back from what these write."""

from __future__ import annotations

import csv
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extras import require
from whole_runs import by_hand, change_params, run

from tessera.locks import Busy

pytestmark = pytest.mark.slow

# Runs an entry point. It dies when it has taken some steps, and notes every address outside this machine
# that Python asks for. W&B writes from a process of its own, whose addresses nobody notes here.
DRIVER = """
import os, signal, sys
from importlib import import_module

from tessera.training.steps import Stepper

module, steps = sys.argv[1], int(sys.argv[2])
take = Stepper.take


def step(self, number, *others):
    if number == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, number, *others)


def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost"):
        with open("outside", "a") as file:
            print(event, host, file=file)


Stepper.take = step
sys.addaudithook(watch)
raise SystemExit(import_module(module).main([]))
"""

# Prints what a stage's run holds in each tracker: rows of step, name and value; steps of pictures; parameters.
READ = """
import json, os, struct, sys
from pathlib import Path

stage, name = sys.argv[1:]
folder = Path("results/trackers")


def tensorboard():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard" / stage / name), {"tensors": 0, "images": 0}).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if not tag.startswith("_hparams_")]
    rows = [(each.step, tag, make_ndarray(each.tensor_proto).item()) for tag in tags for each in events.Tensors(tag)]
    start = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    parameters = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.items()}
    runs = list((folder / "tensorboard" / stage).iterdir())
    return rows, [each.step for each in events.Images("pictures")], parameters, len(runs)


def trackio():
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(trackio.Api().runs("tessera-" + stage))
    (run,) = [each for each in runs if each.name == name]
    rows, pictures = [], []
    for row in SQLiteStorage.get_logs(run.project, run.name):
        for key, value in row.items():
            if key == "pictures":
                assert (folder / "trackio" / "media" / value["file_path"]).is_file()
                pictures.append(row["step"])
            elif key not in ("step", "timestamp"):
                rows.append((row["step"], key, value))
    return rows, pictures, {k: v for k, v in run.config.items() if k[0] != "_"}, len(runs)


def wandb():
    from wandb.proto.wandb_internal_pb2 import Record

    runs = list((folder / "wandb" / "wandb").glob("offline-run-*-" + name))
    data = (runs[0] / f"run-{name}.wandb").read_bytes()
    # Records in blocks of 32 KiB, as LevelDB writes its log: checksum, length, and whether a record ends here.
    at, record, rows, pictures, parameters = 7, b"", [], [], {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):
            continue
        found, record = Record.FromString(record), b""
        for update in (*found.run.config.update, *found.config.update):
            parameters[update.key or update.nested_key[0]] = json.loads(update.value_json)
        values = {each.key or each.nested_key[0]: json.loads(each.value_json) for each in found.history.item}
        for key, value in values.items():
            if key == "pictures":
                pictures.append(values["_step"])
            elif key[0] != "_":
                rows.append((values["_step"], key, value))
    return rows, pictures, {k: v for k, v in parameters.items() if k[0] != "_"}, len(runs)


print(json.dumps({read.__name__: read() for read in (tensorboard, trackio, wandb)}))
"""

STEPS, SAVE_EVERY, KILLED_AT = 40, 8, 31  # so that a training goes on from step 24


@pytest.fixture
def both(
    in_tmp: Path, repository: Path, write_params: Callable[..., None], write_prepared: Callable[..., None]
) -> Callable[..., Any]:
    """`both(module, steps)`: run an entry point, in whose params.yaml all trackers are named, to a number of steps."""
    require("tensorboard", "trackio", "wandb")
    training = {"steps": STEPS, "validate_every": 10}
    changes = {
        f"{s}.training.{key}": value for s in ("stage1_vqvae", "stage2_prior") for key, value in training.items()
    }
    runtime = {"trackers": ["tensorboard", "trackio", "wandb"], "save_every": SAVE_EVERY, "pictures": 1.0}
    write_prepared()
    write_params(changes | {f"runtime.{key}": value for key, value in runtime.items()})
    # A user who is logged in to the Hub and to W&B, and sends runs of other projects there.
    secrets = {"HF_TOKEN": "hf_none", "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online", "TRACKIO_SPACE_ID": "a/b"}
    environment = by_hand(repository) | {"ACCELERATE_USE_CPU": "1"} | secrets
    return lambda *command: run(in_tmp, [sys.executable, *map(str, command)], environment)


def read(both: Callable[..., Any], stage: str) -> dict[str, Any]:
    (state,) = (path for path in Path(".state", stage).iterdir())
    done = both("-c", READ, stage, state.name[:12])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows_of(stage: str) -> list[tuple[int, str, float]]:
    """The curves of a stage's CSV files and the figures of its metrics.json, as a tracker should have them."""
    figures = json.loads(Path(f"results/{stage}/metrics.json").read_text())["validation"]
    found = [(STEPS, f"metrics/{name}", value) for name, value in figures.items()]
    for name in ("train", "validation"):
        with Path(f"results/{stage}/{name}.csv").open() as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                found += [(step, f"{name}/{column}", float(value)) for column, value in row.items() if value]
    return sorted(found)


def check(both: Callable[..., Any], stage: str) -> None:
    """What each tracker has is what the files have, each row once."""
    expected = rows_of(stage)
    drawn = sorted(int(path.stem.removeprefix("step-")) for path in Path(f"results/{stage}/images").glob("step-*.png"))
    assert len(expected) > 5 * STEPS / 2 and drawn == [10, 20, 30, 40]
    for tracker, (rows, pictures, parameters, runs) in read(both, stage).items():
        assert sorted(map(tuple, rows)) == expected, tracker
        assert sorted(pictures) == drawn and runs == 1, tracker
        assert parameters["training.steps"] == STEPS and parameters["training.schedule_steps"] == "null", tracker


def test_killed_runs_of_both_stages_go_on_in_every_tracker_without_a_doubled_row(both: Callable[..., Any]) -> None:
    died = both("-c", DRIVER, "stage1_vqvae.train", KILLED_AT)
    assert died.returncode == -signal.SIGKILL, died.stderr
    before = read(both, "train_vqvae")
    assert max(step for step, *_ in before["tensorboard"][0]) == KILLED_AT, "rows that the training takes back"
    for module, stage in (("stage1_vqvae.train", "train_vqvae"), ("stage2_prior.train", "train_prior")):
        if stage == "train_prior":
            assert both("-m", "stage1_vqvae.extract").returncode == 0
            assert both("-c", DRIVER, module, KILLED_AT).returncode == -signal.SIGKILL
        done = both("-c", DRIVER, module, -1)
        assert done.returncode == 0, done.stderr
        assert "going on from step 24" in done.stderr and "nothing more goes to" not in done.stderr, done.stderr
        assert done.stdout.count("\n") == 1, "trackers print nothing where the result is printed"
        check(both, stage)
    assert not Path("outside").exists(), Path("outside").read_text()


def test_only_the_main_process_writes_to_trackers(both: Callable[..., Any]) -> None:
    change_params(Path(), {"runtime": {"processes": 2}})
    done = both("-m", "stage1_vqvae.train")
    assert done.returncode == 0, done.stderr
    check(both, "train_vqvae")


def test_a_second_training_of_the_same_fingerprint_is_kept_out_of_trackio(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("trackio")
    from accelerate import PartialState

    from tessera.training.trackers import Trackio

    PartialState(cpu=True)  # without which Accelerate's trackers log nothing of their own
    monkeypatch.setenv("TRACKIO_DIR", str(in_tmp / "shared"))
    first = Trackio(Path("unused"), "train_prior", "0123456789ab", {})
    with pytest.raises(Busy, match="sends this training to trackio"):
        Trackio(Path("unused"), "train_prior", "0123456789ab", {})
    first.finish()
    Trackio(Path("unused"), "train_prior", "0123456789ab", {}).finish()
