"""What is left of a model: the nodes that are kept and the edges between them, as masks.

The rule for in, out and dropped, in the order of the forward pass:

1. an edge is kept only between kept nodes, and only where the weight is not zero,
2. a kept node that could have in-edges and has none left is *dropped*: it is out. Reads of the
   residual stream have no in-edges by nature and stay; with q and k tied, the pair stays as long as
   one of the two has an in-edge,
3. a weight from a kept node to one that is out stays live and is not counted: it only feeds the
   rivals of AbsTopK.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.coders import Coder
from tl_sparse.sites import (
    READ_SITES,
    Joint,
    SiteMap,
    by_node,
    coders_of,
    joint_matrix,
    site_map,
)


def nonzero_weights(
    model: HookedTransformer, sites: SiteMap
) -> dict[Joint, Bool[Tensor, "source target"]]:
    """Mark, for each joint, the weights that could be edges."""
    return {joint: joint_matrix(model, joint) != 0 for joint in sites.joints}


@dataclass(frozen=True)
class Selection:
    """Kept nodes and kept edges; `settled` makes the two agree."""

    nodes: Mapping[Site, Bool[Tensor, " _"]]
    edges: Mapping[Joint, Bool[Tensor, "source target"]]
    tie_qk: bool = False

    @property
    def n_nodes(self) -> int:
        """Number of kept nodes, `final_in` not counted."""
        return sum(int(kept.sum()) for s, kept in self.nodes.items() if s.name != "final_in")

    @property
    def n_edges(self) -> int:
        """Number of kept edges."""
        return sum(int(kept.sum()) for kept in self.edges.values())

    def settled(self) -> "Selection":
        """Apply the rule: edges between kept nodes only, dropped nodes out."""
        nodes = {site: kept.clone() for site, kept in self.nodes.items()}
        edges: dict[Joint, Tensor] = {}
        fed: dict[Site, Tensor] = {}
        for joint in sorted(self.edges, key=lambda j: j.target.order):
            source, target = joint.source, joint.target
            edges[joint] = self.edges[joint] & nodes[source][:, None] & nodes[target][None, :]
            fed[target] = edges[joint].any(0)
            if target.name not in ("q", "k") or not self.tie_qk:
                nodes[target] &= fed[target]
            elif target.name == "k":
                query = Site(target.layer, "q")
                either = fed[target] | fed[query]
                nodes[target] &= either
                nodes[query] &= either
        return replace(self, nodes=nodes, edges=edges)

    def without(self, nodes: Iterable[Node] = (), edges: Iterable[Edge] = ()) -> "Selection":
        """Take out nodes and edges, and what falls with them."""
        fewer = {site: kept.clone() for site, kept in self.nodes.items()}
        for node in nodes:
            fewer[node.site][node.channel] = False
            if self.tie_qk and node.site.name in ("q", "k"):
                other = Site(node.site.layer, "k" if node.site.name == "q" else "q")
                fewer[other][node.channel] = False
        return replace(self, nodes=fewer, edges=self._with(edges, False)).settled()

    def with_edges(self, edges: Iterable[Edge]) -> "Selection":
        """Add edges, and the nodes at their ends."""
        edges = list(edges)
        more = {site: kept.clone() for site, kept in self.nodes.items()}
        for node in (node for edge in edges for node in (edge.source, edge.target)):
            more[node.site][node.channel] = True
        return replace(self, nodes=more, edges=self._with(edges, True)).settled()

    def _with(self, edges: Iterable[Edge], value: bool) -> dict[Joint, Tensor]:
        changed = {joint: kept.clone() for joint, kept in self.edges.items()}
        by_ends = {(joint.source, joint.target): joint for joint in changed}
        for edge in edges:
            joint = by_ends[edge.source.site, edge.target.site]
            changed[joint][edge.source.channel, edge.target.channel] = value
        return changed

    def node_list(self) -> list[Node]:
        """Give the kept nodes, in the order of the forward pass."""
        return [
            Node(site, channel)
            for site, kept in sorted(self.nodes.items(), key=lambda item: item[0].order)
            for channel in kept.nonzero().flatten().tolist()
        ]

    def edge_list(self, model: HookedTransformer) -> list[Edge]:
        """Give the kept edges with their weights, joint by joint."""
        found = []
        for joint, kept in self.edges.items():
            matrix = joint_matrix(model, joint)
            found += [
                Edge(Node(joint.source, source), Node(joint.target, target), weight)
                for (source, target), weight in zip(
                    kept.nonzero().tolist(), matrix[kept].tolist(), strict=True
                )
            ]
        return found

    def node_gates(self, like: Tensor) -> dict[Site, Float[Tensor, " _"]]:
        """Give 1 for kept and 0 for other nodes, in the type of a tensor."""
        return {site: kept.to(like) for site, kept in self.nodes.items()}

    def edge_gates(
        self, like: Tensor, weights: Mapping[Joint, Tensor]
    ) -> dict[Joint, Float[Tensor, "source target"]]:
        """Give 0 for a cut weight between kept nodes and 1 for all others, where any is cut."""
        gates = {}
        for joint, kept in self.edges.items():
            inside = self.nodes[joint.source][:, None] & self.nodes[joint.target][None, :]
            cut = inside & weights[joint] & ~kept
            if cut.any():
                gates[joint] = (~cut).to(like)
        return gates


def select_nodes(
    nodes: Mapping[Site, Bool[Tensor, " _"]],
    weights: Mapping[Joint, Bool[Tensor, "source target"]],
    *,
    tie_qk: bool = False,
) -> Selection:
    """Keep some nodes and every weight between them; dropped nodes are out."""
    edges = {joint: kept for joint, kept in weights.items() if joint.target in nodes}
    return Selection(dict(nodes), edges, tie_qk).settled()


def interface_counts(
    model: HookedTransformer, channels: Mapping[Site, Sequence[int]]
) -> tuple[int, int]:
    """Count what touches kept nodes but is not an edge: interface weights and biases.

    The first number is the nonzero entries of W_E in the residual channels that kept nodes read and
    of W_U in those that they write; the second the nonzero biases of kept nodes. Position channels
    are no residual channels: no token writes them. A latent reads and writes the channels at which
    its encoder and its decoder are not zero, an error all of them.
    """
    d_model, coders = model.cfg.d_model, coders_of(model)
    reads: set[int] = set()
    writes: set[int] = set()
    for site, kept in channels.items():
        if site.name in ("attn_in", "mlp_in"):
            touched = _touched(coders.get(site), kept, reading=True)
            reads.update(channel for channel in touched if channel < d_model)
        if site.name in ("attn_out", "mlp_out"):
            writes.update(_touched(coders.get(site), kept, reading=False))
    n_in = int((model.embed.W_E.detach()[:, sorted(reads)] != 0).sum())
    n_out = int((model.unembed.W_U.detach()[sorted(writes)] != 0).sum())
    n_biases = 0
    for joint in site_map(model).joints:
        bias = model.get_parameter(joint.bias).detach().flatten()
        if joint.target in coders:
            coder = coders[joint.target]
            bias = by_node(coder.target_bias(bias)[None], 0, coder.n_error)[0]
        n_biases += int((bias[list(channels.get(joint.target, ()))] != 0).sum())
    for site, coder in coders.items():
        latents = [c for c in channels.get(site, ()) if c < coder.n_latents]
        if site.name in READ_SITES:
            n_biases += int((coder.encoder_bias.detach()[latents] != 0).sum())
    return n_in + n_out, n_biases


def _touched(coder: Coder | None, kept: Sequence[int], *, reading: bool) -> Iterable[int]:
    """Give the residual channels that kept nodes read or write."""
    if coder is None:
        return kept
    entries = coder.as_target().T if reading else coder.as_source()
    if any(channel >= coder.n_latents for channel in kept):
        return range(entries.shape[1])
    return (entries[list(kept)] != 0).any(0).nonzero().flatten().tolist()
