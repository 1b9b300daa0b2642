"""Token-by-token decoding of causal transformers: our own blocks, and the two architectures that are used most, on
`transformers`' own weights.

The library's caches grow or are masked whole, and its layers are written for every case. Here a layer is few
operations, and its products are laid out for the machine. The hidden states are those of the forward pass, within
rounding (a test); another architecture, or a configuration with a feature that is not here, goes through the library.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.products import KVCache, Product

# A single row may come without its dimension, here and below.
Attend = Callable[
    [Tensor], Tensor
]  # a layer's queries, keys and values (B·n, all heads) to what was found, (B·n, width)
Layer = Callable[[Tensor, Attend], Tensor]  # x (B·n, width) -> (B·n, width)
Model = TypeVar("Model", bound=nn.Module)
CACHED = 2**24  # weights: 64 MB in fp32, which the caches of a server's processor hold


class Decoder:
    """The layers of a model, and the keys and values of a batch of sequences.

    Args:
        layers: what each does to x (B·n, width), given its attention.
        finish: the last norm.
        shape: (B, heads, N, width of a head), of one layer's keys.
        like: a weight, of the dtype and device of x.
        turns: rotary embeddings' cosines and sines, each (N, width of a head); None without.
        places: embeddings of positions (N, width), added at the entry; None without.
    """

    def __init__(
        self,
        layers: list[Layer],
        finish: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int, int],
        like: Tensor,
        turns: tuple[Tensor, Tensor] | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.finish, self.places, self.length, self.turns = finish, places, 0, None
        self.dtype = like.dtype
        # One row of plain products goes without its dimension, by fewer operations.
        self.vector = shape[0] == 1 and like.device.type == "cpu" and like.dtype.itemsize >= 4
        self.layers = [(layer, KVCache(shape, like)) for layer in layers]
        if turns is not None:
            cosines, sines = turns
            half = sines.shape[-1] // 2
            self.turns = (cosines, torch.cat([-sines[:, :half], sines[:, half:]], -1))

    def extend(self, x: Tensor) -> Tensor:
        """The next n embeddings (B, n, width) to hidden states (B, n, width), of the weights' dtype; n above 1 at the
        start only."""
        batch, n, _ = x.shape
        new = slice(self.length, self.length + n)

        def attend(qkv: Tensor, cache: KVCache) -> Tensor:
            rows, heads = qkv.shape[:-1], cache.shape[1]  # of keys, and of values
            qkv = qkv.view(batch, n, -1, cache.width).transpose(1, 2)
            qk, v = qkv[:, :-heads], qkv[:, -heads:]
            if self.turns is not None:
                qk = self._turn(qk, new)
            q, k = qk[:, :-heads], qk[:, -heads:]
            cache.extend(k, v)
            if n == 1:
                return cache.ask(q).view(*rows, -1)
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] > heads)
            return found.transpose(1, 2).reshape(*rows, -1)

        x = x.to(self.dtype)
        if self.places is not None:
            x = x + self.places[new]
        x = x[0, 0] if self.vector and n == 1 else x.flatten(0, 1)
        for layer, cache in self.layers:
            x = layer(x, lambda qkv, cache=cache: attend(qkv, cache))
        self.length += n
        return self.finish(x).view(batch, n, -1)

    def restart(self) -> None:
        """Begin other sequences with the same layers."""
        self.length = 0
        for _, cache in self.layers:
            cache.length = 0

    def _turn(self, x: Tensor, new: slice) -> Tensor:
        """Rotary embeddings of queries and keys (B, heads of both, n, width of a head)."""
        cosines, sines = (part[new] for part in self.turns)
        return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)


def plain_layer(
    norms: tuple[nn.Module, nn.Module],
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


def _gpt2(model: nn.Module, batch: int, length: int) -> Decoder:
    config = model.config
    gelu = "tanh" if config.activation_function == "gelu_new" else None

    def product(part: nn.Module, gelu: str | None = None) -> Product:
        return Product(part.weight.mT, part.bias, batch, gelu)  # (in, out) there

    def layer(block: nn.Module) -> Layer:
        attention = product(block.attn.c_attn), product(block.attn.c_proj)
        mlp = product(block.mlp.c_fc, gelu), product(block.mlp.c_proj)
        act = {} if gelu else {"act": block.mlp.act}
        return plain_layer((block.ln_1, block.ln_2), attention, mlp, **act)

    shape = (batch, config.n_head, length, config.n_embd // config.n_head)
    places = model.wpe.weight
    return Decoder([layer(block) for block in model.h], model.ln_f, shape, places, places=places)


def _llama(model: nn.Module, batch: int, length: int) -> Decoder:
    config = model.config

    def norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
        """x / √(mean x² + ε) · w. On a CPU by the norm of x: of `F.rms_norm`'s many operations a few."""
        if module.weight.device.type != "cpu":
            return lambda x: F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)
        dtype, width = torch.promote_types(module.weight.dtype, torch.float32), module.weight.shape[0]
        weight = module.weight.to(dtype) * width**0.5
        least = weight.new_tensor((width * module.variance_epsilon) ** 0.5)

        def run(x: Tensor) -> Tensor:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
            return (x / torch.hypot(length, least) * weight).to(x.dtype)

        return run

    def product(*parts: nn.Linear) -> Product:
        """Of layers that share an input, one."""
        biases = [part.bias for part in parts]
        return Product(
            torch.cat([part.weight for part in parts]), None if biases[0] is None else torch.cat(biases), batch
        )

    def layer(block: nn.Module) -> Layer:
        attention, mlp = block.self_attn, block.mlp

        def gate(both: Tensor) -> Tensor:
            gates, values = both.chunk(2, -1)
            return mlp.act_fn(gates) * values

        return plain_layer(
            (norm(block.input_layernorm), norm(block.post_attention_layernorm)),
            (product(attention.q_proj, attention.k_proj, attention.v_proj), product(attention.o_proj)),
            (product(mlp.gate_proj, mlp.up_proj), product(mlp.down_proj)),
            gate,
        )

    weight = model.norm.weight
    turns = model.rotary_emb(weight, torch.arange(length, device=weight.device)[None])
    layers = [layer(block) for block in model.layers]
    shape = (batch, config.num_key_value_heads, length, head_width(config))
    return Decoder(layers, norm(model.norm), shape, weight, turns=tuple(part[0] for part in turns))


def head_width(config: Any) -> int:
    """Width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def widened(model: Model, batch: int) -> Model:
    """What to decode with: for a single sequence in bf16 on a CPU, a copy in fp32, else the model itself.

    A matrix times a vector is bound by reading the matrix, and no kernel reads bf16 as fast as fp32 while caches hold
    it. The weights are the rounded ones still.
    """
    weight, size = next(model.parameters()), sum(p.numel() for p in model.parameters())
    narrow = weight.device.type == "cpu" and weight.dtype.itemsize < 4
    return deepcopy(model).float() if batch == 1 and narrow and size <= CACHED else model


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
    return BUILDERS[model.config.model_type](widened(model, batch), batch, length)
