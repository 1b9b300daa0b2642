"""How fast is stage 1? The quantizer, a training step, and extraction, each beside what it should be compared with.

    python benchmarks/stage1_speed.py [quantizer step scales extraction] [--repeats 20] [--threads N] [--json FILE]

quantizer: forward + backward + EMA on 16,384 vectors, ours against vector_quantize_pytorch with the same settings and
states, and against the bare matrix product; then what one step adds to the peak of resident memory (Linux).
step: one step of the zalandoresearch network at batch 256, ours (bf16, channels-last, compiled) against its plain
form in fp32 (benchmarks/plain.py), and how far their losses are apart from equal weights.
scales: one step of the preset next_scale_cifar10, fp32, not compiled, against that of its network without scales.
extraction: images to codes, against the encoder's own forward pass on the same batches.
Random data; needs the `dev` extra. Times are medians (quartiles), taken in turn in one process.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain import BATCH_SIZE, LEARNING_RATE, PlainVQVAE, plain_step
from quantizer_speed import EMA, VQ, measure_quantizer
from runs import STAGE1, Steps, parameters, task_of
from timing import in_turn, show

from stage1_vqvae.extract import Pass, encode
from tessera.footprint import TOGETHER
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit, PreparedImages, Stats
from tessera.launch.devices import accelerator, set_threads


def smooth_images(count: int) -> PreparedImages:
    """Random images in which there is something to learn, as if prepared; all in one split."""
    torch.manual_seed(0)
    small = torch.rand(count, 3, 8, 8)
    pixels = F.interpolate(small, 32, mode="bicubic").mul(255).clamp(0, 255).to(torch.uint8)
    split = ImageSplit(pixels.numpy(), None)
    stats = Stats((3, 32, 32), None, {"train": count}, 0.0, to_float(pixels).var().item())
    return PreparedImages({"train": split, "validation": split}, stats, None)


class OurStep:
    """The trainer's own step with the notebook's optimizer settings."""

    def __init__(self, prepared: PreparedImages, threads: int, start: str = "normal", **training: Any) -> None:
        notebook = {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "betas": [0.9, 0.999]}
        notebook |= {"weight_decay": 0.0, "warmup_steps": 0, "schedule": "cosine", "final_learning_rate_fraction": 1.0}
        changes = {STAGE1 + f"training.{k}": v for k, v in (notebook | {"gradient_clip": None} | training).items()}
        params = parameters(EMA | changes | {VQ + "start": start, "runtime.threads": threads, "runtime.log_every": 1})
        self.task = task_of(params, prepared)
        self.step = Steps(self.task, params.stage1_vqvae.training, params.runtime)

    def __call__(self, pixels: torch.Tensor) -> float:
        return self.step({"images": pixels})

    def share_weights(self, plain: PlainVQVAE) -> None:
        """Start both at one point: the plain model's network, and codes at the data, so that many are used."""
        ours, quantizer = self.task.model.network, self.task.model.quantizers[0]
        pairs = [(ours.encoders, plain.encoder), (ours.latents, plain.latent), (ours.decoder, plain.decoder)]
        with torch.no_grad():
            for mine, other in pairs:
                for a, b in zip(mine.parameters(), other.parameters(), strict=True):
                    a.copy_(b)
            self.task.initialise()
            for name in ("codebook", "ema_count", "ema_sum"):
                getattr(plain.quantizer, name).copy_(getattr(quantizer, name))


def loss_difference(
    prepared: PreparedImages, batches: list[torch.Tensor], threads: int, **training: Any
) -> tuple[float, int]:
    """The largest relative difference of the losses, step by step from equal weights on equal batches; and how many
    codes the first batch uses after the last step.

    As in ours, the plain model's residual blocks add to their input here, not to its ReLU, and images are in [-1, 1].
    """
    torch.manual_seed(1)
    plain = PlainVQVAE(prepared.stats.variance, rectified_skip=False)
    ours = OurStep(prepared, threads, start="kmeans", **training)
    ours.share_weights(plain)
    optimizer = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    losses = [(plain_step(plain, optimizer, b, to_float).item(), ours(b)) for b in batches]
    with torch.no_grad():
        used = ours.task.model.eval().encode(to_float(batches[0]))[0].unique()
    return max(abs(b / a - 1) for a, b in losses), len(used)


