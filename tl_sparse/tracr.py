"""Tracr's compiled programs as sparse transformers: models whose circuit is known.

Tracr (Lindner et al. 2023, arXiv 2301.05062) compiles RASP programs to the weights of a transformer
without norms, bidirectional unless asked otherwise, with a ReLU MLP, whose weights are almost all
zero. `from_tracr` makes a `HookedSparseTransformer` of them. Neither Tracr nor jax is needed; where
they are, this is all that it takes:

```python
compiled = tracr.compiler.compiling.compile_rasp_to_model(program, vocab={1, 2, 3}, max_seq_len=5,
                                                          compiler_bos="BOS")
unembed = haiku.without_apply_rng(haiku.transform(       # Tracr keeps it inside a closure
    lambda x: compiled.get_compiled_model().unembed(x, use_unembed_argmax=False)))
W_U = unembed.apply({}, numpy.eye(len(compiled.residual_labels), dtype="float32"))
model = from_tracr(compiled.params, W_U, n_heads=compiled.model_config.num_heads)
```
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_sparse.model import HookedSparseTransformer


def from_tracr(
    params: Mapping[str, Mapping[str, Any]],
    unembed: Any,
    *,
    n_heads: int = 1,
    causal: bool = False,
    dtype: torch.dtype = torch.float64,
) -> HookedSparseTransformer:
    """Make a model of a compiled program's parameters, as Haiku names them.

    `unembed` is the matrix from residual channels to outputs; one row of them for each class, or a
    single one that is the answer itself, if the program's answers are numbers. The weights of
    Tracr's patterns are large (scores of 100), hence float64.

    Raises:
        ValueError: If the parameters are not those of a Tracr program, or the sizes do not fit.
    """
    found = {
        f"{module}.{leaf}": torch.tensor(np.asarray(value), dtype=dtype)
        for module, leaves in params.items()
        for leaf, value in leaves.items()
    }
    n_layers = sum(name.endswith("/attn/query.w") for name in found)
    W_U = torch.tensor(np.asarray(unembed), dtype=dtype)
    W_U = W_U[:, None] if W_U.ndim == 1 else W_U
    try:
        state = _as_state_dict(found, n_layers, n_heads)
        state["unembed.W_U"] = W_U
        model = HookedSparseTransformer(_config(state, n_layers, n_heads, causal, dtype))
        state["unembed.b_U"] = torch.zeros(W_U.shape[1], dtype=dtype)
        model.load_state_dict(model.state_dict() | state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"These are not the parameters of a program that Tracr compiled: {error}. Pass "
            "compiled.params, its unembedding and its number of heads."
        ) from None
    return model


def _config(
    state: Mapping[str, Tensor], n_layers: int, n_heads: int, causal: bool, dtype: torch.dtype
) -> dict[str, Any]:
    n_ctx, d_model = state["pos_embed.W_pos"].shape
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": state["blocks.0.attn.W_Q"].shape[-1],
        "d_mlp": state["blocks.0.mlp.W_in"].shape[-1],
        "n_ctx": n_ctx,
        "d_vocab": len(state["embed.W_E"]),
        "d_vocab_out": state["unembed.W_U"].shape[1],
        "act_fn": "relu",
        "normalization_type": None,
        "attention_dir": "causal" if causal else "bidirectional",
        "dtype": dtype,
        "device": "cpu",
    }


def _as_state_dict(found: Mapping[str, Tensor], n_layers: int, n_heads: int) -> dict[str, Tensor]:
    """Give Haiku's parameters under TransformerLens' names and in its shapes."""
    state = {
        "embed.W_E": found["token_embed.embeddings"],
        "pos_embed.W_pos": found["pos_embed.embeddings"],
    }
    for layer in range(n_layers):
        theirs, ours = f"transformer/layer_{layer}", f"blocks.{layer}"
        for name, letter in (("query", "Q"), ("key", "K"), ("value", "V")):
            w, b = (found[f"{theirs}/attn/{name}.{leaf}"] for leaf in "wb")
            state[f"{ours}.attn.W_{letter}"] = w.unflatten(1, (n_heads, -1)).transpose(0, 1)
            state[f"{ours}.attn.b_{letter}"] = b.unflatten(0, (n_heads, -1))
        out = found[f"{theirs}/attn/linear.w"]
        state[f"{ours}.attn.W_O"] = out.unflatten(0, (n_heads, -1))
        state[f"{ours}.attn.b_O"] = found[f"{theirs}/attn/linear.b"]
        for name, end in (("linear_1", "in"), ("linear_2", "out")):
            state[f"{ours}.mlp.W_{end}"] = found[f"{theirs}/mlp/{name}.w"]
            state[f"{ours}.mlp.b_{end}"] = found[f"{theirs}/mlp/{name}.b"]
    return state
