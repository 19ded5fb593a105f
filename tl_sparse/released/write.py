"""The way back: a model of ours in the released format, where the format can express it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformerConfig

from tl_sparse.config import SparsityConfig
from tl_sparse.files import whole_folder
from tl_sparse.functional import kept_count
from tl_sparse.released.options import LAYER_NORM_EPS, RMS_EPS, SITES, site_width
from tl_sparse.tokenizer import write_bpe


def write_released(
    folder: str | Path,
    cfg: HookedTransformerConfig,
    sparsity: SparsityConfig,
    parameters: Mapping[str, Tensor],
    tokenizer: Any = None,
) -> None:
    """Write a model in the released format, whole or not at all.

    A tokenizer is written beside it as `encoder.json` and `vocab.bpe`.

    Raises:
        ValueError: If the format can't express the model, or the tokenizer, exactly.
        OSError: If the disk is full; what stood there is untouched.
    """
    options = _options_of(cfg, sparsity)
    state = dict(_state_of(options, parameters))
    with whole_folder(folder) as place:
        text = json.dumps({"tokenizer_name": "tinypython_2k"} | options, indent=1)
        (place / "beeg_config.json").write_text(text, encoding="utf-8")
        torch.save(state, place / "final_model.pt")
        if tokenizer is not None:
            write_bpe(tokenizer, place)


def _options_of(cfg: HookedTransformerConfig, sparsity: SparsityConfig) -> dict[str, Any]:
    """Give the options of a model; refuse what the format has no word for."""
    norm = str(cfg.normalization_type)
    rms = norm in ("RMS", "RMSPre")
    eps = RMS_EPS if rms else LAYER_NORM_EPS
    rules = {
        "normalization_type": (norm in ("RMS", "RMSPre", "LN", "LNPre"), "RMS or LN"),
        "eps": (math.isclose(float(cfg.eps), eps, rel_tol=1e-6), f"{eps:.8g} for {norm}"),
        "act_fn": (cfg.act_fn in ("gelu", "relu"), "'gelu' or 'relu'"),
        "attn_only": (not cfg.attn_only, "False"),
        "parallel_attn_mlp": (not cfg.parallel_attn_mlp, "False"),
        "positional_embedding_type": (
            cfg.positional_embedding_type in ("standard", "none"),
            "'standard' or 'none'",
        ),
        "attention_dir": (cfg.attention_dir == "causal", "'causal'"),
        "use_local_attn": (not cfg.use_local_attn, "False"),
        "attn_scores_soft_cap": (cfg.attn_scores_soft_cap <= 0, "off"),
        "output_logits_soft_cap": (cfg.output_logits_soft_cap <= 0, "off"),
        "clip_qkv": (cfg.clip_qkv is None, "None"),
        "use_qk_norm": (not cfg.use_qk_norm, "False"),
        "use_logn_attn": (not cfg.use_logn_attn, "False"),
        "use_attn_scale": (cfg.use_attn_scale, "True"),
        "attn_scale": (
            math.isclose(float(cfg.attn_scale), math.sqrt(cfg.d_head), rel_tol=1e-12),
            "the square root of d_head",
        ),
        "d_vocab_out": (cfg.d_vocab_out == cfg.d_vocab, "d_vocab"),
        "n_heads": (cfg.d_model % cfg.n_heads == 0, "a divisor of d_model"),
    }
    for name, (good, only) in rules.items():
        if not good:
            raise ValueError(
                f"The released format can't express cfg.{name}={getattr(cfg, name)!r} exactly; "
                f"only {only}."
            )
    options = {
        "block_size": cfg.n_ctx,
        "vocab_size": cfg.d_vocab,
        "n_layer": cfg.n_layers,
        "n_head": cfg.n_heads,
        "d_head": cfg.d_head,
        "d_model": cfg.d_model,
        "d_mlp": cfg.d_mlp,
        "bias": True,
        "ln_bias": True,
        "rms_norm": rms,
        "residual_activation_type": "identity",
        "activation_type": cfg.act_fn,
        "tied_unembed": False,
        "enable_bigram_table": sparsity.bigram_table,
        "learnable_bigram_table": True,
        "d_pos_emb": sparsity.position_channels or None,
        "flash": True,
        "sink": bool(cfg.use_attention_sinks),
    }
    return options | _afrac(sparsity, options)


def _afrac(sparsity: SparsityConfig, options: dict[str, Any]) -> dict[str, Any]:
    """Find one fraction that keeps the same number of channels as ours at every site."""
    sparse = {theirs: sparsity.site_density(ours) for theirs, ours in SITES.items()}
    sparse = {site: density for site, density in sparse.items() if density < 1}
    if not sparse:
        return {"afrac": None}
    widths = {site: site_width(site, options) for site in sparse}
    wanted = {site: kept_count(density, widths[site]) for site, density in sparse.items()}
    least = max(wanted[site] / width for site, width in widths.items())
    for afrac in (least, math.nextafter(least, 1.0)):  # rounding may leave the product just short
        if {site: int(afrac * width) for site, width in widths.items()} == wanted:
            return {"afrac": afrac, "afrac_loctypes": ",".join(sparse)}
    raise ValueError(
        "The released format has one fraction for AbsTopK at all its sites, and none keeps "
        f"{', '.join(f'{n} channels at {site}' for site, n in wanted.items())}."
    )


def _state_of(
    options: dict[str, Any], parameters: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Give their state dict of our parameters."""
    given = {name: tensor.detach().cpu() for name, tensor in parameters.items()}
    if options["enable_bigram_table"]:
        yield "bigram_table", given["bigram.table"].clone()
    yield "final_logits_bias", given["unembed.b_U"].clone()
    yield "transformer.wte.weight", given["embed.W_E"].clone()
    positions = given["positions.table" if options["d_pos_emb"] else "pos_embed.W_pos"]
    yield "transformer.wpe.weight", positions.clone()
    for layer in range(options["n_layer"]):
        yield from _state_of_block(options, given, layer)
    yield from _norm(options, given, "ln_final", "transformer.ln_f", options["d_model"])
    yield "lm_head.weight", given["unembed.W_U"].T.contiguous().clone()


