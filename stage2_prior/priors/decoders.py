"""Token-by-token decoding of causal transformers: our own blocks, and the two architectures that are used most, on
`transformers`' own weights.

The library's caches grow or are masked whole, and its layers are written for every case. Here a layer is few
operations, and its products are laid out for the machine. The hidden states are those of the forward pass, within
rounding (a test); another architecture, or a configuration with a feature that is not here, goes through the library.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.products import FEW, KVCache, Product

# A single row may come without its dimension, here and below.
Attend = Callable[
    [Tensor], Tensor
]  # a layer's queries, keys and values (B·n, all heads) to what was found, (B·n, width)
Layer = Callable[[Tensor, Attend], Tensor]  # x (B·n, width) -> (B·n, width)
Norm = Callable[[Tensor], Tensor]
CACHED = 2**24  # weights: 64 MB in fp32, which the caches of a server's processor hold


class Decoder:
    """The layers of a model, and the keys and values of a batch of sequences.

    Args:
        layers: what each does to x (B·n, width), given its attention.
        finish: the last norm.
        shape: (B, heads, N, width of a head), of one layer's keys.
        like: of the dtype and device of x.
        turns: rotary embeddings, complex (N, width of a head / 2); None without.
        places: embeddings of positions (N, width), added at the entry; None without.
    """

    def __init__(
        self,
        layers: list[Layer],
        finish: Norm,
        shape: tuple[int, int, int, int],
        like: Tensor,
        turns: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.layers, self.finish, self.turns, self.places = layers, finish, turns, places
        self.heads, self.width, self.dtype = shape[1], shape[3], like.dtype
        # One row of plain products goes without its dimension, by fewer operations.
        self.vector = shape[0] == 1 and like.device.type == "cpu" and like.dtype.itemsize >= 4
        self.cache = KVCache(len(layers), shape, like)

    def extend(self, x: Tensor) -> Tensor:
        """The next n embeddings (B, n, width) to hidden states (B, n, width), of the weights' dtype; n above 1 at the
        start only."""
        batch, n, _ = x.shape
        new = slice(self.cache.length, self.cache.length + n)
        turns = None if self.turns is None else self.turns[new]
        self.cache.open(n)

        def attend(qkv: Tensor, layer: int) -> Tensor:
            rows = qkv.shape[:-1]
            qkv = qkv.view(batch, -1, 1, self.width) if n == 1 else qkv.view(batch, n, -1, self.width).transpose(1, 2)
            heads = self.heads  # of keys, and of values; `split` is `split_with_sizes`, after a detour in Python
            asking = qkv.shape[1] - 2 * heads
            if turns is None:
                q, k, v = qkv.split_with_sizes((asking, heads, heads), 1)
            else:
                qk, v = qkv.split_with_sizes((asking + heads, heads), 1)
                q, k = _turn(qk, turns).split_with_sizes((asking, heads), 1)
            self.cache.put(layer, k, v)
            if n == 1:
                return self.cache.ask(layer, q).view(*rows, -1)
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=asking > heads)
            return found.transpose(1, 2).reshape(*rows, -1)

        x = x.to(self.dtype)
        if self.places is not None:
            x = x + self.places[new]
        x = x[0, 0] if self.vector and n == 1 else x.flatten(0, 1)
        for i, layer in enumerate(self.layers):
            x = layer(x, lambda qkv, i=i: attend(qkv, i))
        return self.finish(x).view(batch, n, -1)

    def restart(self) -> None:
        """Begin other sequences with the same layers."""
        self.cache.restart()


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary embeddings of queries and keys (B, heads of both, n, width of a head), whose halves are interleaved."""
    dtype, wide = x.dtype, turns.real.dtype
    if dtype == wide:
        return (x.view(turns.dtype) * turns).view(dtype)
    return (x.to(wide).view(turns.dtype) * turns).view(wide).to(dtype)  # bf16 has no complex numbers


def plain_layer(
    norms: tuple[Norm, Norm],
    attention: tuple[Product, Product],
    mlp: tuple[Product, Product],
    act: Callable[[Tensor], Tensor] = lambda x: x,
) -> Layer:
    """Norm, attention, norm, network, each half added to its input. `act` is what the first product of the network does
    not do itself."""

    def run(x: Tensor, attend: Attend) -> Tensor:
        x = attention[1].onto(attend(attention[0](norms[0](x))), x)
        return mlp[1].onto(act(mlp[0](norms[1](x))), x)

    return run


