"""What is out takes its value on another prompt, and a cut edge shows that value to its target.

Resampling ablation (Chan et al. 2022; in Gao et al. 2025, App. E, both kinds): reference values are
then no constants but tensors [batch, pos, node], measured in a run of the whole model on other
tokens of the same shape. A cut weight W_st adds value_s(batch, pos) W_st to what its target t gets,
before AbsTopK:

- at q, k, v and the MLP that is a matrix product of the other run's sources with the cut weights,
- at W_O the sources are values that attention mixes: the *current* run's pattern mixes the other
  run's v, so the scores are made (eager attention) while edges there are cut.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Site
from tl_sparse.sites import Joint, SiteInfo, SiteMap, seen_by_weights


@torch.no_grad()
def values_on(
    model: HookedTransformer, sites: SiteMap, tokens: Int[Tensor, "batch pos"]
) -> dict[Site, Float[Tensor, "batch pos node"]]:
    """Measure every node in a run of the model on some tokens.

    Raises:
        ValueError: If an activation is NaN or infinite, or there is one for each head.
    """
    found: dict[Site, Tensor] = {}
    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
        (info.hook_name, partial(_note, found, info)) for info in sites.sites
    ]
    with model.hooks(fwd_hooks=hooks):
        model(tokens, return_type=None)
    for site, values in found.items():
        if not torch.isfinite(values).all():
            raise ValueError(
                f"The activations at {site} have NaN or infinite values. Look at the weights: "
                "training may have diverged."
            )
    return found


def _note(found: dict[Site, Tensor], info: SiteInfo, activation: Tensor, hook: Any) -> None:
    if activation.shape[2:] != info.shape:
        raise ValueError(
            f"{info.hook_name} has an activation for each head (cfg.use_split_qkv_input or "
            "use_attn_in), and a node has one value. Switch that off: it changes no logits."
        )
    found[info.site] = activation.detach().flatten(2)


def check_same_shape(activation: Tensor, values: Tensor) -> None:
    """Check that values of another run stand for this run's, prompt by prompt, token by token.

    Raises:
        ValueError: If batch or positions differ.
    """
    here, there = tuple(activation.shape[:2]), tuple(values.shape[:2])
    if here != there:
        raise ValueError(
            f"What is out takes its value from other prompts of {there[0]} x {there[1]} tokens, "
            f"and the model is run on {here[0]} x {here[1]}. Give other prompts of the same shape."
        )


@contextmanager
def values_shown(
    model: HookedTransformer,
    cut: Mapping[Joint, Float[Tensor, "source target"]],
    values: Mapping[Site, Float[Tensor, "... _"]],
) -> Iterator[None]:
    """Show targets, through `cut` weights, their sources' values of another run, in a `with` block.

    Values that are constant, one for each node, are shown at every position. The weights
    themselves are to be zeroed by the caller where they are in `cut`.
    """
    handles: list[Any] = []
    try:
        for joint, weights in cut.items():
            seen = seen_by_weights(model, joint.source, values[joint.source].to(weights))
            block: Any = model.blocks[joint.target.layer]
            if joint.target.name == "attn_out":
                _mix(block.attn, joint.by_row(seen), weights, handles)
                continue
            shown = seen @ weights
            if joint.target.name in ("q", "k", "v"):
                shown = shown.unflatten(-1, (-1, model.cfg.d_head))
                topk = getattr(block.attn, f"topk_{joint.target.name}", None)
                if topk is None:
                    hook_point = getattr(block.attn, f"hook_{joint.target.name}")
                    handles.append(hook_point.register_forward_hook(partial(_add, shown)))
                else:
                    handles.append(topk.register_forward_pre_hook(partial(_add_before, shown)))
            else:
                place = block.mlp.hook_pre if joint.target.name == "mlp_neuron" else block.mlp
                if model.cfg.gated_mlp and joint.weight.endswith("W_in"):
                    place = block.mlp.hook_pre_linear
                handles.append(place.register_forward_hook(partial(_add, shown)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(shown: Tensor, module: Any, inputs: Any, output: Tensor) -> Tensor:
    if shown.ndim > 1:
        check_same_shape(output, shown)
    return output + shown


def _add_before(shown: Tensor, module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    check_same_shape(inputs[0], shown)
    return (inputs[0] + shown,)


def _mix(attention: Any, seen: Tensor, weights: Tensor, handles: list[Any]) -> None:
    """Let an attention's own pattern mix other values, and add what the cut weights make of it.

    The watch is put on at each call, so that it comes after hooks that change the pattern.
    """
    n_heads = attention.cfg.n_heads
    other, by_head = seen.unflatten(-1, (n_heads, -1)), weights.unflatten(0, (n_heads, -1))
    patterns: list[Tensor] = []
    watches: list[Any] = []

    def watch(module: Any, inputs: Any) -> None:
        note = attention.hook_pattern.register_forward_hook(lambda m, i, out: patterns.append(out))
        watches.append(note)
        handles.append(note)

    def add(module: Any, inputs: Any, output: Tensor) -> Tensor:
        watches.pop().remove()
        pattern = patterns.pop()
        check_same_shape(output, seen)
        mixed = torch.einsum("bhqk,bkhd->bqhd", pattern.to(other.dtype), other)
        return output + torch.einsum("bqhd,hdm->bqm", mixed, by_head)

    handles.append(attention.register_forward_pre_hook(watch))
    handles.append(attention.register_forward_hook(add))
