"""How do threads that wait for one another cope with other programs? Training steps on an idle and on a busy machine.

    python benchmarks/busy_machine.py [--load 4] [--repeats 5] [--steps 20] [--settings NAME ...] [--json FILE]

A thread that is done early spins for a while before it sleeps. On a busy machine it takes the core from the thread that
it waits for. `default`: libgomp's own number of turns. `ours`: the default, or almost none, as
tessera/launch/spinning.py chooses from second to second. `passive`: no spinning at all. `ours, short slices`: as
`ours`, and the scheduler is asked for slices of 0.1 ms, so that a thread that wakes waits less for a core (Linux 6.12
or newer). The other programs are loops that never wait. Every setting has a process of its own, in turn, and every
second turn goes backwards. The times are medians over processes of the median step (quartiles of the medians). The mean
over all steps counts the processes that are far slower than most, as some are on a busy machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from statistics import fmean, median

import repository  # noqa: F401
from timing import quartiles

from tessera.launch.threads import number_of_threads, thread_environment

SETTINGS = {
    "default": {},
    "ours": {},
    "100,000 turns": {"GOMP_SPINCOUNT": "100000"},
    "10,000 turns": {"GOMP_SPINCOUNT": "10000"},
    "5,000 turns": {"GOMP_SPINCOUNT": "5000"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "100 turns": {"GOMP_SPINCOUNT": "100"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "ours, short slices": {},
}
OURS = ("ours", "ours, short slices")
SET_SCHEDULER = {"x86_64": 314, "aarch64": 274}  # the number of the system call sched_setattr
SLICE = 100_000  # nanoseconds, the shortest that Linux grants
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
WARMUP = 3
MODELS = ("small", "cifar10", "prior")  # two networks of stage 1, at batch 64; the prior of params.yaml, at batch 128
PLAIN = {"precision": "fp32", "channels_last": False, "compile": False}


def measure(model: str, steps: int) -> None:
    """Print the seconds of each step, as JSON: the work of one process."""
    from itertools import cycle

    from runs import STAGE1, Steps, parameters, task_of
    from stage1_speed import smooth_images

    from tessera.launch.devices import set_threads

    set_threads(None)
    if model == "prior":
        measure_prior(steps)
        return
    changes = {"runtime.log_every": 1, STAGE1 + "training.batch_size": 64}
    fp32 = {STAGE1 + f"training.{name}": value for name, value in PLAIN.items()}
    small = {STAGE1 + "network.conv.channels": 32, STAGE1 + "network.conv.stem_channels": 16}
    params = parameters(changes | fp32 | (small if model == "small" else {}))
    prepared = smooth_images(256)
    task = task_of(params, prepared)
    step = Steps(task, params.stage1_vqvae.training, params.runtime)
    batches, times = cycle(prepared["train"].pixels(slice(None)).split(64)), []
    for _ in range(WARMUP + steps):
        began = time.perf_counter()
        step({"images": next(batches)})
        times.append(time.perf_counter() - began)
    print(json.dumps(times[WARMUP:]))


def measure_prior(steps: int) -> None:
    """The same for the transformer of params.yaml, on 4x4 random codes: many small operations."""
    import torch
    from repository import REPOSITORY

    from stage2_prior.priors.build import build_prior
    from tessera.codes.layout import CodeLayout, Level
    from tessera.parameters import load

    layout = CodeLayout((1, 8, 8), (Level(4, 4, 1, 64),))
    section = load(REPOSITORY / "params.yaml").stage2_prior
    prior = build_prior(section.config() | {"layout": layout.to_json(), "num_classes": 10})
    optimizer = torch.optim.AdamW(prior.parameters(), fused=True)
    tokens, labels, times = torch.randint(64, (128, 16)), torch.randint(10, (128,)), []
    for _ in range(WARMUP + steps):
        began = time.perf_counter()
        prior(tokens, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    print(json.dumps(times[WARMUP:]))


@contextmanager
def busy(load: int) -> Iterator[None]:
    """So many other programs, which never wait."""
    loop = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends when this program is killed
    others = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(load)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def shorten_slices() -> None:
    """Ask the scheduler for slices of `SLICE` for this thread and for those that it starts."""
    # struct sched_attr: its size, policy, flags, nice, priority; then runtime, which is the slice of ordinary programs.
    wanted = struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, SLICE, 0, 0)
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(SET_SCHEDULER[platform.machine()], 0, wanted, 0) != 0:
        raise OSError(ctypes.get_errno(), "the scheduler refused short slices")


def step_seconds(model: str, setting: str, steps: int) -> list[float]:
    """The seconds of each step of one process."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, __file__, "--model", model, "--steps", str(steps), "--measure", setting]
    done = subprocess.run(command, env=kept | SETTINGS[setting], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(processes: list[list[float]]) -> dict[str, float]:
    """The quartiles of the median steps of processes, and the mean of all their steps, in seconds."""
    return quartiles([median(steps) for steps in processes]) | {"mean": fmean(chain(*processes))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=int, nargs="+", default=[0, 4], help="other programs (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--model", choices=MODELS, help="default: each")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.measure:
        if options.measure == "ours, short slices":
            shorten_slices()
        with thread_environment(number_of_threads(None)) if options.measure in OURS else nullcontext():
            measure(options.model, options.steps)
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in [options.model] if options.model else MODELS:
        for load in options.load:
            times: dict[str, list[list[float]]] = {name: [] for name in options.settings}
            with busy(load):
                for turn in range(options.repeats):
                    for name in options.settings[:: -1 if turn % 2 else 1]:
                        times[name].append(step_seconds(model, name, options.steps))
            print(f"\n{model}, {load} other programs: seconds a step", flush=True)
            found[f"{model}, {load}"] = {name: summary(processes) for name, processes in times.items()}
            first = found[f"{model}, {load}"][options.settings[0]]
            for name, t in found[f"{model}, {load}"].items():
                spread = f"{t['median']:.4f} ({t['low']:.4f} to {t['high']:.4f}), mean {t['mean']:.4f}"
                faster = f"{first['median'] / t['median']:.2f} (means: {first['mean'] / t['mean']:.2f}) times as fast"
                print(f"  {name:18} {spread}, {faster} as {options.settings[0]}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
