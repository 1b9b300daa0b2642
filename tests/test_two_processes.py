"""Two processes, and three, train what one does, whoever starts them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from whole_runs import Environment, by_hand, column, copies, run, set_processes, succeed, torchrun

pytestmark = pytest.mark.slow
Write = Callable[..., None]

# Runs an entry point and notes on every process what its codebooks and weights were after each step.
NOTED = """
import sys
from safetensors.torch import save_file
from tessera.distributed import world
from stage1_vqvae import train
from stage1_vqvae.task import VQVAETask

update, notes = VQVAETask.update, {}

def noted(self, step):
    scalars = update(self, step)
    for name, tensor in self.model.state_dict().items():
        if name.startswith("quantizers") or step % 10 == 9:
            notes[f"{step:03d}.{name}"] = tensor.clone()
    save_file(notes, f"rank{world()[0]}.safetensors")
    return scalars

VQVAETask.update = noted
sys.exit(train.main([]))
"""


@pytest.fixture
def environment(repository: Path) -> Environment:
    return by_hand(repository, forked=True)


def several_against_one(folders: list[Path], arguments: list[str], environment: Environment, count: int = 2) -> None:
    one, several = folders
    succeed(one, ["python", *arguments], environment)
    succeed(several, [*torchrun(count), *arguments], environment | {"ACCELERATE_USE_CPU": "1"})


VQ = {"codebook_size": 8, "codebook_dim": 4, "revival_threshold": 0.3, "start": "kmeans"}
BITS = {"bits": 4, "entropy_group_bits": 4}
QUANTIZERS: dict[str, tuple[str, str | None, dict]] = {  # name, name of the one inside, changes of the innermost
    "ema": ("vq", None, VQ | {"codebook_update": "ema"}),
    "gradient": ("vq", None, VQ | {"codebook_update": "gradient", "entropy_bonus": 0.1}),
    "residual, shared": ("residual", "vq", VQ),
    "grouped, shared": ("grouped", "vq", VQ),
    "drawn": ("soft_em", None, VQ),
    "entropy": ("lfq", None, BITS),
    "shared by levels": ("vq", None, VQ),
    "scales": ("vq", None, VQ),
}


@pytest.mark.parametrize(("label", "processes"), [*((label, 2) for label in QUANTIZERS), ("ema", 3)])
def test_several_processes_train_the_vqvae_that_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: Environment, label: str, processes: int
) -> None:
    name, inside, changes = QUANTIZERS[label]
    section = f"stage1_vqvae.quantizer.{name}."
    if inside:
        section_changes = {section + "share_codebook": True, section + "quantizer": {"name": inside, inside: changes}}
    else:
        section_changes = {section + key: value for key, value in changes.items()}
    if label == "shared by levels":
        section_changes["stage1_vqvae.quantizer.shared_by_levels"] = True
    if label == "scales":  # which some images are decoded without, at random
        section_changes |= {"stage1_vqvae.network.conv.strides": [4], "stage1_vqvae.scales.sides": [1, [2, 4]]}
    write_prepared((3, 8, 16), classes=0)
    write_params(
        {
            "data.channels": 3,
            "data.width": 16,
            "stage1_vqvae.network.conv.strides": [2, 2],
            "stage1_vqvae.quantizer.name": name,
            **section_changes,
            "stage1_vqvae.augmentation.horizontal_flip": True,
            "stage1_vqvae.training.steps": 20,
            "stage1_vqvae.training.batch_size": 8 * processes,
            "stage1_vqvae.training.learning_rate": 5e-4,
        }
    )
    (in_tmp / "noted.py").write_text(NOTED, encoding="utf-8")
    one, several = copies(in_tmp, "one", "several")
    several_against_one([one, several], ["noted.py"], environment, processes)
    first, *others = (load_file(several / f"rank{rank}.safetensors") for rank in range(processes))
    alone = load_file(one / "rank0.safetensors")
    assert first.keys() == alone.keys() and len(alone) > 40 and len(others) == processes - 1
    assert any("quantizers" in name for name in alone) == (name != "lfq")
    for name, tensor in first.items():
        for other in others:
            assert torch.equal(tensor, other[name]), name  # bit for bit, after every step
        # A vector just between two codes may change sides, which moves a count by 1 - decay, a few times at most.
        close = 0.03 if "ema_" in name and name > "005" else 1e-4
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=close, msg=name)
    # One of the batch's n vectors on another side changes the perplexity by a share of about log(n) / n at most, and in
    # a few steps only. That of half a batch is off in every step.
    vectors = 8 * processes * (2 * 4)
    one_vector = math.log(vectors) / vectors
    relative = {"loss": 0, "distortion": 0, "quantizer_loss": 0, "grad_norm": 1e-4, "perplexity": one_vector}
    for name, close in relative.items():
        losses = [torch.tensor(column(folder, "train_vqvae", name)) for folder in (one, several)]
        assert len(losses[0]) == 20
        torch.testing.assert_close(losses[0], losses[1], rtol=close, atol=1e-5, msg=name)
        assert name != "perplexity" or ((losses[0] - losses[1]).abs() > 1e-5).sum() <= 3


TERM = "stage1_vqvae.objective.adversarial."


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_two_processes_train_against_a_discriminator_as_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: Environment, norm: str
) -> None:
    """A whole VQ-VAE with an adaptive weight and LeCam's averages, and then its decoder with R1's penalty."""
    write_prepared()
    r1 = {"weight": 0.5, "adaptive": False, "regulariser": {"name": "r1", "weight": 0.1}, "start_step": 0}
    few = {"steps": 12, "batch_size": 16, "learning_rate": 5e-4}
    write_params(
        {
            TERM + "weight": 0.5,
            TERM + "start_step": 4,
            TERM + "ramp_steps": 4,
            TERM + "regulariser.name": "lecam",
            TERM + "discriminator.patch.norm": norm,
            **{f"stage1_vqvae.training.{name}": value for name, value in few.items()},
            "stage1_vqvae.quantizer.revival_threshold": 0.0,
            "refine_decoder.name": "objective",
            "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": r1},
            **{f"refine_decoder.training.{name}": value for name, value in few.items()},
        }
    )
    one, two = copies(in_tmp, "one", "two")
    for module, stage, model in (("train", "train_vqvae", "vqvae"), ("refine", "refine_decoder", "decoders/refined")):
        if stage == "refine_decoder":  # of the same VQ-VAE
            shutil.rmtree(two / "models/vqvae")
            shutil.copytree(one / "models/vqvae", two / "models/vqvae")
        several_against_one([one, two], ["-m", f"stage1_vqvae.{module}"], environment)
        for name in ("generator", "discriminator", "adversarial", "distortion", "grad_norm_discriminator"):
            losses = [torch.tensor(column(folder, stage, name, missing=0.0)) for folder in (one, two)]
            assert len(losses[0]) == 12 and losses[0][-1]
            torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5, msg=f"{stage} {name}")
        weights = [load_file(folder / f"models/{model}/model.safetensors") for folder in (one, two)]
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4, msg=name)


# Runs an entry point of stage 1 with a tiny feature network in place of the one that is chosen.
TINY_FEATURES = """
import sys
from importlib import import_module
import torch
from torch import nn
from stage1_vqvae.objectives import frozen
from tessera.features.networks.base import FeatureNetwork

