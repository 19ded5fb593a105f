"""A node of the sparse model moved in the dense one (Gao et al. 2025, A.4).

The node is a channel that attention or an MLP reads, at `attn_in` or `mlp_in`, behind the norm.
Bridges join the streams before the norm, whose sizes differ, so the bridge is rescaled first:

1. delta = the node's activation on a counterfactual prompt minus that on the prompt, at each token;
2. row = the node's row of the decoder of its site, x rms_sparse / rms_dense, the sizes of the two
   residual streams there (root mean squares over reference text, noted in the bridges; LayerNorm
   takes the mean over channels away, so for it that of sizes and row is taken away too);
3. push = delta x row, an outer product, [pos, d_dense]: strength x push is added to what the dense
   model's sublayer reads, behind its norm (`blocks.l.ln1.hook_normalized`, or ln2).

Several nodes of one site move together: their pushes are added up. The paper moves one.

At strength 1, between a model and its copy, this is patching the node. The paper does not say where
exactly the push is added. `into="residual"` adds it to the dense residual stream before the norm,
scaled by rms_sparse alone, so that what follows the sublayer sees it too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.bridges.hybrids import as_normed, check_models, site_hooks
from tl_sparse.bridges.modules import Bridges
from tl_sparse.nodes import Node, Site
from tl_sparse.rules import checks_itself, choice
from tl_sparse.sites import site_map

Into = Literal["read", "residual"]

READS = {"attn_in": (0, "ln1"), "mlp_in": (1, "ln2")}
"""The sites of nodes that can be steered by: which site of their layer they read, and its norm."""


@torch.no_grad()
@checks_itself
def steer(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    node: Node | Sequence[Node],
    tokens: Int[Tensor, "batch pos"],
    counterfactual: Int[Tensor, "batch pos"],
    *,
    strength: float = 1.0,
    into: Into = "read",
) -> Float[Tensor, "batch pos d_vocab"]:
    """Run the dense model with a node of the sparse one moved towards a counterfactual.

    Several nodes of one site are moved together.

    Raises:
        ValueError: If the models and bridges do not fit, or the node is none that is read.
    """
    push = steering_push(dense, sparse, bridges, node, tokens, counterfactual, into=into)
    with pushed(dense, nodes_of(node)[0].site, strength * push, into):
        return dense(tokens)


@torch.no_grad()
@checks_itself
def steering_push(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    node: Node | Sequence[Node],
    tokens: Int[Tensor, "batch pos"],
    counterfactual: Int[Tensor, "batch pos"],
    *,
    into: Into = "read",
) -> Float[Tensor, "batch pos d_dense"]:
    """Give what strength 1 adds in the dense model at each token.

    Raises:
        ValueError: If the models and bridges do not fit, the node is none that is read, or the two
            token tensors differ in shape.
    """
    nodes = check_steering(dense, sparse, bridges, node, into)
    if tokens.shape != counterfactual.shape:
        raise ValueError(
            "Prompt and counterfactual are compared token by token, so they need one shape, got "
            f"{tuple(tokens.shape)} and {tuple(counterfactual.shape)}."
        )
    rows = decoder_rows(dense, bridges, nodes[0].site, into)
    return node_changes(sparse, nodes, tokens, counterfactual) @ rows[[n.channel for n in nodes]]


@contextmanager
def pushed(
    dense: HookedTransformer, site: Site, push: Float[Tensor, "batch pos d_dense"], into: Into
) -> Iterator[None]:
    """Add something in the dense model where a site's pushes belong, inside a `with` block."""
    name = read_hook(site)
    if into == "residual":
        name = site_hooks(dense)[2 * site.layer + READS[site.name][0]]
    with dense.hooks(fwd_hooks=[(name, partial(_add, push))]), fast_attention(dense):
        yield


def read_hook(site: Site) -> str:
    """Give the dense model's hook point where it reads what the sparse model reads at a site."""
    return f"blocks.{site.layer}.{READS[site.name][1]}.hook_normalized"


