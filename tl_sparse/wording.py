"""The words for a circuit: an `Explanation` is plain data, and `str` makes it a text.

`tl_sparse.explain` looks the weights up and fills the data classes in. The text goes through the
forward pass, sublayer by sublayer: what is read, what is computed from it, what is written, and
what the logits make of it.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from tl_sparse.nodes import WRITE_SITES, Node
from tl_sparse.sites import READ_SITES

Weighted = tuple[str, float]
"""A token, an answer or a node, as text, and the weight that goes with it."""

_SUBLAYER = {"attn_in": "attention", "q": "attention", "k": "attention", "v": "attention",
             "attn_out": "attention", "mlp_in": "MLP", "mlp_neuron": "MLP",
             "mlp_out": "MLP"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExplainedNode:
    """One kept node and all that joins it to others."""

    node: str
    """As in the circuit's file, e.g. `0.mlp_neuron.31`."""
    layer: int
    site: str
    channel: int
    """For q, k, v it counts through the heads: head x d_head + channel in the head."""
    position_channel: int | None = None
    """Of a read that is not of the residual stream: its column in the table of positions; `highest`
    and `lowest` then name positions."""
    head: int | None = None
    reference: float
    """What it would be set to outside the circuit."""
    inputs: tuple[Weighted, ...] = ()
    """Kept edges that end here: source node and weight."""
    outputs: tuple[Weighted, ...] = ()
    """Kept edges that begin here: target node and weight."""
    bias: float = 0.0
    constant: float = 0.0
    """What arrives through weights that are not edges of the circuit: the sum of weight x reference
    of the source. Into attn_out it is multiplied by the pattern's row sum (1 without sinks)."""
    gain: float = 1.0
    """A read's gain in the norm before it."""
    highest: tuple[Weighted, ...] = ()
    """Of a read: the tokens with the largest positive embedding in its channel."""
    lowest: tuple[Weighted, ...] = ()
    """Of a read: the tokens with the largest negative embedding in its channel."""
    n_tokens: int = 0
    """Of a read: how many tokens have a nonzero embedding in its channel."""
    task_tokens: tuple[Weighted, ...] = ()
    """Of a read: the embeddings of the tokens in which the prompts of the task's pairs differ."""
    written_by: tuple[str, ...] = ()
    """Of a read: kept nodes of earlier sublayers that write its channel."""
    read_by: tuple[str, ...] = ()
    """Of a write: kept nodes of later sublayers that read its channel."""
    logits: tuple[Weighted, ...] = ()
    """Of what the unembedding reads: its weight to each answer's logit, last gain included."""
    raises: tuple[Weighted, ...] = ()
    """Of what the unembedding reads: the tokens that it raises most."""
    lowers: tuple[Weighted, ...] = ()
    """Of what the unembedding reads: the tokens that it lowers most."""


