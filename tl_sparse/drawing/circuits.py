"""A circuit drawn as inline SVG: a pure function from data to text.

`draw_circuit` puts the stages of the forward pass side by side, from tokens to answer logits:

1. a box for each node, each residual channel's tokens and each answer; columns only where there are
   nodes; a link that passes columns takes an invisible place in each of them;
2. order within a column: sweeps to the mean place of what a box is linked to (the barycentre
   heuristic of layered graph drawing), so that few links cross;
3. heights: as near to that mean as order and gaps allow (least squares, by pooling neighbours);
4. links as curves, blue for positive and orange for negative weights, as wide as |weight|.

The SVG carries no script, no address and no namespace: it is for the inside of an HTML page, whose
CSS variables (`--positive`, `--negative`, `--ink`, `--soft`, `--line`, `--paper`, `--band`) colour
it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tl_sparse.circuit import Circuit, Edge, Node
from tl_sparse.drawing.sheet import COLUMN_ORDER, Box, Link, Sheet, signed
from tl_sparse.wording import visible


def draw_circuit(
    circuit: Circuit,
    *,
    residual: Sequence[tuple[Node, Node]] = (),
    tokens: Mapping[int, Sequence[tuple[str, float]]] | None = None,
    logits: Sequence[tuple[Node, str, float]] = (),
    d_head: int | None = None,
    d_model: int | None = None,
    max_edges: int = 500,
    importance: Mapping[Edge, float] | None = None,
) -> str:
    """Draw a circuit, from the tokens to the answer logits.

    `residual` pairs writes with the later reads of their channel, `tokens` gives the tokens (or
    positions) to show for a channel with their weights, and `logits` the weights from nodes to
    answers. `d_head` lets q, k, v be named by head and `d_model` position channels, which come
    after it. Of a larger circuit `max_edges` are drawn, with what they join: the largest weights,
    or those of the most `importance`.
    """
    rank = importance or {edge: abs(edge.weight) for edge in circuit.edges}
    edges = sorted(circuit.edges, key=lambda e: -rank[e])[:max_edges]
    nodes = circuit.nodes
    if len(edges) < circuit.n_edges:
        joined = {node for edge in edges for node in (edge.source, edge.target)}
        nodes = tuple(node for node in nodes if node in joined)
    shown = set(nodes)
    boxes = {str(node): _node_box(node, d_head, d_model) for node in nodes}
    links = [Link(str(e.source), str(e.target), e.weight, "edge") for e in edges]
    links += [
        Link(str(a), str(b), None, "residual") for a, b in residual if a in shown and b in shown
    ]
    links += _looks(nodes, d_head)
    for channel, some in (tokens or {}).items():
        reads = [n for n in nodes if n.channel == channel and n.site.name in ("attn_in", "mlp_in")]
        if reads and some:
            lines = tuple(f"{visible(text)[:14]} {signed(weight)}" for text, weight in some)
            title = f"what stands in channel {channel} at first: " + ", ".join(lines)
            name = f"tokens.{channel}"
            boxes[name] = Box(name, (-1, 0, "tokens"), lines, "token", title)
            links += [Link(name, str(read), None, "token") for read in reads]
    for node, answer, weight in logits:
        if node in shown and weight:
            name, text = f"logit.{answer}", visible(answer)[:16]
            last = (10**6, 0, "logits")
            boxes.setdefault(name, Box(name, last, (text,), "logit", f"logit of {answer}"))
            links.append(Link(str(node), name, weight, "logit"))
    if not boxes:
        return "<p>The circuit has no nodes.</p>"
    left_out = circuit.n_edges - len(edges)
    which = "largest" if importance is None else "most needed"
    words = f" The {len(edges)} {which} of {circuit.n_edges:,} edges are drawn." if left_out else ""
    title = f"Circuit of {circuit.task}: {circuit.n_nodes} nodes, {circuit.n_edges} edges.{words}"
    return Sheet(boxes, links).svg(title, words.strip())


def _node_box(node: Node, d_head: int | None, d_model: int | None) -> Box:
    site, channel = node.site.name, node.channel
    order = COLUMN_ORDER.index("qk" if site in ("q", "k") else site)
    column = (node.site.layer, order, COLUMN_ORDER[order])
    label = f"channel {channel}"
    if site in ("q", "k", "v"):
        label = f"{site} {channel}"
        if d_head is not None:
            label = f"H{channel // d_head} {site}{channel % d_head}"
    elif site == "mlp_neuron":
        label = f"neuron {channel}"
    elif d_model is not None and channel >= d_model:
        label = f"position channel {channel - d_model}"
    kind = "read" if site.endswith("_in") else "write" if site.endswith("_out") else "inner"
    return Box(str(node), column, (label,), kind, f"layer {node.site.layer}, {site}, {label}")


def _looks(nodes: Sequence[Node], d_head: int | None) -> list[Link]:
    """Join the q and k of a head with its v: they choose the positions that v is taken from."""
    if d_head is None:
        return []
    heads = defaultdict(lambda: ([], []))
    for node in nodes:
        if node.site.name in ("q", "k", "v"):
            heads[node.site.layer, node.channel // d_head][node.site.name == "v"].append(node)
    return [Link(str(a), str(b), None, "look") for qk, v in heads.values() for a in qk for b in v]
