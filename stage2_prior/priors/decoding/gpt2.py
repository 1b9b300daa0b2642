"""GPT-2 of `transformers`, restated for the decoder, on the library's own weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from stage2_prior.priors.decoding.engine import Decoder, Layer, decoding_dtype, layer_norm, plain_layer
from stage2_prior.priors.decoding.products import Product


def knows(config: Any) -> bool:
    """Whether a configuration of GPT-2 has only features that are restated here."""
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    return plain and not config.add_cross_attention


def decoder(model: nn.Module, batch: int, length: int) -> Decoder:
    """A decoder for `batch` sequences of `length` tokens.

    Raises:
        AttributeError: the library has renamed a part of the model.
    """
    config, dtype = model.config, decoding_dtype(model, batch)
    gelu = "tanh" if config.activation_function == "gelu_new" else None

    def product(part: nn.Module, gelu: str | None = None) -> Product:
        return Product(part.weight.mT, part.bias, batch, gelu, dtype)  # the library's weight is (inputs, outputs)

    def layer(block: nn.Module) -> Layer:
        norms = layer_norm(block.ln_1, dtype), layer_norm(block.ln_2, dtype)
        attention = product(block.attn.c_attn), product(block.attn.c_proj)
        mlp = product(block.mlp.c_fc, gelu), product(block.mlp.c_proj)
        act = {} if gelu else {"act": block.mlp.act}
        return plain_layer(norms, attention, mlp, **act)

    shape = (batch, config.n_head, length, config.n_embd // config.n_head)
    places = model.wpe.weight.detach().to(dtype)
    return Decoder([layer(block) for block in model.h], layer_norm(model.ln_f, dtype), shape, places, places=places)
