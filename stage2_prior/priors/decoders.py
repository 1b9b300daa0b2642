"""Token-by-token decoding of the two architectures that are used most, on `transformers`' own weights.

The library's caches grow or are masked whole, and its layers are written for every case. Here keys and values have
their place from the start, and the products of a layer that share an input are one. The hidden states are those of the
library's forward pass, within rounding (a test); another architecture, or a configuration with a feature that is not
here, goes through the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[
    [Tensor], Tensor
]  # queries, keys and values (B·n, 3 width) of a layer to what was found, (B·n, width)


class Decoder:
    """The layers of a model, and the keys and values of a batch of sequences.

    Args:
        layers: functions of x (B·n, width) and an `Attend`.
        finish: the last norm.
        shape: (B, heads, N, width of a head), of one layer's keys.
        like: a weight: its dtype and device are theirs.
        turns: rotary embeddings' cosines and sines, each (N, width of a head); None without.
        places: embeddings of positions (N, width), added at the entry; None without.
    """

    def __init__(
        self,
        layers: list[Callable[[Tensor, Attend], Tensor]],
        finish: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int, int],
        like: Tensor,
        turns: tuple[Tensor, Tensor] | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.layers, self.finish, self.turns, self.places, self.length = layers, finish, turns, places, 0
        self.kept = [like.new_empty(2, *shape) for _ in layers]

    def extend(self, x: Tensor) -> Tensor:
        """The next n embeddings (B, n, width) to hidden states (B, n, width); n above 1 at the start only."""
        batch, n, _ = x.shape
        new, past = slice(self.length, self.length + n), slice(0, self.length + n)
        heads = self.kept[0].shape[2]

        def attend(qkv: Tensor, kept: Tensor) -> Tensor:
            q, k, v = qkv.view(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
            if self.turns is not None:
                q, k = self._turn(qkv.view(batch, n, 3, heads, -1)[:, :, :2].permute(2, 0, 3, 1, 4), new)
            kept[0][:, :, new], kept[1][:, :, new] = k, v
            found = F.scaled_dot_product_attention(q, kept[0][:, :, past], kept[1][:, :, past], is_causal=n > 1)
            return found.transpose(1, 2).reshape(batch * n, -1)

        if self.places is not None:
            x = x + self.places[new]
        x = x.flatten(0, 1)
        for layer, kept in zip(self.layers, self.kept, strict=True):
            x = layer(x, lambda qkv, kept=kept: attend(qkv, kept))
        self.length += n
        return self.finish(x).unflatten(0, (batch, n))

    def _turn(self, x: Tensor, new: slice) -> Tensor:
        """Rotary embeddings of queries and keys (2, B, heads, n, width of a head)."""
        cosines, sines = (part[new] for part in self.turns)
        first, second = x.chunk(2, -1)
        return x * cosines + torch.cat([-second, first], -1) * sines


def _gpt2(model: nn.Module, batch: int, length: int) -> Decoder | None:
    config = model.config
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    if not plain or config.add_cross_attention:
        return None

    def layer(block: nn.Module) -> Callable[[Tensor, Attend], Tensor]:
        attention, mlp = block.attn, block.mlp

        def run(x: Tensor, attend: Attend) -> Tensor:
            x = x + attention.c_proj(attend(attention.c_attn(block.ln_1(x))))
            return x + mlp.c_proj(mlp.act(mlp.c_fc(block.ln_2(x))))

        return run

    shape = (batch, config.n_head, length, config.n_embd // config.n_head)
    places = model.wpe.weight
    return Decoder([layer(block) for block in model.h], model.ln_f, shape, places, places=places)


def _llama(model: nn.Module, batch: int, length: int) -> Decoder | None:
    config = model.config
    if config.num_key_value_heads != config.num_attention_heads:
        return None

    def norm(module: nn.Module, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)

    def fused(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
        biases = [part.bias for part in parts]
        return torch.cat([p.weight for p in parts]), None if biases[0] is None else torch.cat(biases)

    def layer(block: nn.Module) -> Callable[[Tensor, Attend], Tensor]:
        attention, mlp = block.self_attn, block.mlp
        into_attention = fused(attention.q_proj, attention.k_proj, attention.v_proj)
        into_mlp = fused(mlp.gate_proj, mlp.up_proj)

        def run(x: Tensor, attend: Attend) -> Tensor:
            x = x + attention.o_proj(attend(F.linear(norm(block.input_layernorm, x), *into_attention)))
            gate, up = F.linear(norm(block.post_attention_layernorm, x), *into_mlp).chunk(2, -1)
            return x + mlp.down_proj(mlp.act_fn(gate) * up)

        return run

    weight = model.norm.weight
    turns = model.rotary_emb(weight, torch.arange(length, device=weight.device)[None])
    layers = [layer(block) for block in model.layers]
    shape = (batch, config.num_attention_heads, length, attention_width(config))
    return Decoder(layers, lambda x: norm(model.norm, x), shape, weight, turns=tuple(part[0] for part in turns))


def attention_width(config: Any) -> int:
    """Width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


BUILDERS: dict[str, Callable[[nn.Module, int, int], Decoder | None]] = {"gpt2": _gpt2, "llama": _llama}


def decoder(model: nn.Module, batch: int, length: int) -> Decoder | None:
    """An empty decoder for `batch` sequences of `length`, or None where there is none for the model."""
    build = BUILDERS.get(model.config.model_type)
    return build(model, batch, length) if build else None
