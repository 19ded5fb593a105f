"""The options of a released model: what an absent key means, and what can't be followed."""

from typing import Any

import torch

RMS_EPS = torch.finfo(torch.float32).eps
LAYER_NORM_EPS = 1e-5

SITES = {
    "attn_in": "attn_in",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_out": "attn_out",
    "mlp_in": "mlp_in",
    "mlp_neuron": "mlp_neuron",
    "mlp_out": "mlp_out",
}
"""Their names of the sites of AbsTopK, and ours."""

RESIDUAL_SITES = ("resid_post_attn", "resid_post_mlp")

DEFAULTS: dict[str, Any] = {
    "block_size": 1024,
    "vocab_size": 50304,
    "n_layer": 12,
    "n_head": 12,
    "d_head": None,
    "d_model": 768,
    "d_mlp": None,
    "bias": True,
    "ln_bias": True,
    "rms_norm": False,
    "residual_activation_type": "identity",
    "activation_type": "gelu",
    "afrac": None,
    "afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out",
    "tied_unembed": True,
    "enable_bigram_table": False,
    "flash": True,
    "sink": False,
    "d_pos_emb": None,
    "use_tied_aux_matrix": False,
}
"""What an absent key means."""

WITHOUT_EFFECT = frozenset(
    {
        "bigram_table_rank",  # the reference ignores it too
        "debug_nans",
        "dropout",  # concerns training
        "dropout_cat_pos_emb",
        "enable_sparse_kernels",
        "grad_checkpointing",
        "learnable_bigram_table",
        "sinusoidal_cat_pos_emb",  # the positions themselves stand in the file
        "tokenizer_name",
    }
)
"""Keys that do not change what a stored model computes."""


def read_options(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in what is absent; refuse what is unknown or has no counterpart."""
    given = dict(given)
    if "n_mlp" in given:
        given["d_mlp"] = given.pop("n_mlp")
    unknown = sorted(set(given) - set(DEFAULTS) - WITHOUT_EFFECT)
    if unknown:
        raise ValueError(
            f"beeg_config.json has options that are not known: {', '.join(unknown)}. What they "
            "change in the model can't be guessed."
        )
    options = DEFAULTS | {name: value for name, value in given.items() if name in DEFAULTS}
    _check_types(options)
    for name, only in (
        ("residual_activation_type", "identity"),
        ("use_tied_aux_matrix", False),
    ):
        if options[name] != only:
            raise ValueError(
                f"beeg_config.json asks for {name}={options[name]!r}, which "
                f"HookedSparseTransformer can't compute exactly; only {only!r} is supported."
            )
    if options["activation_type"] not in ("gelu", "relu"):
        raise ValueError(
            f"activation_type is 'gelu' or 'relu', got {options['activation_type']!r}."
        )
    if options["d_model"] % options["n_head"]:
        raise ValueError(
            f"d_model must be a multiple of n_head, got {options['d_model']} and "
            f"{options['n_head']}."
        )
    options["d_mlp"] = options["d_mlp"] or 4 * options["d_model"]
    options["d_head"] = options["d_head"] or options["d_model"] // options["n_head"]
    site_densities(options)
    return options


def _check_types(options: dict[str, Any]) -> None:
    for name, default in DEFAULTS.items():
        value = options[name]
        if name == "afrac":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            good, kind = value is None or (number and 0 < value <= 1), "null or in (0, 1]"
        elif isinstance(default, bool):
            good, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, str):
            good, kind = isinstance(value, str), "a string"
        else:
            whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            good, kind = whole or (default is None and value is None), "a positive whole number"
        if not good:
            raise ValueError(f"beeg_config.json: {name} is {kind}, got {value!r}.")


def site_densities(options: dict[str, Any]) -> dict[str, float]:
    """Give the density at each site with AbsTopK; int(density x width) is the reference's k."""
    if options["afrac"] is None:
        return {}
    densities = {}
    for name in filter(None, options["afrac_loctypes"].split(",")):
        if name in RESIDUAL_SITES:
            raise ValueError(
                f"beeg_config.json has AbsTopK on the residual stream (afrac_loctypes names "
                f"{name}), which HookedSparseTransformer can't compute."
            )
        if name not in SITES:
            raise ValueError(
                f"afrac_loctypes names {name!r}; sites are {', '.join((*SITES, *RESIDUAL_SITES))}."
            )
        width = site_width(name, options)
        n_kept = int(options["afrac"] * width)
        if n_kept == 0:
            raise ValueError(
                f"afrac={options['afrac']} keeps none of the {width} channels at {name}: the model "
                "would compute nothing there."
            )
        densities[SITES[name]] = n_kept / width
    return densities


def site_width(site: str, options: dict[str, Any]) -> int:
    """Give the number of channels at one of their sites."""
    if site in ("attn_q", "attn_k", "attn_v"):
        return options["n_head"] * options["d_head"]
    if site in ("attn_in", "mlp_in"):
        return read_width(options)
    return options["d_mlp"] if site == "mlp_neuron" else options["d_model"]


def read_width(options: dict[str, Any]) -> int:
    """Give the number of channels that attention and MLP read: positions may stand beside x."""
    return options["d_model"] + (options["d_pos_emb"] or 0)


def shape_of(options: dict[str, Any]) -> dict[str, Any]:
    """Give the shape for HookedTransformerConfig."""
    return {
        "n_layers": options["n_layer"],
        "d_model": options["d_model"],
        "d_mlp": options["d_mlp"],
        "d_head": options["d_head"],
        "n_heads": options["n_head"],
        "n_ctx": options["block_size"],
        "d_vocab": options["vocab_size"],
        "act_fn": options["activation_type"],
        "normalization_type": "RMS" if options["rms_norm"] else "LN",
        "eps": RMS_EPS if options["rms_norm"] else LAYER_NORM_EPS,
        "positional_embedding_type": "none" if options["d_pos_emb"] else "standard",
        "use_attention_sinks": options["sink"],
        "default_prepend_bos": False,
        "device": "cpu",
    }