def measure_step(repeats: int) -> dict[str, Any]:
    threads, prepared = torch.get_num_threads(), smooth_images(8 * BATCH_SIZE)
    batches = list(prepared["train"].pixels(slice(None)).split(BATCH_SIZE))
    apart = {
        "fp32": loss_difference(prepared, batches, threads, precision="fp32", channels_last=False, compile=False),
        "bf16": loss_difference(prepared, batches, threads),
    }
    plain, ours = PlainVQVAE(prepared.stats.variance / 4), OurStep(prepared, threads)
    optimizer = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    feeds = {"plain fp32": itertools.cycle(batches), "ours": itertools.cycle(batches)}
    actions = {
        "plain fp32": lambda: plain_step(plain, optimizer, next(feeds["plain fp32"])),
        "ours": lambda: ours(next(feeds["ours"])),
    }
    times = in_turn(actions, repeats, warmup=3)
    ratio = times["plain fp32"]["median"] / times["ours"]["median"]
    print(f"\ntraining step, batch {BATCH_SIZE}: {ratio:.2f} times faster")
    show(times)
    print(f"  losses of {len(batches)} steps, largest relative difference, and codes in use: {apart}", flush=True)
    return {"ratio": ratio, "times": times, "loss_difference": apart}


def measure_scales(repeats: int) -> dict[str, Any]:
    plain = {STAGE1 + "training.precision": "fp32", STAGE1 + "training.compile": False, "runtime.log_every": 1}
    plain["runtime.threads"] = torch.get_num_threads()
    actions = {}
    for name, changes in {"without scales": {STAGE1 + "scales.sides": None}, "scales": {}}.items():
        params = parameters(plain | changes, "next_scale_cifar10")
        training = params.stage1_vqvae.training
        task = task_of(params, smooth_images(8 * training.batch_size))
        step, batches = Steps(task, training, params.runtime), itertools.count()
        actions[name] = lambda task=task, step=step, batches=batches: step(task.batch(next(batches), slice(None)))
    times = in_turn(actions, repeats, warmup=3)
    ratio = times["scales"]["median"] / times["without scales"]["median"]
    print(f"\ntraining step of scales, fp32: {ratio:.2f} times as long as without scales")
    show(times)
    return {"ratio": ratio, "times": times}


@torch.no_grad()
def measure_extraction(repeats: int) -> dict[str, Any]:
    prepared = smooth_images(20 * TOGETHER)
    params = parameters({"runtime.threads": torch.get_num_threads()})
    device, split = accelerator(params.runtime).device, prepared["train"]
    model = task_of(params, prepared).model.eval().to(device)
    batches = [to_float(p).to(device) for p in split.pixels(slice(None)).split(TOGETHER)]
    actions = {
        "extraction": lambda: list(encode(model, split, Pass(), slice(0, len(split)), TOGETHER, device)),
        "encoder alone": lambda: [model.network.encode(b) for b in batches],
    }
    times = in_turn(actions, repeats)
    rates = {name: len(split) / t["median"] for name, t in times.items()}
    share = rates["extraction"] / rates["encoder alone"]
    print("\nextraction: " + ", ".join(f"{name} {rate:.0f} images/s" for name, rate in rates.items()), end="")
    print(f": {share:.0%} of the encoder's rate", flush=True)
    return {"images_per_second": rates, "share": share, "times": times}


PARTS = {
    "quantizer": measure_quantizer,
    "step": measure_step,
    "scales": measure_scales,
    "extraction": measure_extraction,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}; choose of: {', '.join(PARTS)}")
    set_threads(arguments.threads)
    found = {part: PARTS[part](arguments.repeats) for part in arguments.parts or PARTS}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
