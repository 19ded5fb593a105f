"""`to_mib`: a circuit as a graph of heads and MLPs, in the JSON of MIB and EAP-IG.

Components are the whole input, each head, each MLP and the logits; an edge leads from one to a
later one (to a head's q, k or v) through the residual stream. EAP-IG's `Graph.from_json` reads the
file and MIB's evaluation takes it as a submission.

An edge is in the graph if a channel of the stream carries something of its source to its target:

- a **head** writes the channels of the attn_out nodes that a kept edge from its v leads to, and
  reads, as q, k or v, the attn_in channels that a kept edge to its q, k or v begins in;
- an **MLP** writes its mlp_out nodes' channels and reads those mlp_in nodes with a kept edge;
- the **input** writes the channels in which some token's embedding is not 0 (positions are left
  out: they are the same in every prompt);
- the **logits** read the channels in which W_U is not 0; if the final read is masked, those of its
  kept nodes.

The score is the number of such channels. A component without a kept write is out of the graph, with
all its edges. Single weights are lost on the way: this is for comparison with methods that go no
deeper.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformer_lens import HookedTransformer

from tl_sparse.circuit import Circuit
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.files import write_text
from tl_sparse.interface import running_part

Channels = dict[str, set[int]]
"""Channels of the residual stream, by component; a head's reads as `a0.h1<q>`."""


def to_mib(circuit: Circuit, model: HookedTransformer, path: str | Path) -> None:
    """Write a circuit as the graph of heads and MLPs of MIB and EAP-IG, whole or not at all.

    Raises:
        ValueError: If the circuit does not fit the model.
        OSError: If the file can't be written.
    """
    write_text(path, json.dumps(mib_graph(circuit, model), allow_nan=False))


def mib_graph(circuit: Circuit, model: HookedTransformer) -> dict[str, Any]:
    """Give `to_mib`'s graph as plain data: `cfg`, `nodes`, `edges`."""
    check_circuit(circuit, model, resampling=True)
    cfg = model.cfg
    writes, reads = _channels(running_part(circuit, model), model)
    edges = {}
    for source, target in _component_edges(cfg.n_layers, cfg.n_heads):
        component = target.partition("<")[0]
        alive = bool(writes[source]) and (component == "logits" or bool(writes[component]))
        score = len(writes[source] & reads[target]) if alive else 0
        edges[f"{source}->{target}"] = {"score": float(score), "in_graph": score > 0}
    components = ["input", *_sources(cfg.n_layers, cfg.n_heads), "logits"]
    return {
        "cfg": {
            "n_layers": cfg.n_layers,
            "n_heads": cfg.n_heads,
            "parallel_attn_mlp": cfg.parallel_attn_mlp,
            "d_model": cfg.d_model,
        },
        "nodes": {
            name: {"in_graph": name in ("input", "logits") or bool(writes[name])}
            for name in components
        },
        "edges": edges,
    }


def _channels(circuit: Circuit, model: HookedTransformer) -> tuple[Channels, Channels]:
    """Give the channels that each component writes and reads."""
    writes: Channels = defaultdict(set)
    reads: Channels = defaultdict(set)
    d_head, d_model = model.cfg.d_head, model.cfg.d_model
    for source, target, _ in circuit.edges:
        layer, site = target.site
        if site in ("q", "k", "v") and source.channel < d_model:
            reads[f"a{layer}.h{target.channel // d_head}<{site}>"].add(source.channel)
        elif site == "attn_out":
            writes[f"a{layer}.h{source.channel // d_head}"].add(target.channel)
        elif site == "mlp_neuron" and source.channel < d_model:
            reads[f"m{layer}"].add(source.channel)
        elif site == "mlp_out":
            writes[f"m{layer}"].add(target.channel)
    embedded = (model.embed.W_E.detach() != 0).any(0)
    unembedded = (model.unembed.W_U.detach() != 0).any(1)
    writes["input"] = set(embedded.nonzero().flatten().tolist())
    reads["logits"] = set(unembedded.nonzero().flatten().tolist())
    final = {node.channel for node in circuit.nodes if node.site.name == "final_in"}
    if final:
        reads["logits"] &= final
    return writes, reads


def _sources(n_layers: int, n_heads: int) -> list[str]:
    """Name the heads and MLPs in the order of the forward pass."""
    names = []
    for layer in range(n_layers):
        names += [f"a{layer}.h{head}" for head in range(n_heads)] + [f"m{layer}"]
    return names


def _component_edges(n_layers: int, n_heads: int) -> list[tuple[str, str]]:
    """Give every edge that there can be, as (source, target), in EAP-IG's order."""
    edges, before = [], ["input"]
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        edges += [(s, f"{head}<{part}>") for s in before for head in heads for part in "qkv"]
        before += heads
        edges += [(s, f"m{layer}") for s in before]
        before.append(f"m{layer}")
    return edges + [(s, "logits") for s in before]
