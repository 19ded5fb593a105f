"""A sparse transformer in forty lines of plain torch, and cut by hand: oracles of several tests."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tl_sparse.circuit import Circuit, Node, Site
from tl_sparse.config import SparsityConfig
from tl_sparse.sites import Joint, joint_matrix, site_map


def keep_largest(x: Tensor, density: float) -> Tensor:
    """AbsTopK by sorting, for the oracle below."""
    k = int(density * x.shape[-1] + 1e-9)
    order = x.abs().argsort(dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(x).scatter(-1, order, x.gather(-1, order))


def plain_forward(
    p: dict[str, Tensor],
    tokens: Tensor,
    s: SparsityConfig,
    cfg: dict[str, Any],
    at: Callable[[int, str, Tensor], Tensor] = lambda layer, site, x: x,
    between: Callable[[int, str, Tensor], Tensor] = lambda layer, place, x: x,
    cuts: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """The whole network in plain torch from a dict of parameters: no code of ours or the host's.

    `at` may change what stands at a site of a layer, all its nodes on the last axis; `between` what
    stands at `resid_pre`, `resid_mid`, `pattern` (batch head_index query_pos key_pos) and `z`
    (batch pos head_index d_head). `cuts` gives for a weight which of its entries are kept, as
    (source, target), and the value that a target sees of each source where they are not, one
    number or one for each [batch, pos].
    """
    cuts = cuts or {}

    def product(x, name, w):
        """x @ w with each target looking at its own copy of the sources; w as (source, target)."""
        if name not in cuts:
            return x @ w
        keep, value = cuts[name]
        seen = torch.where(keep, x[..., :, None], value[..., :, None])
        return (seen * w).sum(-2)

    def norm(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    def beside(x):
        if "positions.table" not in p:
            return x
        return torch.cat([x, norm(p["positions.table"][:n]).expand(len(x), -1, -1)], -1)

    n, heads, d_head = tokens.shape[1], cfg["d_model"] // cfg["d_head"], cfg["d_head"]
    x = p["embed.W_E"][tokens] + p["pos_embed.W_pos"][:n]
    for layer in range(cfg["n_layers"]):
        x = between(layer, "resid_pre", x)
        a = {k.split(".", 2)[2]: v for k, v in p.items() if k.startswith(f"blocks.{layer}.")}
        read = at(layer, "attn_in", keep_largest(beside(norm(x)), s.site_density("attn_in")))
        qkv = {}
        for c in "QKV":
            w = a[f"attn.W_{c}"].transpose(0, 1).flatten(1)
            flat = product(read, f"blocks.{layer}.attn.W_{c}", w) + a[f"attn.b_{c}"].flatten()
            flat = at(layer, c.lower(), keep_largest(flat, s.site_density(c.lower())))
            qkv[c] = flat.unflatten(-1, (heads, d_head))
        scores = torch.einsum("bqhd,bkhd->bhqk", qkv["Q"], qkv["K"]) / d_head**0.5
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
        sink = a["attn.sinks"][None, :, None, None].expand(len(tokens), -1, n, 1)
        pattern = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        pattern = between(layer, "pattern", pattern)
        z = between(layer, "z", torch.einsum("bhqk,bkhd->bqhd", pattern, qkv["V"]))
        out = torch.einsum("bqhd,hdm->bqm", z, a["attn.W_O"]) + a["attn.b_O"]
        if f"blocks.{layer}.attn.W_O" in cuts:  # the cut is before the pattern: on the values
            keep, value = cuts[f"blocks.{layer}.attn.W_O"]
            keep, value = keep.unflatten(0, (heads, d_head)), value.unflatten(-1, (heads, d_head))
            seen = torch.where(keep, qkv["V"][..., None], value[..., None]) * a["attn.W_O"]
            out = torch.einsum("bhqk,bkhm->bqm", pattern, seen.sum(-2)) + a["attn.b_O"]
        x = x + at(layer, "attn_out", keep_largest(out, s.site_density("attn_out")))
        x = between(layer, "resid_mid", x)
        read = at(layer, "mlp_in", keep_largest(beside(norm(x)), s.site_density("mlp_in")))
        pre = product(read, f"blocks.{layer}.mlp.W_in", a["mlp.W_in"]) + a["mlp.b_in"]
        post = torch.nn.functional.gelu(pre)
        post = at(layer, "mlp_neuron", keep_largest(post, s.site_density("mlp_neuron")))
        out = product(post, f"blocks.{layer}.mlp.W_out", a["mlp.W_out"]) + a["mlp.b_out"]
        x = x + at(layer, "mlp_out", keep_largest(out, s.site_density("mlp_out")))
    logits = norm(x) @ p["unembed.W_U"] + p["unembed.b_U"]
    return logits + p["bigram.table"][tokens] if "bigram.table" in p else logits


def plain_parameters(model: Any) -> dict[str, Tensor]:
    """The parameters of a model by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def plain_cut(
    model: Any,
    tokens: Tensor,
    nodes: Mapping[Site, Tensor],
    edges: Mapping[Joint, Tensor],
    values: Mapping[Site, Tensor],
    shape: dict[str, Any],
) -> Tensor:
    """The plain network with nodes out and edges cut (gates of 0 and 1), at given values."""

    def at(layer: int, name: str, x: Tensor) -> Tensor:
        site = Site(layer, name)
        return torch.where(nodes[site].bool(), x, values[site]) if site in nodes else x

    cuts = {joint.weight: (gate.bool(), values[joint.source]) for joint, gate in edges.items()}
    return plain_forward(plain_parameters(model), tokens, model.sparsity, shape, at, cuts=cuts)


def plain_circuit(
    model: Any, tokens: Tensor, circuit: Circuit, kept: set[Node], shape: dict[str, Any]
) -> Tensor:
    """The plain network with a circuit's edges and the nodes `kept` left in, one by one."""
    edges = {(e.source, e.target) for e in circuit.edges}
    dtype = next(model.parameters()).dtype
    values = {site: torch.tensor(v, dtype=dtype) for site, v in circuit.references.items()}
    nodes = {
        site: torch.tensor([Node(site, c) in kept for c in range(len(v))])
        for site, v in values.items()
    }
    gates = {}
    for joint in site_map(model).joints:
        gate = torch.ones(joint_matrix(model, joint).shape, dtype=torch.bool)
        for s, t in gate.nonzero().tolist():
            ends = Node(joint.source, s), Node(joint.target, t)
            gate[s, t] = ends in edges or not set(ends) <= kept  # live towards what is out
        gates[joint] = gate
    return plain_cut(model, tokens, nodes, gates, values, shape)
