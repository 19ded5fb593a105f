"""Sites, nodes and edges: what a circuit is a set of.

A **node** is one channel of one **site** (a place in a layer, DESIGN's and the paper's "location");
an **edge** is one nonzero weight that joins two nodes. All three are tuples that can be compared
and written as text, and know no model.
"""

from typing import Any, NamedTuple

SITES = ("attn_in", "q", "k", "v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out", "final_in")
"""Every site, in the order of the forward pass. `final_in` is the input of the unembedding."""

WRITE_SITES = frozenset({"attn_out", "mlp_out"})
"""Sites whose nodes are added to the residual stream."""


class Site(NamedTuple):
    """A place where nodes live: a site's name in one layer."""

    layer: int
    name: str

    def __str__(self) -> str:
        """Write as `0.mlp_neuron`."""
        return f"{self.layer}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `0.mlp_neuron` back; anything else is a `ValueError`."""
        layer, _, name = text.partition(".")
        if not layer.isdigit() or name not in SITES:
            raise ValueError(f"A site is written layer.name, e.g. 0.mlp_neuron; got {text!r}.")
        return cls(int(layer), name)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: the order of the forward pass."""
        return self.layer, SITES.index(self.name)


class Node(NamedTuple):
    """One channel of one site, the same at every position.

    Examples:
        >>> str(Node(Site(0, "mlp_neuron"), 31)), Node.parse("1.attn_in.7").channel
        ('0.mlp_neuron.31', 7)
    """

    site: Site
    channel: int

    def __str__(self) -> str:
        """Write as `0.mlp_neuron.31`."""
        return f"{self.site}.{self.channel}"

    @classmethod
    def parse(cls, text: str) -> "Node":
        """Read `0.mlp_neuron.31` back; anything else is a `ValueError`."""
        site, _, channel = text.rpartition(".")
        if not channel.isdigit():
            raise ValueError(f"A node is written layer.site.channel, got {text!r}.")
        return cls(Site.parse(site), int(channel))


class Edge(NamedTuple):
    """One nonzero weight from a source node to a target node.

    For q, k, v the channel of a node counts through the heads: head x d_head + channel in the head.
    """

    source: Node
    target: Node
    weight: float

    def __str__(self) -> str:
        """Write as `0.mlp_in.5 -> 0.mlp_neuron.31 (+1.25)`."""
        return f"{self.source} -> {self.target} ({self.weight:+.3g})"


def edge_order(edge: Edge) -> tuple[Any, ...]:
    """Sort key of edges: by target, then source, in the order of the forward pass."""
    return (
        *edge.target.site.order,
        edge.target.channel,
        *edge.source.site.order,
        edge.source.channel,
    )
