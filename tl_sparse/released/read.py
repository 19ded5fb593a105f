"""From a released model's folder to a shape, densities and parameters of TransformerLens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_sparse.checkpoints import read_json
from tl_sparse.config import SparsityConfig
from tl_sparse.released.options import read_options, read_width, shape_of, site_densities
from tl_sparse.tokenizer import read_bpe


@dataclass(frozen=True)
class ReleasedModel:
    """A released model in the terms of this package."""

    cfg: dict[str, Any]
    """The shape, for HookedTransformerConfig."""
    sparsity: SparsityConfig
    """Densities that the weights obey, and where AbsTopK stands."""
    parameters: dict[str, Tensor]
    """All parameters under TransformerLens' names, in TransformerLens' shapes."""
    tokenizer: Any
    """The tokenizer beside the model, or None."""


def read_released(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> ReleasedModel:
    """Read a released model's folder; nothing in it is executed.

    Raises:
        ValueError: If the folder is incomplete or damaged, an option is unknown or has no exact
            counterpart here, or the tensors are not those that the options ask for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder} to load a released model from.")
    options = read_options(read_json(folder / "beeg_config.json"))
    state = _read_state(folder / "final_model.pt")
    if not options["flash"] and not any(name.endswith("sink_logit") for name in state):
        options["sink"] = False  # their slow attention has no sinks, whatever is asked for
    parameters = {name: tensor.to(dtype) for name, tensor in _translate(options, state)}
    cfg = shape_of(options) | {"dtype": dtype}
    if not parameters["pos_embed.W_pos"].any():
        cfg["positional_embedding_type"] = "none"
    return ReleasedModel(cfg, _sparsity(options, parameters), parameters, read_bpe(folder))


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"There is no {path.name} in {path.parent}: not a released model.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle's own errors here, among others
        raise ValueError(
            f"{path} is damaged, was cut short, or holds more than tensors: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) and t.layout == torch.strided
        for name, t in state.items()
    ):
        raise ValueError(f"{path} is not a state dict, names with tensors.")
    return dict(state)


