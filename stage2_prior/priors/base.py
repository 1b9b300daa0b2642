"""The base class of every prior: a distribution over the codes of an image, given its label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stage2_prior.priors.drawing import Part, Sampler
from stage2_prior.priors.heads import LevelHeads
from tessera.codes.layout import CodeLayout
from tessera.errors import UserError

LONGEST_NAME = 1000  # characters of a class's name
MEASURED_LOGITS = 2**28  # logits per call of `nll`: 1 GB in float32, and a few GB at the peak


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token in nats, (B, n), from logits (B, n, V) and int64 tokens (B, n)."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def _require_names(names: Sequence[Any]) -> None:
    """Refuses names of classes that are no text of a bounded length. A configuration from the Hub may hold anything."""
    for number, name in enumerate(names):
        expected = f"class_names: class {number}: expected text of at most {LONGEST_NAME:,} characters"
        if not isinstance(name, str):
            raise UserError(f"{expected}, got {type(name).__name__}")
        if len(name) > LONGEST_NAME:
            raise UserError(f"{expected}, got {len(name):,} characters")
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{expected}, got half of a surrogate pair, which no file can hold")


class Recomputable(nn.Module):
    """A module with gradient checkpointing. It is off until `recompute_in_backward` is called."""

    def recompute_in_backward(self) -> None:
        """Switches gradient checkpointing on. Results and the names of the weights stay the same."""
        self.forward = partial(checkpoint, self.forward, use_reentrant=False)


class Prior(nn.Module):
    """p(codes | label). A prior may cover only the finer levels; it is then also conditioned on the coarser levels.

    Every method takes whole token sequences (B, N) of the layout, the coarser levels included. The prior's own tokens
    are those whose distribution it models: the last n of the N. Values per token are returned for own tokens only.

    Attributes:
        layout: the code grids, `num_classes`: the number of classes (0: no labels), `first`: the first own level.
        given_tokens: number of tokens of the levels before `first`.
        name, params, null_label, class_names, class_images: see `describe`.
        resolved_params: arguments that the constructor worked out itself. They replace those that it was given when a
            published prior is built again.
    """

    trained = True  # False: the prior learns by `fit` alone, without gradients
    uses_labels = True  # False: labels change no probability
    exact = True  # False: `nll` estimates an upper bound of -log p
    noise = 0  # number of uniform random numbers per image that `forward` takes
    paced = False  # True: `forward` takes the progress of training
    null_label = True
    class_names: tuple[str, ...] | None = None
    class_images: tuple[int, ...] | None = None
    name: str
    params: dict[str, Any]

    def __init__(self, layout: CodeLayout, num_classes: int, first: int) -> None:
        super().__init__()
        self.layout, self.num_classes, self.first = layout, num_classes, first
        self.resolved_params: dict[str, Any] = {}
        self.given_tokens = layout.slices()[first].start

    def describe(
        self,
        name: str,
        params: dict[str, Any],
        null_label: bool = True,
        class_names: Sequence[str] | None = None,
        class_images: Sequence[int] | None = None,
    ) -> None:
        """Records what the prior was built from, so that it can be published and built again.

        Args:
            name: the option's name.
            params: its arguments, as JSON values.
            null_label: False if training never showed the null label: probabilities that are given it mean nothing.
            class_names: (num_classes,), or None if they are not known.
            class_images: the number of training images of each class, (num_classes,), or None if it is not known. The
                prior has learned nothing of a class without images.

        Raises:
            ValueError: there are not as many names or numbers as classes; a name is no text, or has more than
                `LONGEST_NAME` characters; or a number of images is not a whole number, or all are 0.
        """
        _require_names(class_names or ())
        if not all(isinstance(count, int) and count >= 0 for count in class_images or ()):
            raise UserError("class_images: expected whole numbers, 0 or more")
        if class_images and not any(class_images):
            raise UserError("class_images: no class has an image")
        self.name, self.params, self.null_label = name, {**params, **self.resolved_params}, null_label
        self.class_names = None if class_names is None else tuple(class_names)
        self.class_images = None if class_images is None else tuple(class_images)
        for values in (self.class_names, self.class_images):
            if values is not None and len(values) != self.num_classes:
                raise ValueError(f"{len(values)} names or numbers of images for {self.num_classes} classes")

    @property
    def own_tokens(self) -> int:
        """n: the number of tokens whose distribution this prior is."""
        return self.layout.num_tokens - self.given_tokens

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Learns what is learned without gradients. Most priors learn nothing here and read no batch.

        Args:
            batches: int64 tokens (B, N), each below its codebook's size, and int64 labels (B,) or None. A prior
                that learns here iterates over them once. A chain does so once for each of its priors that learns here,
                so it needs an iterable that can begin again.
        """

    def fill_labels(self, labels: Tensor | None, tokens: Tensor) -> Tensor:
        """The labels as they are, int64 (B,); for None the null label (= num_classes) for each row of `tokens`."""
        return tokens.new_full((len(tokens),), self.num_classes) if labels is None else labels

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """-log p of each own token in nats, (B, n). If `exact` is False, an estimate of an upper bound.

        Args:
            tokens: int64 (B, N).
            labels: int64 (B,); None: the null label.
        """
        raise NotImplementedError

    def estimate(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> tuple[Tensor, Tensor]:
        """Like `nll`, with the variance of its error.

        Args:
            again: the number of the estimate. Different numbers give independent estimates; `nll` gives number 0.

        Returns:
            nats per token, (B, n), and the variance of each image's sum of nats, (B,), which is 0 if `nll` is exact.
        """
        nats = self.nll(tokens, labels)
        return nats, nats.new_zeros(len(nats))

    def measured_at_once(self, batch_size: int) -> int:
        """Number of sequences per call of `nll`: `batch_size`, or fewer, so that a call has at most `MEASURED_LOGITS`
        logits; at least 1."""
        return max(1, min(int(batch_size), MEASURED_LOGITS // (self.layout.num_tokens * self.layout.vocabulary)))

    def forward(
        self, tokens: Tensor, labels: Tensor | None, noise: Tensor | None = None, progress: Tensor | None = None
    ) -> Tensor:
        """The training loss: mean nats per token, a scalar.

        Args:
            noise: random numbers (B, self.noise) in [0, 1), for a prior that takes any.
            progress: (B,), the share of the learning rate's schedule that is done, for a prior that is `paced`.
        """
        return self.nll(tokens, labels).mean()

    def decode(self, sampler: Sampler, labels: Tensor, coarser: Tensor, forced: Tensor, part: Part) -> Tensor:
        """Draws the tokens of the prior's own levels.

        Args:
            sampler: settings and random numbers.
            labels: int64 (B,); the null label is num_classes.
            coarser: int64 (B, given_tokens), the tokens of the levels before the own ones, which are known.
            forced: int64 (B, N), N tokens of all levels up to the last own one. An own token of at least 0 is kept as
                it is; where it is -1, the prior draws one. The first `given_tokens` are not read: `coarser` has them.
            part: the part of the image's codes that this prior draws.

        Returns:
            int64 tokens (B, N): `coarser`, and then the own ones.

        Raises:
            UserError: logits were NaN or infinite.
        """
        raise NotImplementedError

    def token_uniforms(self, sampler: Sampler) -> Tensor:
        """The random numbers that choose the prior's n own tokens, float64 (B, n), uniform in [0, 1).

        An image's numbers depend on the sampler's seed, the image's index in the run, and the first own level.
        """
        # Links of a chain are told apart by their first level. A prior over all levels has the stream without a number.
        return sampler.uniforms(self.own_tokens, *([self.first] if self.first else []))

    def decoding_bytes(self, device: torch.device, bytes_per_logit: int) -> int:
        """Bytes of memory that decoding takes for each further sequence of a batch.

        Args:
            device: where the prior is. It is passed in because a prior without weights has no device of its own.
            bytes_per_logit: what the sampler needs for each logit of a token while it chooses.
        """
        raise NotImplementedError

    def lowered(self, dtype: torch.dtype) -> Prior:
        """A copy for decoding, whose weights have a lower precision.

        The last layers keep theirs, so that logits stay float32. The copy's `nll` is not that of this prior: bf16
        keeps 8 significant bits.
        """
        copy = deepcopy(self)
        heads = {id(p) for module in copy.modules() if isinstance(module, LevelHeads) for p in module.parameters()}
        for tensor in copy.parameters():
            if id(tensor) not in heads:
                tensor.data = tensor.data.to(dtype)
        return copy.requires_grad_(False)

    def chained(self) -> list[Prior]:
        """The priors of a chain, coarsest level first, which are trained independently. Other priors have none."""
        return []

    def blocks(self) -> Iterable[Recomputable]:
        """The modules that gradient checkpointing computes again, one after another."""
        return ()

    def checkpoint_gradients(self) -> None:
        """Switches gradient checkpointing on: less memory in training, for one more forward pass.

        Raises:
            UserError: the prior cannot do it.
        """
        blocks = list(self.blocks())
        if not blocks:
            raise UserError(
                f"stage2_prior.training.gradient_checkpointing: the prior {self.name} has no blocks to compute again; "
                "set it to false"
            )
        for block in blocks:
            block.recompute_in_backward()
