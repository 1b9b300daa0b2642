"""Llama of `transformers`, restated for the decoder, on the library's own weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.decoding.engine import Decoder, Layer, Norm, decoding_dtype, plain_layer
from stage2_prior.priors.decoding.products import Product


def knows(config: Any) -> bool:
    """Whether a configuration of Llama has only features that are restated here: every configuration has."""
    return True


def decoder(model: nn.Module, batch: int, length: int) -> Decoder:
    """A decoder for `batch` sequences of `length` tokens.

    Raises:
        AttributeError: the library has renamed a part of the model.
    """
    config, dtype = model.config, decoding_dtype(model, batch)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def product(*parts: nn.Linear) -> Product:
        """One product in place of several layers with the same input."""
        biases = [part.bias for part in parts]
        bias = None if biases[0] is None else torch.cat(biases)
        return Product(torch.cat([part.weight for part in parts]), bias, batch, dtype=dtype)

    def layer(block: nn.Module) -> Layer:
        attention, mlp = block.self_attn, block.mlp

        def gate(both: Tensor) -> Tensor:
            gates, values = both.chunk(2, -1)
            return mlp.act_fn(gates) * values

        queries, keys = _interleaved(attention.q_proj, width), _interleaved(attention.k_proj, width)
        return plain_layer(
            (_rms_norm(block.input_layernorm, dtype), _rms_norm(block.post_attention_layernorm, dtype)),
            (product(queries, keys, attention.v_proj), product(attention.o_proj)),
            (product(mlp.gate_proj, mlp.up_proj), product(mlp.down_proj)),
            gate,
        )

    like = model.norm.weight.detach().to(dtype)
    # The library rounds the angles to the dtype of its argument, so this is at least fp32.
    wide = like.to(torch.promote_types(dtype, torch.float32))
    cosines, sines = (
        part[0, :, : width // 2] for part in model.rotary_emb(wide, torch.arange(length, device=like.device)[None])
    )
    layers = [layer(block) for block in model.layers]
    shape = (batch, config.num_key_value_heads, length, width)
    return Decoder(layers, _rms_norm(model.norm, dtype), shape, like, turns=torch.complex(cosines, sines))


def _rms_norm(module: nn.Module, dtype: torch.dtype) -> Norm:
    """The function x / √(mean x² + ε) · w of a norm, in a dtype."""
    weight, eps = module.weight.detach().to(dtype), module.variance_epsilon
    if weight.device.type != "cpu":
        return lambda x: F.rms_norm(x, x.shape[-1:], weight, eps)
    # On a CPU `F.rms_norm` is many small operations. √(n · mean x² + n · ε) is a hypotenuse: of |x| and √(n · ε).
    wide, size = torch.promote_types(dtype, torch.float32), len(weight)
    weight = weight.to(wide) * size**0.5
    least = weight.new_tensor((size * eps) ** 0.5)

    def run(x: Tensor) -> Tensor:
        y = x if dtype == wide else x.to(wide)
        y = y / torch.hypot(torch.linalg.vector_norm(y, dim=-1, keepdim=True), least) * weight
        return y if dtype == wide else y.to(dtype)

    return run


def _interleaved(part: nn.Linear, width: int) -> nn.Linear:
    """A copy of a layer whose outputs are ordered anew: the first output of each half of a head, then the second, ...

    Rotary embeddings then turn complex numbers. Queries and keys are ordered alike, so that their products stay.

    Args:
        width: of a head.
    """
    part = deepcopy(part)
    for tensor in part.parameters():
        tensor.data = tensor.data.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)
    return part
