"""The tasks of trainings with perceptual or adversarial terms: of a whole VQ-VAE, and of a decoder alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stage1_vqvae.model import VQVAE
from stage1_vqvae.objective import GENERATOR, Objective
from stage1_vqvae.parameters import AugmentationParams, Stage1Params, Stage1TrainingParams
from stage1_vqvae.quantizers.output import planes
from stage1_vqvae.task import VQVAETask
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit
from tessera.parameters.training import TrainingParams
from tessera.randomness import generator, seed_of
from tessera.training.task import NEWEST, Batch, Loss, ParameterGroup

TOTAL = "objective"  # the figure of the validation split that all measured terms add up to
MODEL = "vqvae"  # where an `Objective` has the model that is published


def task_of(section: Stage1Params, model: VQVAE, train: ImageSplit, validation: ImageSplit) -> VQVAETask:
    """The task of training a VQ-VAE: by its likelihood alone, or with the terms of the objective that are on.

    Args:
        model: new, or with published weights.

    Raises:
        UserError: a term needs a feature network whose weights are missing.
    """
    splits = (train, validation, section.training, section.augmentation)
    if not section.objective.on:
        return VQVAETask(model, *splits)
    torch.manual_seed(seed_of("initialise", section.training.seed, MODEL))
    return SharpTask(Objective(model, section.objective.values()), *splits)


class SharpTask(VQVAETask):
    """Trains a VQ-VAE with further terms beside its distortion.

    The step's reconstructions are made once. The discriminator judges those from before the step's update of the
    VQ-VAE. With a discriminator the newest weights are published, since no figure of the validation split is what is
    trained. Otherwise the best weights have the smallest sum of distortion and weighted terms.
    """

    part = MODEL

    def __init__(
        self,
        model: Objective,
        train: ImageSplit,
        validation: ImageSplit,
        params: Stage1TrainingParams | TrainingParams,
        augmentation: AugmentationParams,
    ) -> None:
        super().__init__(model.vqvae, train, validation, params, augmentation)
        self.model, self.inputs_used = model, model.weights
        self.re_estimated = frozenset(f"{MODEL}.{name}" for name in self.re_estimated)
        self.losses = {GENERATOR: 1.0, **dict.fromkeys(model.opponents, 0.0)}
        self.whole_batch = next(filter(None, [self.whole_batch, *(t.whole_batch for t in model.terms.values())]), "")
        self.criterion = NEWEST if model.opponents else TOTAL
        self.step = 0
        self._made: list[torch.Tensor] = []  # the reconstructions of the step, one tensor for each micro-batch

    def groups(self) -> tuple[ParameterGroup, ...]:
        terms = {f"terms.{name}": term for name, term in self.model.terms.items() if term.opponent}
        opponents = (
            ParameterGroup(self.criterion, term.opponent, module, term.opponent, averaged=False, **term.settings())
            for module, term in terms.items()
        )
        return (ParameterGroup(self.criterion, GENERATOR, MODEL, GENERATOR), *opponents)

    def begin(self, step: int) -> None:
        self.step, self._made = step, []
        for name, term in self.model.terms.items():
            term.begin(generator("term", self.params.seed, step, name))

    def active(self, name: str) -> bool:
        return name == GENERATOR or self.model.opponents[name].begins(self.step)

    def loss(self, name: str, model: nn.Module, batch: Batch) -> Loss:
        if name == GENERATOR:
            ramps = {name: term.ramp(self.step) for name, term in self.model.terms.items()}
            loss, parts, made = model(GENERATOR, ramps=ramps, **self.inputs(batch))
            self._made.append(made)
            return loss, parts
        # Every loss takes the micro-batches in the same order.
        made = self._made.pop(0)
        self._made.append(made)
        return model(name, made=made, images=batch["images"])

    def inputs(self, batch: Batch) -> Batch:
        """The keyword arguments of `Objective.generator` for a batch. Here they are the batch itself."""
        return batch

    def update(self, step: int) -> dict[str, torch.Tensor]:
        for term in self.model.terms.values():
            term.update()
        return super().update(step)

    def discard(self) -> None:
        for term in self.model.terms.values():
            term.discard()
        super().discard()

    @property
    def measured(self) -> list[str]:
        """The names of the terms that are figures of the validation split."""
        return [name for name, term in self.model.terms.items() if term.measured]

    @property
    def figure_names(self) -> list[str]:
        return [*super().figure_names, *self.measured]

    def sums(self, parameters: torch.Tensor, images: torch.Tensor, pixels: torch.Tensor) -> dict[str, float]:
        found = super().sums(parameters, images, pixels)
        made = self.vqvae.likelihood.mean(parameters)
        return found | {name: self.model.terms[name](made, images).item() * len(images) for name in self.measured}

    def validate(self) -> dict[str, float]:
        """The figures of `VQVAETask.validate`, each measured term, and `objective`: distortion and weighted terms."""
        found = super().validate()
        weighted = (self.model.terms[name].weight * found[name] for name in self.measured)
        return found | {TOTAL: found["distortion"] + sum(weighted)}


class DecoderTask(SharpTask):
    """Trains a copy of a VQ-VAE's decoder on. The encoder and the codebooks stay as they are, and so do all codes."""

    section = "refine_decoder.training"
    shown = "distortion"

    def __init__(
        self,
        model: Objective,
        train: ImageSplit,
        validation: ImageSplit,
        params: TrainingParams,
        augmentation: AugmentationParams,
    ) -> None:
        super().__init__(model, train, validation, params, augmentation)
        self.re_estimated, trained = frozenset(), decoder_parameters(model.vqvae)
        for name, parameter in model.vqvae.named_parameters():
            parameter.requires_grad_(name in trained)

    def initialise(self) -> None:
        """Nothing: the decoder and the codebooks are those of the VQ-VAE."""

    def re_estimate(self) -> None:
        """Nothing: no codebook depends on the decoder."""

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Batch:
        """The images, and z_q of the encoder's codes, which `extract_codes.refine` does not change."""
        model, training = self.vqvae, self.vqvae.training
        model.eval()
        with torch.autocast(self.device.type, enabled=False):  # extraction encodes in float32
            codes = model.encode(to_float(batch["images"]))
            quantized = [planes(model.quantizer_of(level).lookup(grid)) for level, grid in enumerate(codes)]
        model.train(training)
        return {"images": batch["images"], "quantized": quantized}

    def update(self, step: int) -> dict[str, torch.Tensor]:
        for term in self.model.terms.values():
            term.update()
        return {}

    def discard(self) -> None:
        for term in self.model.terms.values():
            term.discard()

    def validate(self) -> dict[str, float]:
        """`distortion`, `nmse`, each measured term, and `objective`. Figures of codes are those of the VQ-VAE."""
        found = super().validate()
        return {name: found[name] for name in (*self.figure_names, TOTAL)}


