"""Which configurations make a model: any other is a `ValueError` before something is built.

TransformerLens checks little. Many a configuration that can't work fails inside torch, or at the
first forward pass, or not at all: an unknown `init_mode` leaves the weights as they lie in memory,
an unknown `attention_dir` is taken for "bidirectional". So, in this order:

1. each argument, and each field of the configuration by itself: `ARGUMENTS`, `REFUSED`, `FIELDS`;
2. a dict becomes a HookedTransformerConfig, which fills in TransformerLens' defaults;
3. what must fit together: sizes, vocabulary, positions, attention.

A field that this TransformerLens (3.7.3 to 3.9) does not have is unknown in a dict.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any

import torch
from transformer_lens import HookedTransformerConfig
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS
from transformers import PreTrainedTokenizerBase

from tl_sparse.config import SparsityConfig
from tl_sparse.rules import (
    NON_NEGATIVE_INTEGER,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    SWITCH,
    WORD,
    Rule,
    choice,
    integer,
    is_integer,
    is_number,
    maybe,
    number,
    plain,
)

ARGUMENTS = {
    "sparsity": maybe(
        Rule(
            "is a SparsityConfig",
            lambda v: isinstance(v, SparsityConfig),
            "A dict becomes one by SparsityConfig.from_dict(...).",
        )
    ),
    "attention": maybe(choice("eager", "fused", "auto")),
    "tokenizer": maybe(
        Rule(
            "is a tokenizer of transformers",
            lambda v: isinstance(v, PreTrainedTokenizerBase),
            "The name of one goes into cfg.tokenizer_name.",
        )
    ),
    "move_to_device": SWITCH,
    "default_padding_side": maybe(choice("left", "right")),
}
"""What the arguments of `HookedSparseTransformer` beside `cfg` must be."""

REFUSED = {
    "n_key_value_heads": None,
    "num_experts": None,
    "experts_per_token": None,
    "gated_mlp": False,
    "load_in_4bit": False,
    "post_embedding_ln": False,
    "use_normalization_before_and_after": False,
    "n_devices": 1,
}
"""Fields for blocks, or models, of another kind than ours, and the value that they must keep."""

OTHER_BLOCKS = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Architectures for which the host's blocks or attention norm elsewhere than ours do."""