def _expected(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Give name and shape of every tensor that a model with these options stores."""
    d_model, d_mlp, d_vocab = options["d_model"], options["d_mlp"], options["vocab_size"]
    inner, d_read = options["n_head"] * options["d_head"], read_width(options)
    d_position = options["d_pos_emb"] or d_model
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (d_vocab, d_model),
        "transformer.wpe.weight": (options["block_size"], d_position),
        "lm_head.weight": (d_vocab, d_model),
        "final_logits_bias": (d_vocab,),
    }
    if options["enable_bigram_table"]:
        shapes["bigram_table"] = (d_vocab, d_vocab)
    norms = {"transformer.ln_f": d_model}
    for layer in range(options["n_layer"]):
        block = f"transformer.h.{layer}"
        norms |= {f"{block}.ln_1": d_model, f"{block}.ln_2": d_model}
        if options["d_pos_emb"]:
            norms |= {f"{block}.ln_p1": d_position, f"{block}.ln_p2": d_position}
        for name, n_out, n_in in (
            ("attn.c_attn", 3 * inner, d_read),
            ("attn.c_proj", d_model, inner),
            ("mlp.c_fc", d_mlp, d_read),
            ("mlp.c_proj", d_model, d_mlp),
        ):
            shapes[f"{block}.{name}.weight"] = (n_out, n_in)
            if options["bias"]:
                shapes[f"{block}.{name}.bias"] = (n_out,)
        if options["sink"]:
            shapes[f"{block}.attn.attn_imp.sink_logit"] = (options["n_head"],)
    for norm, width in norms.items():
        shapes[f"{norm}.weight"] = (width,)
        if options["ln_bias"] and not options["rms_norm"]:
            shapes[f"{norm}.bias"] = (width,)
    return shapes


def _checked(options: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the state with what may be absent filled in; refuse one that is not the options'."""
    want = _expected(options)
    causal = {f"transformer.h.{layer}.attn.bias" for layer in range(options["n_layer"])}
    state = {name: tensor for name, tensor in state.items() if name not in causal}
    state.setdefault("final_logits_bias", torch.zeros(options["vocab_size"]))
    if options["tied_unembed"]:
        for name, other in (("lm_head", "transformer.wte"), ("transformer.wte", "lm_head")):
            if f"{other}.weight" in state:
                state.setdefault(f"{name}.weight", state[f"{other}.weight"])
    missing, extra = sorted(set(want) - set(state)), sorted(set(state) - set(want))
    if missing or extra:
        raise ValueError(
            "final_model.pt does not match beeg_config.json: tensors missing: "
            f"{', '.join(missing) or 'none'}; extra: {', '.join(extra) or 'none'}."
        )
    for name, shape in want.items():
        tensor = state[name]
        if name.endswith("sink_logit") and tensor.numel() == 1:  # one for all heads
            tensor = state[name] = tensor.reshape(1).expand(shape)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ValueError(
                f"final_model.pt: {name} is {tuple(tensor.shape)} {tensor.dtype}; "
                f"beeg_config.json says {shape}, floating point."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"final_model.pt: {name} has NaN or infinite entries.")
    if options["tied_unembed"] and not torch.equal(
        state["lm_head.weight"], state["transformer.wte.weight"]
    ):
        raise ValueError(
            "beeg_config.json says tied_unembed, but lm_head.weight and transformer.wte.weight of "
            "final_model.pt differ."
        )
    return state


def _translate(options: dict[str, Any], state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Give all parameters under TransformerLens' names, absent biases as zeros."""
    state = _checked(options, state)
    positions = state["transformer.wpe.weight"]
    yield "embed.W_E", state["transformer.wte.weight"].clone()
    if options["d_pos_emb"]:
        yield "positions.table", positions.clone()
        positions = torch.zeros(options["block_size"], options["d_model"])
    yield "pos_embed.W_pos", positions.clone()
    yield "unembed.W_U", state["lm_head.weight"].T.clone()
    yield "unembed.b_U", state["final_logits_bias"].clone()
    if options["enable_bigram_table"]:
        yield "bigram.table", state["bigram_table"].clone()
    for layer in range(options["n_layer"]):
        yield from _translate_block(options, state, layer)
    yield from _norm(options, state, "transformer.ln_f", "ln_final")


def _translate_block(
    options: dict[str, Any], state: dict[str, Tensor], layer: int
) -> Iterator[tuple[str, Tensor]]:
    n_heads, d_head, d_model = options["n_head"], options["d_head"], options["d_model"]
    theirs, ours = f"transformer.h.{layer}", f"blocks.{layer}"
    yield from _norm(options, state, f"{theirs}.ln_1", f"{ours}.ln1")
    yield from _norm(options, state, f"{theirs}.ln_2", f"{ours}.ln2")
    if options["d_pos_emb"]:
        yield from _norm(options, state, f"{theirs}.ln_p1", f"{ours}.ln1_positions")
        yield from _norm(options, state, f"{theirs}.ln_p2", f"{ours}.ln2_positions")
    weights = state[f"{theirs}.attn.c_attn.weight"].view(3, n_heads, d_head, -1)
    biases = _bias(state, f"{theirs}.attn.c_attn", 3 * n_heads * d_head).view(3, n_heads, d_head)
    for name, weight, b in zip("QKV", weights, biases, strict=True):
        yield f"{ours}.attn.W_{name}", weight.transpose(1, 2).clone()
        yield f"{ours}.attn.b_{name}", b.clone()
    weight = state[f"{theirs}.attn.c_proj.weight"]
    yield f"{ours}.attn.W_O", weight.T.reshape(n_heads, d_head, d_model).clone()
    yield f"{ours}.attn.b_O", _bias(state, f"{theirs}.attn.c_proj", d_model)
    if options["sink"]:
        yield f"{ours}.attn.sinks", state[f"{theirs}.attn.attn_imp.sink_logit"].clone()
    for name, matrix, size in (("in", "c_fc", options["d_mlp"]), ("out", "c_proj", d_model)):
        yield f"{ours}.mlp.W_{name}", state[f"{theirs}.mlp.{matrix}.weight"].T.clone()
        yield f"{ours}.mlp.b_{name}", _bias(state, f"{theirs}.mlp.{matrix}", size)


def _bias(state: dict[str, Tensor], name: str, size: int) -> Tensor:
    return state.get(f"{name}.bias", torch.zeros(size)).clone()


def _norm(
    options: dict[str, Any], state: dict[str, Tensor], name: str, ours: str
) -> Iterator[tuple[str, Tensor]]:
    gain = state[f"{name}.weight"]
    yield f"{ours}.w", gain.clone()
    if not options["rms_norm"]:
        yield f"{ours}.b", _bias(state, name, len(gain))


def _sparsity(options: dict[str, Any], parameters: Mapping[str, Tensor]) -> SparsityConfig:
    """Give the smallest densities that all weights obey; q, k and v are ranked together."""

    def densest(*suffixes: str) -> float:
        groups: dict[str, list[Tensor]] = {}
        for name, tensor in parameters.items():
            if name.endswith(suffixes):
                joint = name[:-1] if name.endswith(("W_Q", "W_K", "W_V")) else name
                groups.setdefault(joint, []).append(tensor)
        shares = [
            sum(int((t != 0).sum()) for t in group) / sum(t.numel() for t in group)
            for group in groups.values()
        ]
        return max(shares) or 1.0

    return SparsityConfig(
        weight_density=densest("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"),
        embedding_density=densest("W_E", "W_U"),
        bias_density=densest("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out"),
        activation_density=site_densities(options) or 1.0,
        qkv_ranking="joint",
        bigram_table=options["enable_bigram_table"],
        position_channels=options["d_pos_emb"] or 0,
    )