class Tiny(FeatureNetwork):
    widths = (4, 6)

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 4, stride=2, padding=1)

    def feature_maps(self, images):
        shallow = self.first(images).relu()
        return [shallow, self.second(shallow).relu()]

frozen.build_features = lambda params: Tiny().freeze()
sys.exit(import_module(sys.argv[1]).main([]))
"""


def test_two_processes_look_at_the_random_parts_that_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: Environment
) -> None:
    """The part is drawn for a step, not for a process: of a perceptual term, and of projected features."""
    write_prepared()
    few = {"steps": 12, "batch_size": 16, "learning_rate": 5e-4}
    projected = {"channels": 4, "part": 5, "matching": 4.0}
    adversarial = {"weight": 0.5, "adaptive": False, "discriminator": {"name": "projected", "projected": projected}}
    write_params(
        {
            **{f"stage1_vqvae.training.{name}": value for name, value in few.items()},
            "stage1_vqvae.quantizer.revival_threshold": 0.0,
            "refine_decoder.name": "objective",
            "refine_decoder.objective": {"perceptual": {"weight": 0.5, "part": 5}, "adversarial": adversarial},
            **{f"refine_decoder.training.{name}": value for name, value in few.items()},
        }
    )
    (in_tmp / "tiny.py").write_text(TINY_FEATURES, encoding="utf-8")
    succeed(in_tmp, ["python", "-m", "stage1_vqvae.train"], environment)
    one, two = copies(in_tmp, "one", "two")
    several_against_one([one, two], ["tiny.py", "stage1_vqvae.refine"], environment)
    for name in ("generator", "discriminator", "adversarial", "perceptual", "grad_norm_discriminator"):
        losses = [torch.tensor(column(folder, "refine_decoder", name)) for folder in (one, two)]
        assert len(losses[0]) == 12
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5, msg=name)
    weights = [load_file(folder / "models/decoders/refined/model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4, msg=name)


PRIORS: dict[str, dict] = {
    "pixelcnn": {},
    "transformer": {},
    "masked": {},
    # Half of the training has random orders for all images, then for fewer and fewer, then for none.
    "any_order": {"stage2_prior.any_order.annealing": [0.5, 0.9]},
    "next_scale": {"stage1_vqvae.scales.sides": [1, 2, 4]},
}


@pytest.mark.parametrize("prior", list(PRIORS))
def test_two_processes_train_the_prior_that_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: Environment, prior: str
) -> None:
    write_prepared()
    write_params(
        {
            "stage1_vqvae.training.steps": 3,
            "stage2_prior.name": prior,
            "stage2_prior.dropout": 0.0,
            "stage2_prior.training.steps": 20,
            **PRIORS[prior],
        }
    )
    for module in ("stage1_vqvae.train", "stage1_vqvae.extract"):
        succeed(in_tmp, ["python", "-m", module], environment)
    one, several = copies(in_tmp, "one", "several")
    several_against_one([one, several], ["-m", "stage2_prior.train"], environment)
    losses = [torch.tensor(column(folder, "train_prior", "loss")) for folder in (one, several)]
    assert len(losses[0]) == 20
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)
    weights = [load_file(folder / "models/prior/model.safetensors") for folder in (one, several)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-3)


def test_two_processes_train_the_classifier_that_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: Environment
) -> None:
    write_prepared()
    few = {"steps": 20, "batch_size": 16, "warmup_steps": 2, "validate_every": 10}
    write_params(
        {
            "classifier.conv": {"channels": 8, "dropout": 0.0},
            **{f"classifier.training.{name}": value for name, value in few.items()},
        }
    )
    one, two = copies(in_tmp, "one", "two")
    several_against_one([one, two], ["-m", "evaluation.train_classifier"], environment)
    losses = [torch.tensor(column(folder, "train_classifier", "loss")) for folder in (one, two)]
    assert len(losses[0]) == 20 and losses[0][-1] < 0.95 * losses[0][0]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)
    weights = [load_file(folder / "models/classifier/model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        if name in ("blocks.0.0.bias", "blocks.0.3.bias"):
            continue  # the norm, of one channel a group, takes it off: its gradient is rounding, which Adam enlarges
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_an_entry_point_and_torchrun_start_the_same_training(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: Environment
) -> None:
    if torch.cuda.is_available():
        pytest.skip("with GPUs, two processes need two of them")
    write_prepared()
    write_params({"stage1_vqvae.training.steps": 20, "stage1_vqvae.training.validate_every": 10})
    by_itself, by_torchrun = copies(in_tmp, "by_itself", "by_torchrun")
    set_processes(by_itself, 2)
    done = run(by_itself, ["python", "-m", "stage1_vqvae.train"], environment)
    assert done.returncode == 0, done.stderr
    # Nothing of a launcher's is in the log: no banner, no advice, no warning of a library.
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["expects", "step", "step"]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["models/vqvae:"]
    succeed(by_torchrun, [*torchrun(2), "-m", "stage1_vqvae.train"], environment)
    for file in ("models/vqvae/model.safetensors", "results/train_vqvae/metrics.json"):
        assert (by_itself / file).read_bytes() == (by_torchrun / file).read_bytes()