def layer_norm(module: nn.LayerNorm, dtype: torch.dtype) -> Norm:
    """A module's function, in a precision."""
    weight, bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
    shape, eps = module.normalized_shape, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _gpt2(model: nn.Module, batch: int, length: int) -> Decoder:
    config, dtype = model.config, decoding_dtype(model, batch)
    gelu = "tanh" if config.activation_function == "gelu_new" else None

    def product(part: nn.Module, gelu: str | None = None) -> Product:
        return Product(part.weight.mT, part.bias, batch, gelu, dtype)  # (in, out) there

    def layer(block: nn.Module) -> Layer:
        norms = layer_norm(block.ln_1, dtype), layer_norm(block.ln_2, dtype)
        attention = product(block.attn.c_attn), product(block.attn.c_proj)
        mlp = product(block.mlp.c_fc, gelu), product(block.mlp.c_proj)
        act = {} if gelu else {"act": block.mlp.act}
        return plain_layer(norms, attention, mlp, **act)

    shape = (batch, config.n_head, length, config.n_embd // config.n_head)
    places = model.wpe.weight.detach().to(dtype)
    return Decoder([layer(block) for block in model.h], layer_norm(model.ln_f, dtype), shape, places, places=places)


def _llama(model: nn.Module, batch: int, length: int) -> Decoder:
    config, dtype = model.config, decoding_dtype(model, batch)
    width = head_width(config)

    def norm(module: nn.Module) -> Norm:
        """x / √(mean x² + ε) · w. On a CPU by the norm of x: of `F.rms_norm`'s many operations a few."""
        weight, eps = module.weight.detach().to(dtype), module.variance_epsilon
        if weight.device.type != "cpu":
            return lambda x: F.rms_norm(x, x.shape[-1:], weight, eps)
        wide, size = torch.promote_types(dtype, torch.float32), len(weight)
        weight = weight.to(wide) * size**0.5
        least = weight.new_tensor((size * eps) ** 0.5)

        def run(x: Tensor) -> Tensor:
            y = x if dtype == wide else x.to(wide)
            y = y / torch.hypot(torch.linalg.vector_norm(y, dim=-1, keepdim=True), least) * weight
            return y if dtype == wide else y.to(dtype)

        return run

    def product(*parts: nn.Linear) -> Product:
        """Of layers that share an input, one."""
        biases = [part.bias for part in parts]
        bias = None if biases[0] is None else torch.cat(biases)
        return Product(torch.cat([part.weight for part in parts]), bias, batch, dtype=dtype)

    def interleaved(part: nn.Linear) -> nn.Linear:
        """A layer whose outputs are each head's halves, interleaved: rotary embeddings turn complex numbers then, and
        what products of queries and keys give does not depend on their order."""
        part = deepcopy(part)
        for tensor in part.parameters():
            tensor.data = tensor.data.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)
        return part

    def layer(block: nn.Module) -> Layer:
        attention, mlp = block.self_attn, block.mlp

        def gate(both: Tensor) -> Tensor:
            gates, values = both.chunk(2, -1)
            return mlp.act_fn(gates) * values

        return plain_layer(
            (norm(block.input_layernorm), norm(block.post_attention_layernorm)),
            (
                product(interleaved(attention.q_proj), interleaved(attention.k_proj), attention.v_proj),
                product(attention.o_proj),
            ),
            (product(mlp.gate_proj, mlp.up_proj), product(mlp.down_proj)),
            gate,
        )

    like = model.norm.weight.detach().to(dtype)
    # In at least fp32: angles would be rounded to the precision of what it is given.
    wide = like.to(torch.promote_types(dtype, torch.float32))
    cosines, sines = (
        part[0, :, : width // 2] for part in model.rotary_emb(wide, torch.arange(length, device=like.device)[None])
    )
    layers = [layer(block) for block in model.layers]
    shape = (batch, config.num_key_value_heads, length, width)
    return Decoder(layers, norm(model.norm), shape, like, turns=torch.complex(cosines, sines))


def head_width(config: Any) -> int:
    """Width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def decoding_dtype(model: nn.Module, batch: int) -> torch.dtype:
    """What to decode so many sequences in: for few in bf16 on a CPU fp32, else the weights' own.

    A matrix times few vectors is bound by reading the matrix, and no kernel reads bf16 as fast as fp32 while caches
    hold it. The weights are the rounded ones still.
    """
    weight, size = next(model.parameters()), sum(p.numel() for p in model.parameters())
    narrow = weight.device.type == "cpu" and weight.dtype.itemsize < 4
    return torch.float32 if batch <= FEW and narrow and size <= CACHED else weight.dtype


BUILDERS: dict[str, Callable[[nn.Module, int, int], Decoder]] = {"gpt2": _gpt2, "llama": _llama}


def knows(config: Any) -> bool:
    """Whether there is a decoder for a model of this configuration."""
    if config.model_type == "gpt2":
        plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
        return plain and not config.add_cross_attention
    return config.model_type == "llama"


def decoder(model: nn.Module, batch: int, length: int) -> Decoder | None:
    """An empty decoder for `batch` sequences of `length`, or None where there is none for the model."""
    if not knows(model.config):
        return None
    return BUILDERS[model.config.model_type](model, batch, length)
