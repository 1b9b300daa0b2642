"""Several losses on two processes: each wrapper of the model shares the gradients of its own groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from whole_runs import HANGS

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]

SCRIPT = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from small_trainings import RUNTIME, TRAINING
from torch import nn
from tessera.distributed import world
from tessera.launch.devices import accelerator
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.randomness import generator
from tessera.training.checkpoint import StateFolder
from tessera.training import steps
from tessera.training.loop import Trainer
from tessera.training.task import ParameterGroup, Task

PARTS = ("first", "second", "third")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3) for _ in PARTS)

    def forward(self, x, loss):
        made = self.first(x)
        if loss == "first":  # through frozen weights of the second
            return self.second(made).square().mean()
        return ((self.second(made) - 1).square() if loss == "second" else self.third(x) - x).square().mean()


class Toy(Task):
    section, criterion = "toy.training", "a"
    losses = dict.fromkeys(PARTS, 1.0)

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.validations = Model(), 0

    def groups(self):
        criteria = {"first": "a", "second": "a", "third": "b"}
        return tuple(ParameterGroup(criteria[name], name, name, name) for name in PARTS)

    def batch(self, step, rows):
        return {"x": torch.randn(8, 3, generator=generator("x", step))[rows]}

    def loss(self, name, model, batch):
        return model(**batch, loss=name)

    def validate(self):
        self.validations += 1
        return {"a": 1.0 / self.validations, "b": float(self.validations)}  # the third stops after the fourth


params = TrainingParams(**{**TRAINING, "steps": 20, "validate_every": 2, "patience": 3})
runtime = RuntimeParams(**{**RUNTIME, "pictures": 0})
accelerator = accelerator(runtime)
exchanged, look = [], steps.largest_of_each
steps.largest_of_each = lambda values: exchanged.append(len(values)) or look(values)
with StateFolder("toy", "run", accelerator.is_main_process) as state:
    trainer = Trainer(Toy(), params, runtime, accelerator, state)
    trainer.run()
    saved = {name: tensor for name, tensor in trainer.saver.tensors.tensors(trainer.best).items()}
    save_file(saved, f"{sys.argv[1]}_rank{world()[0]}.safetensors")
    assert trainer.progress.step == 20 and "third" not in trainer.progress.train[-1]
    assert exchanged == [2] * 20  # one exchange a step, whatever the number of losses
"""


def test_two_processes_train_every_group_as_one_does(in_tmp: Path) -> None:
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "DVC_ROOT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent))),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }
    (in_tmp / "toy.py").write_text(SCRIPT, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, command in (("one", [sys.executable]), ("two", torchrun)):
        command = [*command, "toy.py", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
        assert done.returncode == 0, done.stderr
        Path(".state").rename(f"state of {name}")
    alone, *ranks = (load_file(f"{name}.safetensors") for name in ("one_rank0", "two_rank0", "two_rank1"))
    assert alone.keys() == ranks[0].keys() and any(name.startswith("best.third") for name in alone)
    for name, tensor in ranks[0].items():
        assert torch.equal(tensor, ranks[1][name]), name
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5, msg=name)
