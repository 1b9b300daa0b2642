"""Builds a causal language model of `transformers` as a function from embeddings to hidden states.

`transformers` is imported inside functions. Users of other priors then neither wait for it nor need a working
installation of it.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

import torch
from torch import Tensor, nn

from stage2_prior.priors.configuration import ATTENTION, refused
from stage2_prior.priors.decoding.model import LibraryDecoder, ModelDecoding
from tessera.errors import UserError

PATH = "transformer"  # how messages name the section; what stands before it differs in a chain
PROBE_LENGTH = 12  # tokens; enough to show that a convolution or a chunk looks ahead


def _check_architecture(architecture: str) -> None:
    """Refuses a name that is no causal language model of the installed `transformers`, by a UserError."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    names = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING_NAMES) & set(MODEL_MAPPING_NAMES))
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=3, cutoff=0.4) or ["gpt2", "llama"]
        raise UserError(
            f"{PATH}.architecture: {architecture!r} is not a causal language model of the installed transformers; "
            f"nearest: {', '.join(close)}"
        )


def _check_values(architecture: str, values: dict[str, Any]) -> None:
    """Refuses keys and values that a configuration may not have, by a UserError."""
    from transformers import AutoConfig

    if found := refused(values):
        raise UserError(f"{PATH}'s configuration: {found[0]}: {found[1]}")
    unknown = sorted(set(values).difference(AutoConfig.for_model(architecture).to_dict()))
    if unknown:
        raise UserError(
            f"{PATH}'s configuration: {unknown[0]}: unknown to {architecture} in the installed transformers; use the "
            "version that it was made with"
        )


def _scaled(known: dict[str, Any], width: int) -> dict[str, int]:
    """The widths of the layers' networks, in the architecture's own proportion to its width, as multiples of 8."""
    names = [n for n in known if n.endswith("intermediate_size") or n in ("ffn_dim", "ffn_hidden_size")]
    size = known.get("hidden_size") or known.get("n_embd")
    return {n: -(-known[n] * width // (8 * size)) * 8 for n in names if isinstance(known[n], int) and size}


def _dropouts(known: dict[str, Any], dropout: float) -> dict[str, float]:
    """Sets every dropout of the architecture. Dropout of embeddings is 0, because the prior applies its own."""
    names = [n for n, v in known.items() if ("dropout" in n or n.endswith("pdrop")) and isinstance(v, float | int)]
    return {n: 0.0 if "emb" in n else dropout for n in names if not isinstance(known[n], bool)}


def configure(
    architecture: str, *, layers: int, width: int, heads: int, dropout: float, extra: dict[str, Any], length: int
) -> dict[str, Any]:
    """The whole configuration of an architecture at a given size, as JSON values.

    Args:
        architecture: a causal model type of `transformers`.
        layers, width, heads, dropout: the size. Each is set under the architecture's own name for it.
        extra: further keys of the configuration. They override all other values.
        length: number of tokens of a sequence.

    Raises:
        UserError: the architecture is unknown, a key in `extra` is unknown, or the architecture refuses the values.
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
    except Exception as error:  # a configuration class may raise anything; the cause is always a value of params.yaml
        raise _unfit(architecture, error) from error
    if config.hidden_size != width:
        raise UserError(f"{PATH}.extra: set the width by {PATH}.width, not by a key of {architecture}'s configuration")
    configuration = json.loads(config.to_json_string(use_diff=False))
    # The version of the library does not describe the model, and would differ between installations.
    return {key: value for key, value in configuration.items() if key != "transformers_version"}


def _unfit(architecture: str, error: Exception) -> UserError:
    """The message for an architecture that cannot be built, with the cause in one line."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return UserError(
        f"{PATH}: {architecture} cannot be built at this size ({type(error).__name__}: {reason}); "
        f"give what it needs in {PATH}.extra, or choose another architecture, such as gpt2 or llama"
    )


def build(configuration: dict[str, Any], length: int) -> nn.Module:
    """The base model (without a head) of a configuration, newly initialised and tried on random inputs.

    Args:
        configuration: from `configure`.
        length: number of tokens of a sequence. 0: the model was tried before, and is not tried again.

    Raises:
        UserError: a key or a value of the configuration is not allowed, `transformers` cannot build the model, the
            model does not work from embeddings, it looks at later tokens, or its cache changes its results.
    """
    from transformers import AutoConfig, AutoModel

    architecture = configuration["model_type"]
    _check_architecture(architecture)
    values = {key: value for key, value in configuration.items() if key != "model_type"}
    _check_values(architecture, values)
    try:
        config = AutoConfig.for_model(architecture, **values)
        model = AutoModel.from_config(config, dtype=torch.float32)
        if model.config._attn_implementation not in ATTENTION:
            raise ValueError(f"its attention is {model.config._attn_implementation}, expected {' or '.join(ATTENTION)}")
        # The token table has one row, which is never read. It is frozen, because DDP would wait for its gradient.
        model.get_input_embeddings().requires_grad_(False)
        fault = length and _probe(model, config.hidden_size, length)
    except Exception as error:  # as above: a value of params.yaml is the cause
        raise _unfit(architecture, error) from error
    if fault:
        raise UserError(f"{PATH}.architecture: {architecture} {fault}; choose another, such as gpt2 or llama")
    return model


def hidden_states(model: nn.Module, embeddings: Tensor) -> Tensor:
    """The outputs (B, N, width) of the last layer of a model of `transformers` for whole sequences of embeddings."""
    return model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def checkpoint_gradients(model: nn.Module) -> None:
    """Switches gradient checkpointing of a model's layers on.

    Raises:
        UserError: the architecture has none.
    """
    # Releases that have the newer name warn when the older one is used.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"{PATH}.training.gradient_checkpointing: {model.config.model_type} has no gradient checkpointing; set it "
            "to false, or choose another architecture, such as gpt2 or llama"
        ) from error


@torch.no_grad()
def _probe(model: nn.Module, width: int, length: int) -> str | None:
    """Runs a model and says what makes it unfit as a prior over `length` tokens, or None.

    The global random state stays as it is.
    """
    random = torch.Generator().manual_seed(0)
    training = model.training
    model.eval()
    hidden_states(model, torch.randn(1, length, width, generator=random))  # raises if the length is not supported
    length = min(PROBE_LENGTH, length)
    one, other = torch.randn(2, 2, length, width, generator=random)
    whole = hidden_states(model, one)
    for cut in range(1, length):
        changed = hidden_states(model, torch.cat([one[:, :cut], other[:, cut:]], dim=1))
        if not torch.allclose(changed[:, :cut], whole[:, :cut], atol=1e-4, rtol=1e-3):
            return "looks at later tokens"
    if not ModelDecoding(model).restated:
        decoder = LibraryDecoder(model)
        parts = torch.cat([decoder.extend(one[:, i : i + 1]) for i in range(length)], dim=1)
        if not torch.allclose(parts, whole, atol=1e-3, rtol=1e-2):
            return "gives other results with a cache than without one"
    model.train(training)
    return None
