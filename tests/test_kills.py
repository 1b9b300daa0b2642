"""Trainings that are killed again and again, at points all over the run and inside saves, end on the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from whole_runs import HANGS, Environment, by_hand, copies, succeed

pytestmark = pytest.mark.slow
Write = Callable[..., None]
ON_CPU = {"ACCELERATE_USE_CPU": "1"}

# Runs an entry point once for each point, each time in a new process that kills itself there, and then to the end.
# Processes are forked after the libraries are loaded, and before torch has computed anything.
DRIVER = """
import json, os, signal, sys, threading
from importlib import import_module

from tessera import paths
from tessera.fingerprint import code
from tessera.parameters import load
from tessera.training import checkpoint, loop
from tessera.training.checkpoint import StateFolder
from tessera.training.steps import Stepper

stage, points = import_module(sys.argv[1]), json.loads(sys.argv[2])
for file in code(sys.argv[1], stage.USES, load(paths.PARAMS)):
    import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
for library in ("torch._dynamo", "transformers.models.llama.modeling_llama"):  # which optimizers and priors load
    import_module(library)
FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir")
take, save, finish, write = Stepper.take, StateFolder.save, StateFolder.finish, checkpoint.save_file


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def in_file_events(work, share):
    # Of all that the first call does to files, as Python's audit hooks see it, the second call dies at this share.
    # What another thread does meanwhile does not count, nor does a library that the first call loads.
    state = {"calls": 0, "first": 0, "seen": 0, "inside": None}

    def watch(event, arguments):
        own = state["inside"] == threading.get_ident() and event in FILE_EVENTS
        if own and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
            state["seen"] += 1
            if state["calls"] == 1:
                state["first"] = state["seen"]
            elif state["seen"] >= share * state["first"]:
                die()

    def watched(*arguments, **named):
        state.update(calls=state["calls"] + 1, seen=0, inside=threading.get_ident())
        try:
            return work(*arguments, **named)
        finally:
            state["inside"] = None

    sys.addaudithook(watch)
    return watched