_SIZE = Rule(
    "is a positive integer, or -1 to leave it to TransformerLens",
    lambda v: is_integer(v) and (v > 0 or v == -1),
)
_SCALE = number("is a positive number, or -1 for sqrt(d_head)", lambda v: v > 0 or v == -1)
_BASE = number("is a finite number above 1", lambda v: v > 1)
_SPREAD = number("is a non-negative number, or -1 for the default", lambda v: v >= 0 or v == -1)
_CAP = Rule(
    "is a positive number, or -1, 0 or None for no cap",
    lambda v: v is None or (is_number(v) and (v > 0 or v in (-1, 0))),
)
_ATTN_TYPES = Rule(
    'is a list of "global" and "local", one for each layer',
    lambda v: isinstance(v, list | tuple) and all(choice("global", "local").holds(t) for t in v),
)
_SEED = integer("is an integer in [0, 2**32)", 0, below=2**32)
_DTYPE = choice(torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NORMS = choice("LN", "LNPre", "RMS", "RMSPre", None)
_POSITIONS = choice("standard", "rotary", "shortformer", "alibi", "none")
_KAIMING = ("kaiming_uniform", "kaiming_normal")
_INIT_MODES = choice("gpt2", "xavier_uniform", "xavier_normal", *_KAIMING, "muP")

_RULES: tuple[tuple[Rule, str], ...] = (
    (POSITIVE_INTEGER, "n_layers d_model d_head n_ctx"),
    (_SIZE, "n_heads d_vocab d_vocab_out"),
    (maybe(POSITIVE_INTEGER), "d_mlp window_size rotary_dim train_seq_length"),
    (maybe(choice(*SUPPORTED_ACTIVATIONS)), "act_fn"),
    (_NORMS, "normalization_type"),
    (_POSITIONS, "positional_embedding_type"),
    (_INIT_MODES, "init_mode"),
    (_SPREAD, "initializer_range"),
    (_DTYPE, "dtype"),
    (maybe(_SEED), "seed"),
    (choice("causal", "bidirectional"), "attention_dir"),
    (maybe(_ATTN_TYPES), "attn_types"),
    (_SCALE, "attn_scale"),
    (_CAP, "attn_scores_soft_cap output_logits_soft_cap"),
    (maybe(POSITIVE_NUMBER), "clip_qkv"),
    (_BASE, "rotary_base"),
    (maybe(_BASE), "rotary_base_local"),
    (POSITIVE_NUMBER, "eps rotary_scaling_factor yarn_factor yarn_attention_factor"),
    (POSITIVE_NUMBER, "yarn_beta_fast yarn_beta_slow NTK_by_parts_factor"),
    (POSITIVE_NUMBER, "NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor"),
    (POSITIVE_INTEGER, "NTK_original_ctx_len yarn_original_max_position_embeddings"),
    (SWITCH, "attn_only parallel_attn_mlp final_rms init_weights from_checkpoint"),
    (SWITCH, "use_attn_result use_split_qkv_input use_attn_in use_hook_mlp_in use_hook_tokens"),
    (SWITCH, "use_attn_scale scale_attn_by_inverse_layer_idx use_local_attn use_attention_sinks"),
    (SWITCH, "use_qk_norm use_logn_attn use_dynamic_ntk_rope use_NTK_by_parts_rope use_yarn_rope"),
    (SWITCH, "yarn_truncate yarn_global_attn_only rotary_adjacent_pairs default_prepend_bos"),
    (SWITCH, "ungroup_grouped_query_attention tie_word_embeddings norm_topk_prob"),
    (SWITCH, "trust_remote_code uses_rms_norm layer_norm_folding"),
    (maybe(SWITCH), "tokenizer_prepends_bos"),
    (WORD, "model_name"),
    (maybe(WORD), "original_architecture tokenizer_name checkpoint_label_type quantization_method"),
    (maybe(NON_NEGATIVE_INTEGER), "checkpoint_index checkpoint_value decoder_start_token_id"),
    (maybe(NON_NEGATIVE_INTEGER), "relative_attention_max_distance relative_attention_num_buckets"),
)

FIELDS: dict[str, Rule] = {name: rule for rule, names in _RULES for name in names.split()}
"""What each field of a HookedTransformerConfig must be, whatever the others are."""


def check_arguments(**arguments: Any) -> None:
    """Check arguments of `HookedSparseTransformer` by name.

    Raises:
        ValueError: If one is not what `ARGUMENTS` says.
    """
    for name, value in arguments.items():
        ARGUMENTS[name].check(name, value)


def resolve_config(cfg: Any, tokenizer: Any, sparsity: SparsityConfig) -> HookedTransformerConfig:
    """Check a configuration and give it as a HookedTransformerConfig: itself, or made of a dict.

    Raises:
        ValueError: If no model can be made of it.
    """
    if isinstance(cfg, Mapping):
        values = _known_fields(cfg)
    elif isinstance(cfg, HookedTransformerConfig):
        values = {field.name: getattr(cfg, field.name) for field in fields(cfg)}
    else:
        raise ValueError(
            f"cfg is a HookedTransformerConfig, or a dict of its fields, got {cfg!r}. A model that "
            "has a name or a folder is read by HookedSparseTransformer.from_pretrained."
        )
    _check_fields(values)
    if isinstance(cfg, Mapping):
        cfg = _build(values)
    for problems in (_size_problems, _position_problems, _attention_problems):
        for problem in problems(cfg, tokenizer, sparsity):
            raise ValueError(problem)
    return cfg


def _known_fields(cfg: Mapping[Any, Any]) -> dict[str, Any]:
    """Give a dict's values with numbers as Python's own; refuse unknown and missing names."""
    known = {field.name: field for field in fields(HookedTransformerConfig) if field.init}
    for name in cfg:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "See its documentation for them."
            raise ValueError(f"HookedTransformerConfig has no field {name!r}. {hint}")
    missing = [name for name, f in known.items() if f.default is MISSING and name not in cfg]
    if missing:
        raise ValueError(f"cfg lacks {', '.join(missing)}; a model's shape needs them.")
    return {name: plain(value) for name, value in cfg.items()}


def _check_fields(values: Mapping[str, Any]) -> None:
    # The attention-only models that TransformerLens knows by name say anything about their MLP.
    named = values.get("original_architecture") is not None and values.get("attn_only") is True
    for name, value in values.items():
        if name in REFUSED:
            only = REFUSED[name]
            if type(value) is not type(only) or value != only:
                raise ValueError(
                    f"HookedSparseTransformer does not support cfg.{name}={value!r}. Leave it out, "
                    f"or at {only!r}."
                )
        elif name in FIELDS and not (named and name in ("act_fn", "d_mlp")):
            FIELDS[name].check(f"cfg.{name}", value)
    _check_device(values.get("device"))


def _check_device(device: Any) -> None:
    if device is None:
        return
    rule = "cfg.device is the name of a device that is there, as 'cpu'"
    if not isinstance(device, str | torch.device):
        raise ValueError(f"{rule}, got {device!r}. Leave it out for TransformerLens' choice.")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own way of not being there
        reason = str(error).split("\n")[0]
        raise ValueError(f"{rule}, got {str(device)!r}: {reason}") from None


def _build(values: dict[str, Any]) -> HookedTransformerConfig:
    d_model, d_head = values["d_model"], values["d_head"]
    if values.get("n_heads", -1) == -1 and d_model % d_head:
        raise ValueError(
            f"cfg.n_heads is d_model / d_head unless given, and d_head ({d_head}) does not divide "
            f"d_model ({d_model}). Set n_heads, or another d_head."
        )
    try:
        return HookedTransformerConfig(**values)
    except (TypeError, AssertionError, KeyError, ArithmeticError) as error:
        raise ValueError(f"cfg does not describe a model: {error}.") from None


def _size_problems(
    cfg: HookedTransformerConfig, tokenizer: Any, sparsity: SparsityConfig
) -> Iterator[str]:
    if cfg.n_heads == -1:
        yield "cfg.n_heads is -1; set it to the number of heads."
    if not cfg.attn_only and cfg.d_mlp is None:
        yield "cfg.d_mlp is missing; set it (usually 4 x d_model) or attn_only=True."
    if not cfg.attn_only and cfg.act_fn is None:
        yield "cfg.act_fn is missing; set it, as to 'gelu', or attn_only=True."
    if cfg.device is None:
        yield "cfg.device is missing; set it, as to 'cpu'."
    if cfg.d_vocab == -1 and tokenizer is None and cfg.tokenizer_name is None:
        yield "cfg.d_vocab is missing; set it to the number of tokens, or give a tokenizer."
    if cfg.d_vocab_out == -1 and cfg.d_vocab != -1:
        yield f"cfg.d_vocab_out is -1; set it, usually to d_vocab, {cfg.d_vocab}."
    most = torch.finfo(cfg.dtype).max ** 0.5
    if not 0 <= cfg.initializer_range <= most:
        yield (
            f"cfg.initializer_range is at most {most:.3g} for weights in {cfg.dtype}, and not "
            f"negative, got {cfg.initializer_range!r}."
        )


def _position_problems(
    cfg: HookedTransformerConfig, tokenizer: Any, sparsity: SparsityConfig
) -> Iterator[str]:
    if sparsity.position_channels and cfg.positional_embedding_type != "none":
        yield (
            "position_channels are read instead of positions in the residual stream; set "
            f'cfg.positional_embedding_type="none", got {cfg.positional_embedding_type!r}.'
        )
    if cfg.positional_embedding_type != "rotary":
        return
    dim = cfg.rotary_dim
    if dim is None or dim % 2 or dim > cfg.d_head:
        yield (
            f"cfg.rotary_dim is an even number of channels, at most d_head ({cfg.d_head}) and "
            f"d_head itself unless given, got {dim!r}. Set it, or an even d_head."
        )
    if cfg.use_dynamic_ntk_rope and dim == 2:
        yield "cfg.use_dynamic_ntk_rope divides by rotary_dim - 2; set rotary_dim to 4 or more."
    low, high = cfg.NTK_by_parts_low_freq_factor, cfg.NTK_by_parts_high_freq_factor
    if cfg.use_NTK_by_parts_rope and low >= high:
        yield (
            "cfg.NTK_by_parts_low_freq_factor is below NTK_by_parts_high_freq_factor, got "
            f"{low!r} and {high!r}."
        )


def _attention_problems(
    cfg: HookedTransformerConfig, tokenizer: Any, sparsity: SparsityConfig
) -> Iterator[str]:
    if cfg.original_architecture in OTHER_BLOCKS:
        yield (
            f"HookedSparseTransformer does not support cfg.original_architecture="
            f"{cfg.original_architecture!r}, whose blocks norm in other places. Leave it out."
        )
    if cfg.use_attn_scale and cfg.attn_scale < 0:
        yield f"cfg.attn_scale divides the scores and is positive, got {cfg.attn_scale!r}."
    if cfg.use_logn_attn and (cfg.train_seq_length or cfg.n_ctx) < 2:
        yield "cfg.use_logn_attn divides by log(train_seq_length); set it to 2 or more."
    if not cfg.use_local_attn:
        return
    if cfg.window_size is None or cfg.attn_types is None:
        yield "cfg.use_local_attn needs window_size and attn_types; set both."
    n_types = len(cfg.attn_types or ())
    # TransformerLens' first_n_layers leaves the whole list of the models that it knows by name.
    spare = n_types > cfg.n_layers and cfg.original_architecture is not None
    if n_types != cfg.n_layers and not spare:
        yield (
            f"cfg.attn_types has one entry for each of the {cfg.n_layers} layers, got "
            f"{cfg.attn_types!r}."
        )
