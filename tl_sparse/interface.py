"""What joins a circuit to the rest of the model: tokens, logits, and all that is held.

A circuit's edges are the weights between its nodes. Three kinds of weights touch it from outside:

1. **interface weights**, counted beside the edges and never among them (Gao et al. 2025): entries
   of W_E in channels of the residual stream that kept nodes read, by which tokens write into the
   circuit, and entries of W_U in channels that kept nodes write, by which logits read it.
   `interface_weights` lists them;
2. the **residual stream** between its nodes, an identity: `residual_links`, `readout_nodes`;
3. weights from nodes that are held at their reference value: `held_weights`. What flows through
   them is a constant.

Position channels are no channels of the residual stream: no token writes them.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import select_circuit
from tl_sparse.circuit import Circuit, Node
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.nodes import WRITE_SITES
from tl_sparse.sites import READ_SITES, Joint, joint_matrix, site_map
from tl_sparse.tasks.base import PairTask, Task

_MAX_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class InterfaceWeight:
    """One entry of W_E or W_U that touches a circuit."""

    token: int
    text: str
    """The token as text, in Python's quotes."""
    channel: int
    """Channel of the residual stream."""
    value: float
    """The entry itself."""
    effects: tuple[tuple[str, float], ...]
    """The kept nodes at its other end, each with entry x gain of the norm between: of an embedding
    those that read the channel, of an unembedding those whose value the logit gets. (A write is
    without effect where the final read of its channel was masked and is not kept.)"""
    in_task: bool = False
    """Whether the token is one that the task's prompts differ in, or one of its answers."""

    @property
    def size(self) -> float:
        """What the weights are sorted by: the largest effect, as an absolute value."""
        return max((abs(effect) for _, effect in self.effects), default=0.0)


@dataclass(frozen=True, kw_only=True)
class InterfaceWeights:
    """Which tokens write into a circuit and which logits read it, largest first."""

    task: str
    embedding: tuple[InterfaceWeight, ...] = field(repr=False)
    """Entries of W_E in the channels that the circuit reads."""
    unembedding: tuple[InterfaceWeight, ...] = field(repr=False)
    """Entries of W_U in the channels that the circuit writes."""

    def __len__(self) -> int:
        """Count both kinds: `Circuit.n_interface`."""
        return len(self.embedding) + len(self.unembedding)

    def rows(self) -> list[dict[str, Any]]:
        """Give a table, one row for each entry: `kind` is "embedding" or "unembedding"."""
        kinds = {"embedding": self.embedding, "unembedding": self.unembedding}
        return [
            {"kind": kind, "token": w.token, "text": w.text, "channel": w.channel,
             "value": w.value, "nodes": [node for node, _ in w.effects], "in_task": w.in_task}
            for kind, weights in kinds.items()
            for w in weights
        ]  # fmt: skip

    def render(self, *, max_rows: int | None = _MAX_ROWS) -> str:
        """Write two tables of at most `max_rows` each, tokens of the task first (None: all)."""
        lines = [repr(self)]
        for title, weights in (
            ("tokens that write into it", self.embedding),
            ("logits that read it", self.unembedding),
        ):
            lines += ["", title, f"  {'token':20}{'channel':>8}{'weight':>10}   node"]
            shown = sorted(weights, key=lambda w: not w.in_task)[:max_rows]
            lines += [_line(w) for w in shown]
            if len(shown) < len(weights):
                lines.append(f"  and {len(weights) - len(shown):,} more")
        if any(w.in_task for w in self.embedding + self.unembedding):
            lines += ["", "* a token that decides the task, or one of its answers"]
        return "\n".join(lines)

    def __str__(self) -> str:
        """Give two tables of at most 20 entries each."""
        return self.render()

    def __repr__(self) -> str:
        """One line: how many of each kind, in which channels of the residual stream."""
        parts = "; ".join(
            f"{len(weights):,} of {name}, channels {_channels(weights)}"
            for name, weights in (("W_E", self.embedding), ("W_U", self.unembedding))
        )
        return f"InterfaceWeights({self.task}: {parts})"


def _channels(weights: tuple[InterfaceWeight, ...]) -> str:
    some = sorted({w.channel for w in weights})
    shown = ", ".join(map(str, some[:6])) or "none"
    return f"{shown} and {len(some) - 6} more" if len(some) > 6 else shown


def _line(weight: InterfaceWeight) -> str:
    nodes = ", ".join(
        node if effect == weight.value else f"{node} ({effect:+.3g} after the gain)"
        for node, effect in weight.effects
    )
    mark = "*" if weight.in_task else " "
    text = f"{mark} {weight.text:20}{weight.channel:>8}{weight.value:>+10.3g}   {nodes}"
    return text.rstrip()


def interface_weights(
    circuit: Circuit, model: HookedTransformer, task: Task | None = None
) -> InterfaceWeights:
    """List the nonzero entries of W_E and W_U that touch a circuit, largest first.

    With a `PairTask` the tokens that its prompts differ in and its answers are marked.

    Raises:
        ValueError: If the circuit was found in another model, or does not fit it.
    """
    check_circuit(circuit, model, resampling=True)
    d_model = model.cfg.d_model
    readers: dict[int, list[tuple[str, float]]] = defaultdict(list)
    writers: dict[int, list[tuple[str, float]]] = defaultdict(list)
    readouts = set(readout_nodes(circuit))
    for node in circuit.nodes:
        if node.site.name in ("attn_in", "mlp_in") and node.channel < d_model:
            readers[node.channel].append((str(node), read_gain(model, node)))
        if node.site.name in WRITE_SITES:
            writers[node.channel] += []  # counted, also where the final read is out
        if node in readouts and (node.site.name in WRITE_SITES or _is_written(circuit, node)):
            writers[node.channel].append((str(node), final_gain(model, node.channel)))
    decide = deciding_tokens(task) if isinstance(task, PairTask) else ()
    answers = tuple(task.answer_ids.values()) if isinstance(task, PairTask) else ()
    return InterfaceWeights(
        task=circuit.task,
        embedding=_entries(model, model.embed.W_E.detach().T, readers, decide),
        unembedding=_entries(model, model.unembed.W_U.detach(), writers, answers),
    )