def decoder_copy(source: VQVAE, added_blocks: int, further: dict[str, Any] | None = None) -> VQVAE:
    """A copy of a VQ-VAE, whose decoder has added blocks with new weights. It decodes as the source does.

    Args:
        added_blocks: their number at each resolution. The network must be one that can have them (`grows`), or 0.
        further: what its configuration has besides that of the source.
    """
    config, network = {**source.config, **(further or {})}, source.config["network"]
    if added_blocks:
        config["network"] = network | {network["name"]: network[network["name"]] | {"added_blocks": added_blocks}}
    model = VQVAE(config)
    model.load_state_dict(model.state_dict() | source.state_dict())
    return model.to(next(source.parameters()).device)


def decoder_parameters(model: VQVAE) -> frozenset[str]:
    """The names of the network's parameters on which the decoder's output depends and z does not.

    They are names of `model.named_parameters()`. Parameters of quantizers and of the likelihood are not among them.

    Raises:
        ValueError: there is no such parameter, so that no decoder can be trained alone.
    """
    images = torch.zeros(1, *model.layout.image_shape, device=next(model.parameters()).device)
    training, named = model.training, dict(model.network.named_parameters(prefix="network"))
    model.eval()
    with torch.enable_grad():
        encoded = model.vectors(range(len(model.layout.levels)), images).sum()
        codes = [planes(output.z_q).detach() for output in model.quantize(images)]
        decoded = model.network.decode(model.network.decoder_inputs(codes)).sum()
        uses = [torch.autograd.grad(v, list(named.values()), allow_unused=True) for v in (encoded, decoded)]
    model.train(training)
    found = (name for name, before, after in zip(named, *uses, strict=True) if before is None and after is not None)
    if not (trained := frozenset(found)):
        raise ValueError("the network has no parameters that decoding alone uses")
    return trained
