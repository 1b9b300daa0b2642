"""A causal language model of `transformers` as a plain function from embeddings to hidden states.

`transformers` is imported inside functions: a user of the other priors never waits for it, nor suffers from a broken
installation of it.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

import torch
from torch import Tensor, nn

from stage2_prior.priors.decoders import decoder, knows
from tessera.errors import UserError

PATH = "transformer"  # of a chain too, so from here on
PROBE_LENGTH = 12  # tokens; enough for a convolution's or a chunk's look ahead to show


def _check_architecture(architecture: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    names = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING_NAMES) & set(MODEL_MAPPING_NAMES))
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=3, cutoff=0.4) or ["gpt2", "llama"]
        raise UserError(
            f"{PATH}.architecture: {architecture!r} is not a causal language model of the installed transformers; "
            f"nearest: {', '.join(close)}"
        )


def _scaled(known: dict[str, Any], width: int) -> dict[str, int]:
    """Inner widths in the architecture's own proportion to its width, in multiples of 8."""
    names = [n for n in known if n.endswith("intermediate_size") or n in ("ffn_dim", "ffn_hidden_size")]
    size = known.get("hidden_size") or known.get("n_embd")
    return {n: -(-known[n] * width // (8 * size)) * 8 for n in names if isinstance(known[n], int) and size}


def _dropouts(known: dict[str, Any], dropout: float) -> dict[str, float]:
    """Every dropout that the architecture has; none on embeddings, which the prior drops itself."""
    names = [n for n, v in known.items() if ("dropout" in n or n.endswith("pdrop")) and isinstance(v, float | int)]
    return {n: 0.0 if "emb" in n else dropout for n in names if not isinstance(known[n], bool)}


def configure(
    architecture: str, *, layers: int, width: int, heads: int, dropout: float, extra: dict[str, Any], length: int
) -> dict[str, Any]:
    """The whole configuration of an architecture at the given size, as JSON values.

    Args:
        architecture: a causal model type of `transformers`.
        extra: further keys of its configuration; they win over everything else.
        length: tokens a sequence.

    Raises:
        UserError: an unknown architecture, an unknown key in `extra`, or values that the architecture refuses.
    """
    from transformers import AutoConfig

    _check_architecture(architecture)
    default = AutoConfig.for_model(architecture)
    known, names = default.to_dict(), default.attribute_map
    wanted = {
        "vocab_size": 1,  # the model never sees tokens, only embeddings
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "word_embed_proj_dim": width,
        "max_position_embeddings": length,
        "is_decoder": True,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **_scaled(known, width),
        **_dropouts(known, dropout),
    }
    values = {names.get(key, key): value for key, value in wanted.items() if names.get(key, key) in known}
    for key, value in extra.items():
        if names.get(key, key) not in known:
            close = difflib.get_close_matches(key, [*known, *names], n=1, cutoff=0.0)
            raise UserError(f"{PATH}.extra.{key}: unknown to {architecture}; did you mean `{close[0]}`?")
        values[names.get(key, key)] = value
    try:
        config = AutoConfig.for_model(architecture, **values)
    except Exception as error:  # whatever a configuration class raises, the values in params.yaml are what it is about
        raise _unfit(architecture, error) from error
    if config.hidden_size != width:
        raise UserError(f"{PATH}.extra: set the width by {PATH}.width, not by a key of {architecture}'s configuration")
    configuration = json.loads(config.to_json_string(use_diff=False))
    # Which release wrote it is no part of what it says.
    return {key: value for key, value in configuration.items() if key != "transformers_version"}


def _unfit(architecture: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return UserError(
        f"{PATH}: {architecture} cannot be built at this size ({type(error).__name__}: {reason}); "
        f"give what it needs in {PATH}.extra, or choose another architecture, such as gpt2 or llama"
    )


def build(configuration: dict[str, Any], length: int) -> nn.Module:
    """The base model (no head) of a configuration from `configure`, newly initialised, tried on random inputs.

    Args:
        length: tokens a sequence; 0: it has been tried before, and is not again.

    Raises:
        UserError: `transformers` cannot build it, it does not work from embeddings, it looks ahead, or its cache
            changes what it says.
    """
    from transformers import AutoConfig, AutoModel

    architecture = configuration["model_type"]
    _check_architecture(architecture)
    values = {key: value for key, value in configuration.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(architecture, **values)
        model = AutoModel.from_config(config, dtype=torch.float32)
        # One row that is never read; frozen, or DDP would wait for its gradient.
        model.get_input_embeddings().requires_grad_(False)
        fault = length and _probe(model, config.hidden_size, length)
    except Exception as error:  # as above: about the values in params.yaml, whatever its type
        raise _unfit(architecture, error) from error
    if fault:
        raise UserError(f"{PATH}.architecture: {architecture} {fault}; choose another, such as gpt2 or llama")
    return model


def hidden_states(model: nn.Module, embeddings: Tensor) -> Tensor:
    """A whole sequence at once: embeddings (B, N, width) -> hidden states (B, N, width)."""
    return model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep no activations inside a model's layers for the backward pass.

    Raises:
        UserError: the architecture cannot.
    """
    # The older name warns in the releases that have the newer one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"{PATH}.training.gradient_checkpointing: {model.config.model_type} has no gradient checkpointing; set it "
            "to false, or choose another architecture, such as gpt2 or llama"
        ) from error


class Cache:
    """Decoding a batch of sequences token by token: by our own decoder where there is one, else by the library's."""

    def __init__(self, model: nn.Module, batch: int, length: int) -> None:
        from transformers import DynamicCache

        self.model, self.decoder = model, decoder(model, batch, length)
        self.cache = None if self.decoder else DynamicCache(config=model.config)

    def extend(self, embeddings: Tensor) -> Tensor:
        """The next n embeddings (B, n, width) to hidden states (B, n, width); n above 1 at the start only."""
        if self.decoder:
            return self.decoder.extend(embeddings)
        return self.model(inputs_embeds=embeddings, past_key_values=self.cache, use_cache=True).last_hidden_state


@torch.no_grad()
def _probe(model: nn.Module, width: int, length: int) -> str | None:
    """What makes a model unfit as a prior of so many tokens, found by running it, or None. Leaves the global random
    state alone."""
    random = torch.Generator().manual_seed(0)
    training = model.training
    model.eval()
    hidden_states(model, torch.randn(1, length, width, generator=random))  # or it raises
    length = min(PROBE_LENGTH, length)
    one, other = torch.randn(2, 2, length, width, generator=random)
    whole = hidden_states(model, one)
    for cut in range(1, length):
        changed = hidden_states(model, torch.cat([one[:, :cut], other[:, cut:]], dim=1))
        if not torch.allclose(changed[:, :cut], whole[:, :cut], atol=1e-4, rtol=1e-3):
            return "looks at later tokens"
    if not knows(model.config):
        cache = Cache(model, len(one), length)
        steps = torch.cat([cache.extend(one[:, i : i + 1]) for i in range(length)], dim=1)
        if not torch.allclose(steps, whole, atol=1e-3, rtol=1e-2):
            return "says other things with a cache than without one"
    model.train(training)
    return None