def _is_written(circuit: Circuit, read: Node) -> bool:
    """Tell whether a kept node writes the channel of a read."""
    return any(n.site.name in WRITE_SITES and n.channel == read.channel for n in circuit.nodes)


def _entries(
    model: HookedTransformer,
    matrix: Float[Tensor, "d_model d_vocab"],
    ends: dict[int, list[tuple[str, float]]],
    marked: tuple[int, ...],
) -> tuple[InterfaceWeight, ...]:
    channels = sorted(ends)
    values = matrix[channels].cpu()
    texts = {token: token_text(model, token) for token in range(matrix.shape[1])} if ends else {}
    found = []
    for i, token in values.nonzero().tolist():
        value = values[i, token].item()
        effects = tuple((node, value * gain) for node, gain in ends[channels[i]])
        found.append(
            InterfaceWeight(
                token=token,
                text=texts[token],
                channel=channels[i],
                value=value,
                effects=effects,
                in_task=token in marked,
            )
        )
    return tuple(sorted(found, key=lambda w: (-w.size, -abs(w.value), w.channel, w.token)))


def residual_links(circuit: Circuit) -> list[tuple[Node, Node]]:
    """Pair each kept write with the kept reads of its channel in later sublayers."""
    writes: dict[int, list[Node]] = defaultdict(list)
    for node in circuit.nodes:
        if node.site.name in WRITE_SITES:
            writes[node.channel].append(node)
    return [
        (source, read)
        for read in circuit.nodes
        if read.site.name in READ_SITES
        for source in writes[read.channel]
        if source.site.order < read.site.order
    ]


def readout_nodes(circuit: Circuit) -> tuple[Node, ...]:
    """Give the nodes that the unembedding reads: the final reads if masked, else the writes."""
    final = tuple(node for node in circuit.nodes if node.site.name == "final_in")
    return final or tuple(node for node in circuit.nodes if node.site.name in WRITE_SITES)


def running_part(circuit: Circuit, model: HookedTransformer) -> Circuit:
    """Give what of a circuit runs: nodes that its edges leave without any in-edge are dropped.

    Circuits that `prune` finds are whole; differences and intersections of circuits may not be.
    """
    sites = site_map(model, final=any(node.site.name == "final_in" for node in circuit.nodes))
    selection = select_circuit(circuit, sites, next(model.parameters()).device)
    kept = {(edge.source, edge.target) for edge in selection.edge_list(model)}
    edges = tuple(edge for edge in circuit.edges if (edge.source, edge.target) in kept)
    return replace(circuit, nodes=tuple(selection.node_list()), edges=edges)


@torch.no_grad()
def held_weights(
    circuit: Circuit, model: HookedTransformer, joint: Joint
) -> Float[Tensor, "source target"]:
    """Give a joint's weights that are no edges of the circuit, the edges' places zero, in float64.

    Each target in the circuit gets the sum of reference x weight through them, whatever the prompt;
    into attn_out it comes once for each head, times the sum of its row of the pattern.
    """
    matrix = joint_matrix(model, joint).double().cpu().clone()
    ends = (joint.source, joint.target)
    some = [e for e in circuit.edges if (e.source.site, e.target.site) == ends]
    matrix[[e.source.channel for e in some], [e.target.channel for e in some]] = 0
    return matrix


def read_gain(model: HookedTransformer, node: Node) -> float:
    """Give the gain that a read's channel has in the norm before it; 1 without gains.

    The final read stands before the gain of its norm, `final_gain`, which is the logits'.
    """
    if node.site.name == "final_in":
        return 1.0
    block: Any = model.blocks[node.site.layer]
    attention, d_model = node.site.name == "attn_in", model.cfg.d_model
    if node.channel < d_model:
        return _gain(block.ln1 if attention else block.ln2, node.channel)
    positions = block.ln1_positions if attention else block.ln2_positions
    return _gain(positions, node.channel - d_model)


def final_gain(model: HookedTransformer, channel: int) -> float:
    """Give the gain that a channel has in the norm before the unembedding; 1 without gains."""
    return _gain(model.ln_final, channel)


def _gain(norm: Any, channel: int) -> float:
    weight = getattr(norm, "w", None)
    return weight[channel].item() if isinstance(weight, Tensor) else 1.0


def token_text(model: HookedTransformer, token: int) -> str:
    """Give a token as text, in Python's quotes, or by its number in a model without tokenizer."""
    tokenizer: Any = model.tokenizer
    return f"token {token}" if tokenizer is None else repr(tokenizer.decode([token]))


def deciding_tokens(task: PairTask, n_pairs: int = 64) -> tuple[int, ...]:
    """Give the tokens in which the two prompts of a pair differ, where that is so in many pairs."""
    n_pairs = min(n_pairs, task.n_examples("train"))
    batch = task.batch("train", range(n_pairs))
    prompts = [
        set(row[: end + 1].tolist()) for row, end in zip(batch.tokens, batch.last, strict=True)
    ]
    sides = zip(prompts[:n_pairs], prompts[n_pairs:], strict=True)
    counts = Counter(token for a, b in sides for token in sorted(a ^ b))
    return tuple(token for token, count in counts.most_common(4) if count >= n_pairs / 8)
