"""Decodes any causal model of `transformers`, with our own fast decoder where there is one that gives the same results.

Our decoders restate the library's layers by the names of their attributes, so another release of the library may make
them wrong. Before a model is decoded for the first time, a few tokens are compared with the library's forward pass. If
they differ, the library decodes.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from stage2_prior.priors.decoding import gpt2, llama
from stage2_prior.priors.decoding.engine import Decoder
from stage2_prior.priors.decoding.products import FEW

ARCHITECTURES = {"gpt2": gpt2, "llama": llama}
PROBE_TOKENS = 4  # two are decoded at once, then one after another
PROBE_SCALE = 0.1  # of the probe's inputs: small, so that what the layers add to them is no small part of the result
# The largest difference that rounding may make, in standard deviations of the hidden states. Wrong layers make about 1.
TOLERANCES = {torch.bfloat16: 0.3, torch.float16: 0.05}
TOLERANCE = 0.01


class LibraryDecoder:
    """Decodes with the library's own growing cache: for every architecture, and slower than `Decoder`."""

    def __init__(self, model: nn.Module) -> None:
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache(config=model.config)

    def extend(self, x: Tensor) -> Tensor:
        """Hidden states of the next n positions from their embeddings: (B, n, width) -> (B, n, width)."""
        return self.model(inputs_embeds=x, past_key_values=self.cache, use_cache=True).last_hidden_state


class ModelDecoding:
    """Makes decoders for one model, and remembers whether our own decoder may be trusted with it.

    Args:
        model: a causal model of `transformers`, without a head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trusted: dict[tuple[torch.dtype, str, int], bool] = {}  # by dtype, kind of device and size of the batch

    @property
    def restated(self) -> bool:
        """Whether there is a decoder of ours for a model of this configuration."""
        config = self.model.config
        return config.model_type in ARCHITECTURES and ARCHITECTURES[config.model_type].knows(config)

    def decoder(self, batch: int, length: int) -> Decoder | LibraryDecoder:
        """A decoder for `batch` sequences of `length` tokens: ours if there is one that can be trusted."""
        if not self.restated:
            return LibraryDecoder(self.model)
        weight = next(self.model.parameters())
        # Few sequences are decoded by other operations than many, so that both are tried.
        rows = min(batch, 4 * FEW + 1)
        key = (weight.dtype, weight.device.type, rows)
        if key not in self.trusted:
            fault = self._fault(rows, length)
            if fault:
                print(
                    f"{self.model.config.model_type} is decoded by transformers, which is slower, since our decoder "
                    f"does not fit the installed version: {fault}",
                    file=sys.stderr,
                )
            self.trusted[key] = fault is None
        return self._own(batch, length) if self.trusted[key] else LibraryDecoder(self.model)

    def _own(self, batch: int, length: int) -> Decoder:
        return ARCHITECTURES[self.model.config.model_type].decoder(self.model, batch, length)

    @torch.no_grad()
    def _fault(self, rows: int, length: int) -> str | None:
        """Why our decoder cannot be trusted with this model, or None if it agrees with the library on a few tokens."""
        weight, count = next(self.model.parameters()), min(PROBE_TOKENS, length)
        random = torch.Generator().manual_seed(0)
        inputs = PROBE_SCALE * torch.randn(rows, count, self.model.config.hidden_size, generator=random)
        inputs = inputs.to(weight)
        training = self.model.training
        expected = self.model.eval()(inputs_embeds=inputs, use_cache=False).last_hidden_state.float()
        self.model.train(training)
        try:
            decoder, first = self._own(rows, length), min(2, count)
            parts = [decoder.extend(inputs[:, :first])]
            parts += [decoder.extend(inputs[:, i : i + 1]) for i in range(first, count)]
            error = (torch.cat(parts, 1).float() - expected).abs().max() / expected.std()
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError) as exception:
            return f"{type(exception).__name__}: {' '.join(str(exception).split())[:200]}"
        if not error <= TOLERANCES.get(weight.dtype, TOLERANCE) and expected.isfinite().all():
            return f"hidden states differ by {error:.2g} standard deviations"
        return None