def arm(kind, value):
    if kind == "step":
        def step(self, number, *others):
            take(self, number, *others)
            if number == value:
                die()
        Stepper.take = step
    elif kind == "save":
        StateFolder.save = in_file_events(save, value)
    elif kind == "half a file":
        def half(tensors, file):
            write(tensors, file)
            if file.parent.name.startswith(".step-"):
                os.truncate(file, file.stat().st_size // 2)
                die()
        checkpoint.save_file = half
    elif kind == "finish":
        # The saves before count as the first call.
        watched = in_file_events(lambda work, *arguments: work(*arguments), value)
        calls = []
        def saving(self, *arguments):
            if not calls:
                calls.append(True)
                return watched(save, self, *arguments)
            return save(self, *arguments)
        StateFolder.save = saving
        StateFolder.finish = lambda self, *arguments: watched(finish, self, *arguments)


def run(point):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if point:
        arm(*point)
    status = 1
    try:
        status = stage.main([])
    finally:
        sys.stderr.flush()
        os._exit(status)


print(json.dumps([run(point) for point in [*points, None]]))
"""

STEPS, SAVE_EVERY = 240, 5
INSIDE_SAVES = {2: 0.05, 4: 0.2, 7: 0.4, 9: 0.6, 12: 0.8, 14: 0.95, 16: None}  # points of 20, and the share of the save


def points() -> list[tuple[str, float | None]]:
    """Where the runs are killed: 20 points spread over the training, 8 of them inside a save."""
    found: list[tuple[str, float | None]] = []
    for i in range(19):
        if i in INSIDE_SAVES:
            share = INSIDE_SAVES[i]
            found.append(("half a file", None) if share is None else ("save", share))
        else:
            found.append(("step", 12 * i + 7))
    return [*found, ("finish", 0.5)]


def run_killed(folder: Path, module: str, environment: Environment) -> None:
    command = [sys.executable, "-c", DRIVER, module, json.dumps(points())]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [-9] * 20 + [0], done.stderr
    assert done.stderr.count("going on from step") == 20


def published(folder: Path, stage: str, model: str) -> dict[str, bytes]:
    """What a stage published: its model, its curves and its figures."""
    files = [*(folder / "models" / model).iterdir(), *(folder / "results" / stage).glob("*.*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check_ends(whole: Path, killed: Path, stage: str, model: str) -> None:
    expected = published(whole, stage, model)
    assert len(expected) == 3 + (4 if stage == "train_prior" else 3)
    assert published(killed, stage, model) == expected
    left = [path.name for path in killed.rglob("*") if any(mark in path.name for mark in (".new-", ".old-"))]
    assert left == []
    (run,) = (killed / ".state" / stage).iterdir()
    assert sorted(path.name.split("-")[0] for path in run.iterdir()) == ["finished", "lock"]


@pytest.fixture
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    own = {"TMPDIR": "temporary", "TORCHINDUCTOR_CACHE_DIR": "inductor"}  # torch makes the second when it is loaded
    folders = {name: str(tmp_path_factory.mktemp(folder)) for name, folder in own.items()}
    return by_hand(repository) | ON_CPU | folders


@pytest.fixture
def forked(repository: Path) -> Environment:
    """Of runs that nobody kills."""
    return by_hand(repository, forked=True) | ON_CPU


@pytest.fixture
def parameters(write_params: Write, write_prepared: Write) -> None:
    """Both stages take a second or two, and save a state every few steps."""
    training = {"steps": STEPS, "validate_every": 60, "weight_ema_decay": 0.99}
    write_prepared()
    write_params(
        {
            f"{stage}.training.{name}": value
            for stage in ("stage1_vqvae", "stage2_prior")
            for name, value in training.items()
        }
        | {
            "stage2_prior.dropout": 0.2,
            "runtime.save_every": SAVE_EVERY,
            "runtime.log_every": 7,
            "runtime.pictures": 0.0,
        }
    )


SCALES = {"stage1_vqvae.scales.sides": [1, 2, 4]}  # whose dropout is random
PRIORS = {
    "transformer": {},
    "any_order": {"stage2_prior.any_order.annealing": [0.5, 0.9]},  # orders are random, and fewer and fewer
    "next_scale": SCALES,
}


@pytest.mark.parametrize("changes", [{}, SCALES], ids=["one level", "scales"])
def test_twenty_kills_of_stage_1_end_on_the_same_bytes(
    in_tmp: Path, parameters: None, write_params: Write, environment: Environment, forked: Environment, changes: dict
) -> None:
    write_params(changes)
    whole, killed = copies(in_tmp, "whole", "killed")
    succeed(whole, ["python", "-m", "stage1_vqvae.train"], forked)
    run_killed(killed, "stage1_vqvae.train", environment)
    check_ends(whole, killed, "train_vqvae", "vqvae")
    assert not list(Path(environment["TMPDIR"]).iterdir())


TERM = "stage1_vqvae.objective.adversarial."
AGAINST_A_DISCRIMINATOR = {
    TERM + "weight": 0.5,
    TERM + "start_step": 60,
    TERM + "ramp_steps": 60,
    TERM + "regulariser.name": "lecam",
    "refine_decoder.name": "objective",
    "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": {"adaptive": False}},
    "refine_decoder.training": {"steps": STEPS, "validate_every": 60, "learning_rate": 1e-3, "warmup_steps": 5},
}


@pytest.mark.parametrize(
    ("before", "module", "stage", "model"),
    [
        ([], "stage1_vqvae.train", "train_vqvae", "vqvae"),
        (["stage1_vqvae.train"], "stage1_vqvae.refine", "refine_decoder", "decoders/refined"),
    ],
)
def test_twenty_kills_of_a_training_against_a_discriminator_end_on_the_same_bytes(
    in_tmp: Path,
    parameters: None,
    write_params: Write,
    environment: Environment,
    forked: Environment,
    before: list[str],
    module: str,
    stage: str,
    model: str,
) -> None:
    write_params(AGAINST_A_DISCRIMINATOR)
    for earlier in before:
        succeed(in_tmp, ["python", "-m", earlier], forked)
    whole, killed = copies(in_tmp, "whole", "killed")
    succeed(whole, ["python", "-m", module], forked)
    run_killed(killed, module, environment)
    check_ends(whole, killed, stage, model)
    names = load_file(whole / "models" / model / "model.safetensors")
    assert names and not [name for name in names if "discriminator" in name or "terms" in name]


@pytest.mark.parametrize("prior", list(PRIORS))
def test_twenty_kills_of_stage_2_end_on_the_same_bytes(
    in_tmp: Path, parameters: None, write_params: Write, environment: Environment, forked: Environment, prior: str
) -> None:
    write_params({"stage2_prior.name": prior, **PRIORS[prior]})
    for module in ("stage1_vqvae.train", "stage1_vqvae.extract"):
        succeed(in_tmp, ["python", "-m", module], forked)
    whole, killed = copies(in_tmp, "whole", "killed")
    succeed(whole, ["python", "-m", "stage2_prior.train"], forked)
    run_killed(killed, "stage2_prior.train", environment)
    check_ends(whole, killed, "train_prior", "prior")
    assert not list(Path(environment["TMPDIR"]).iterdir())