@dataclass(frozen=True, kw_only=True)
class ExplainedHead:
    """Where a head looks: score = (sum over channels of q x k) / scale, then a softmax."""

    layer: int
    head: int
    scale: float
    channels: tuple[tuple[int, float | None, float | None], ...]
    """Each channel in the head whose q or k is in the circuit, and the constant that q and k are
    held at; None where it is in the circuit."""
    constant_score: float
    """The score that all other channels add, the same for every pair of positions."""
    sink: float | None
    """A logit that joins the softmax and takes its share of attention away; None without sinks."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A circuit in words. `str` gives the text, `render(max_edges=None)` the whole of it."""

    task: str
    n_nodes: int
    n_edges: int
    answers: tuple[str, ...]
    """The task's answer tokens; effects on the logits are in this order."""
    act_fn: str
    d_head: int
    d_model: int
    """Reads of channels from here on are of position channels."""
    nodes: tuple[ExplainedNode, ...] = field(repr=False)
    heads: tuple[ExplainedHead, ...] = field(repr=False)
    notes: tuple[str, ...] = field(repr=False)
    """What happens between the steps that the text names."""

    def rows(self) -> list[dict[str, Any]]:
        """Give a table: one row for each step from a token or node to the next.

        `kind` is "embedding" (W_E), "position" (the table of positions), "edge" (a weight of the
        circuit), "residual" (the identity: no weight) or "unembedding" (W_U); of the first two only
        the tokens and positions that the text names.
        """
        rows = []
        for node in self.nodes:
            tokens = dict(node.task_tokens + node.highest + node.lowest)
            kind = "embedding" if node.position_channel is None else "position"
            here = [(kind, token, None, weight) for token, weight in tokens.items() if weight]
            here += [("residual", *_place(source), None) for source in node.written_by]
            here += [("edge", *_place(source), weight) for source, weight in node.inputs]
            rows += [_row(*source, *_place(node.node)) for source in here]
            rows += [
                _row("unembedding", *_place(node.node), weight, f"logit {answer}", None)
                for answer, weight in node.logits
                if weight
            ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Give the whole as plain data, ready for JSON."""
        return asdict(self)

    def render(self, *, max_edges: int | None = 200) -> str:
        """Write the text, with no more than the `max_edges` largest of the circuit's weights."""
        return "\n".join(_Text(self, max_edges).lines())

    def __str__(self) -> str:
        """Give the text, of at most 200 edges."""
        return self.render()


def _place(node: str) -> tuple[str, int]:
    """Split `0.mlp_neuron.31` into site and channel."""
    site, _, channel = node.rpartition(".")
    return site, int(channel)


def _row(
    kind: str,
    source: str,
    source_channel: int | None,
    weight: float | None,
    target: str,
    target_channel: int | None,
) -> dict[str, Any]:
    return {"kind": kind, "source": source, "source_channel": source_channel, "weight": weight,
            "target": target, "target_channel": target_channel}  # fmt: skip


def visible(text: str) -> str:
    r"""Write characters that can't be seen or that turn the line round as their escapes.

    Examples:
        >>> visible("a\0\u202eb")
        'a\\x00\\u202eb'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def escape(text: str) -> str:
    """Make any text safe inside HTML and SVG, in an element or in a quoted attribute."""
    return html.escape(visible(text), quote=True)


class _Text:
    """Writes an explanation as lines, in the order of the forward pass."""

    def __init__(self, about: Explanation, max_edges: int | None) -> None:
        edges = [(abs(w), node.node, source) for node in about.nodes for source, w in node.inputs]
        shown = sorted(edges, reverse=True)[:max_edges]
        self.about, self.n_left_out = about, len(edges) - len(shown)
        self.shown = {(source, target) for _, target, source in shown}
        self.joined = {name for pair in self.shown for name in pair}

    def lines(self) -> list[str]:
        about = self.about
        lines = [f"{about.task}: {about.n_nodes} nodes, {about.n_edges} edges"]
        if about.answers:
            lines.append(f"answers: {' or '.join(about.answers)}")
        if self.n_left_out:
            lines.append(
                f"The {len(self.shown):,} largest of its edges are written out; "
                f"{self.n_left_out:,} are left out of this text (the data has them)."
            )
        nodes = [n for n in about.nodes if not self.n_left_out or n.node in self.joined]
        for (layer, name), some in groupby(nodes, key=lambda n: (n.layer, _SUBLAYER.get(n.site))):
            lines += ["", f"layer {layer}, {name}" if name else "final read"]
            lines += self._sublayer(layer, list(some))
        lines += ["", "logits", *self._logits(nodes), ""]
        return lines + [f"* {note}" for note in about.notes]

    def _sublayer(self, layer: int, nodes: list[ExplainedNode]) -> Iterator[str]:
        for node in nodes:
            if node.site in READ_SITES:
                yield from self._read(node)
        heads = {n.head for n in nodes}
        for head in self.about.heads:
            if head.layer == layer and head.head in heads:
                yield f"  head {head.head}"
                yield from self._look(head)
                for node in nodes:
                    if node.head == head.head:
                        yield f"    {self.short(node.node)} = {self._sum(node)}"
        for node in nodes:
            if node.site == "mlp_neuron":
                yield f"  {self.short(node.node)} = {self.about.act_fn}({self._sum(node)})"
        for node in nodes:
            if node.site in WRITE_SITES:
                yield f"  writes channel {node.channel} = {self._sum(node)}"
                if node.read_by:
                    yield f"      read again by {', '.join(node.read_by)}"

    def _read(self, node: ExplainedNode) -> Iterator[str]:
        gain = "" if node.gain == 1 else f", times its gain {node.gain:.3g}"
        position = node.position_channel
        what = f"channel {node.channel}" if position is None else f"position channel {position}"
        yield f"  reads {what}{gain}"
        if node.task_tokens and any(weight for _, weight in node.task_tokens):
            yield f"      tokens that decide the task: {_list(node.task_tokens)}"
        if node.n_tokens:
            yield f"      from the embeddings of {node.n_tokens:,} tokens"
        if node.n_tokens or position is not None:
            for side, some in (("highest", node.highest), ("lowest", node.lowest)):
                if some:
                    yield f"        {side}: {_list(some)}"
        if node.written_by:
            yield f"      written before by {', '.join(map(self.short, node.written_by))}"
        if not node.n_tokens and not node.written_by and position is None:
            yield "      no token's embedding and no kept node writes here"

    def _look(self, head: ExplainedHead) -> Iterator[str]:
        sink = "" if head.sink is None else f", against a sink of {_signed(head.sink)}"
        if not head.channels:
            yield f"    looks at all positions alike (no q or k is in the circuit){sink}"
            return
        terms = []
        for channel, q, k in head.channels:
            q_text = f"q{channel}" if q is None else f"q{channel} held at {_signed(q)}"
            k_text = f"k{channel}" if k is None else f"k{channel} held at {_signed(k)}"
            terms.append(f"[{q_text}] x [{k_text}]")
        rest = f"{_signed(head.constant_score, ' ')} from the rest{sink}"
        yield f"    looks by score = ({' + '.join(terms)}) / {head.scale:.3g} {rest}"

    def _sum(self, node: ExplainedNode) -> str:
        edges = [edge for edge in node.inputs if (edge[0], node.node) in self.shown]
        terms = [f"{_signed(weight, ' ')} x {self.short(source)}" for source, weight in edges]
        if len(edges) < len(node.inputs):
            terms.append(f"+ {len(node.inputs) - len(edges)} more")
        if node.bias:
            terms.append(f"{_signed(node.bias, ' ')} bias")
        if node.constant:
            terms.append(f"{_signed(node.constant, ' ')} from what is held")
        text = " ".join(terms) or "0"
        return "-" + text[2:] if text.startswith("- ") else text.removeprefix("+ ")

    def _logits(self, nodes: list[ExplainedNode]) -> Iterator[str]:
        for node in nodes:
            effects = [weight for _, weight in node.logits]
            if any(effects):
                gap = (
                    f"; difference {_signed(effects[0] - effects[1])}" if len(effects) == 2 else ""
                )
                yield f"  channel {node.channel} ({node.node}): {_list(node.logits)}{gap}"
            elif node.logits:
                yield f"  channel {node.channel} ({node.node}): no weight to the answers"
            elif node.raises or node.lowers:
                yield f"  channel {node.channel} ({node.node}): {_list(node.raises + node.lowers)}"

    def short(self, name: str) -> str:
        """Name a node as in a sentence about its own layer."""
        node = Node.parse(name)
        site, channel = node.site.name, node.channel
        if site in ("q", "k", "v"):
            head, channel = divmod(channel, self.about.d_head)
            return f"{site}{channel}" if site != "v" else f"head {head} v{channel}"
        if site == "mlp_neuron":
            return f"neuron {channel}"
        if channel >= self.about.d_model and site in READ_SITES:
            return f"position channel {channel - self.about.d_model}"
        return f"read {channel}" if site in READ_SITES else name


def _signed(value: float, space: str = "") -> str:
    return f"{'-' if value < 0 else '+'}{space}{abs(value):.3g}"


def _list(some: Sequence[Weighted]) -> str:
    return ", ".join(f"{text} {_signed(weight)}" for text, weight in some)