def _add(push: Tensor, activation: Tensor, hook: Any) -> Tensor:
    # With cfg.use_split_qkv_input each head has a copy of what it reads.
    return activation + (push if activation.ndim == push.ndim else push[:, :, None])


@torch.no_grad()
def node_changes(
    sparse: HookedTransformer,
    nodes: Sequence[Node],
    tokens: Int[Tensor, "batch pos"],
    counterfactual: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos node"]:
    """Give activations on the counterfactual minus those on the prompt, at each token."""
    site, channels = nodes[0].site, [node.channel for node in nodes]
    name, found = site_map(sparse)[site].hook_name, []
    with fast_attention(sparse):
        for some in (counterfactual, tokens):
            with sparse.hooks(fwd_hooks=[(name, partial(_note, found, channels))]):
                sparse(some, stop_at_layer=site.layer + 1)
    return found[0] - found[-1]


def _note(found: list[Tensor], channels: list[int], activation: Tensor, hook: Any) -> None:
    found.append(activation[..., channels])


def nodes_of(node: Node | Sequence[Node]) -> tuple[Node, ...]:
    """Give one node or several as a tuple."""
    return (node,) if isinstance(node, Node) else tuple(node)


def decoder_rows(
    dense: HookedTransformer, bridges: Bridges, site: Site, into: Into
) -> Float[Tensor, "d_sparse d_dense"]:
    """Give the decoder in front of a read, rescaled for where its rows are added."""
    index = 2 * site.layer + READS[site.name][0]
    rows = bridges[index].W_dec.detach() * bridges.rms_sparse[index]
    return as_normed(dense, rows) / bridges.rms_dense[index] if into == "read" else rows


@checks_itself
def check_steering(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    node: Node | Sequence[Node],
    into: Into,
) -> tuple[Node, ...]:
    """Check that a node of the sparse model, or several, can steer the dense one; give them.

    Raises:
        ValueError: If the models and bridges do not fit, a node is none that is read, or several
            are not of one site.
    """
    choice("read", "residual").check("into", into)
    check_models(dense, sparse)
    bridges.check(dense, sparse)
    nodes = nodes_of(node)
    if len({n.site for n in nodes}) != 1 or len(set(nodes)) < len(nodes):
        raise ValueError(
            "Nodes that steer together are one or more different ones of one site, such as "
            f"1.attn_in; got {', '.join(map(str, nodes)) or 'none'}."
        )
    for one in nodes:
        _check_node(sparse, one)
    if bridges.rms_sparse.isnan().any() or bridges.rms_dense.isnan().any():
        raise ValueError(
            "These bridges do not know the sizes of the residual streams. Measure them: "
            "bridges.note_sizes_(bridge_losses(dense, sparse, bridges, tokens, "
            "bridges.config).mean_squares)."
        )
    _check_reads(dense, sparse, into)
    return nodes


def _check_node(sparse: HookedTransformer, node: Node) -> None:
    n_layers, d_model = sparse.cfg.n_layers, sparse.cfg.d_model
    if node.site.name not in READS or not node.site.layer < n_layers:
        raise ValueError(
            f"{node} can't steer: bridges stand where attention and MLPs read. Choose a node at "
            f"attn_in or mlp_in of a layer below {n_layers}."
        )
    if not node.channel < d_model:
        raise ValueError(
            f"{node} is no channel of the residual stream, which has {d_model}; a bridge has no "
            "row for a position channel."
        )


def _check_reads(dense: HookedTransformer, sparse: HookedTransformer, into: Into) -> None:
    if sparse.cfg.use_split_qkv_input or sparse.cfg.use_attn_in:
        raise ValueError(
            "With use_split_qkv_input or use_attn_in each head of the sparse model reads a copy of "
            "its own, and a node has no one activation. Switch them off."
        )
    if sparse.cfg.normalization_type in ("LN", "RMS"):
        raise ValueError(
            "The sparse model's norms have gains, which its nodes' activations hold and its "
            'bridges do not. Use normalization_type="RMSPre".'
        )
    if into == "read" and dense.cfg.normalization_type is None:
        raise ValueError(
            'The dense model has no norms, so nothing is read behind one. Use into="residual".'
        )