def _state_of_block(
    options: dict[str, Any], given: Mapping[str, Tensor], layer: int
) -> Iterator[tuple[str, Tensor]]:
    theirs, ours = f"transformer.h.{layer}", f"blocks.{layer}"
    weights = [given[f"{ours}.attn.W_{name}"].transpose(1, 2) for name in "QKV"]
    biases = [given[f"{ours}.attn.b_{name}"] for name in "QKV"]
    yield f"{theirs}.attn.c_attn.weight", torch.stack(weights).flatten(0, 2).clone()
    yield f"{theirs}.attn.c_attn.bias", torch.stack(biases).flatten().clone()
    out = given[f"{ours}.attn.W_O"].flatten(0, 1).T
    yield f"{theirs}.attn.c_proj.weight", out.contiguous().clone()
    yield f"{theirs}.attn.c_proj.bias", given[f"{ours}.attn.b_O"].clone()
    if options["sink"]:
        yield f"{theirs}.attn.attn_imp.sink_logit", given[f"{ours}.attn.sinks"].clone()
    for name, matrix in (("in", "c_fc"), ("out", "c_proj")):
        weight = given[f"{ours}.mlp.W_{name}"].T.contiguous()
        yield f"{theirs}.mlp.{matrix}.weight", weight.clone()
        yield f"{theirs}.mlp.{matrix}.bias", given[f"{ours}.mlp.b_{name}"].clone()
    for i in (1, 2):
        yield from _norm(options, given, f"{ours}.ln{i}", f"{theirs}.ln_{i}", options["d_model"])
        if options["d_pos_emb"]:
            names = f"{ours}.ln{i}_positions", f"{theirs}.ln_p{i}"
            yield from _norm(options, given, *names, options["d_pos_emb"])


def _norm(
    options: dict[str, Any], given: Mapping[str, Tensor], ours: str, theirs: str, width: int
) -> Iterator[tuple[str, Tensor]]:
    """Give a norm's gain and bias; one that has none gets ones and zeros."""
    ones = given["embed.W_E"].new_ones(width)
    yield f"{theirs}.weight", given.get(f"{ours}.w", ones).clone()
    if not options["rms_norm"]:
        yield f"{theirs}.bias", given.get(f"{ours}.b", torch.zeros_like(ones)).clone()
