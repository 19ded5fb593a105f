"""`explain`: a circuit written out in words, from the tokens to the logits.

A circuit is small enough to read. This follows it in the order of the forward pass and says, with
the model's own weights,

1. what each **read** (attn_in, mlp_in) sees: the tokens whose embedding stands in its channel of
   the residual stream, and the kept nodes of earlier sublayers that write to the same channel; of
   a position channel, the positions;
2. what each **neuron**, **q**, **k** and **v** channel computes: kept in-edges, bias, and what
   flows in from all that is held at its reference value;
3. where each **head** looks: q and k channels that are in the circuit, and the constants of those
   that are not;
4. what each **write** (attn_out, mlp_out) adds, who reads it, and what it does to the answer logits
   directly: its row of the unembedding.

`str(explanation)` is the text; its fields are plain data, `rows()` is a table and `to_dict()` JSON.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import SITES, Circuit, Edge, Node, Site
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.interface import (
    deciding_tokens,
    final_gain,
    held_weights,
    read_gain,
    readout_nodes,
    residual_links,
    running_part,
    token_text,
)
from tl_sparse.sites import READ_SITES, Joint, site_map
from tl_sparse.tasks.base import PairTask, Task
from tl_sparse.wording import ExplainedHead, ExplainedNode, Explanation, Weighted


def explain(
    circuit: Circuit, model: HookedTransformer, task: Task | None = None, *, n_tokens: int = 4
) -> Explanation:
    """Write a circuit out in words: what each node reads, computes, writes and does to the logits.

    With a `PairTask` the effects on its answer logits and the embeddings of the tokens that decide
    between its two sides are named too. `n_tokens` is how many tokens are named for each read.

    Raises:
        ValueError: If the circuit was found in another model, or does not fit it.
    """
    check_circuit(circuit, model)
    with torch.no_grad():
        return _Reader(circuit, model, task, n_tokens).explanation()


class _Reader:
    """Looks the weights around a circuit up."""

    def __init__(
        self, circuit: Circuit, model: HookedTransformer, task: Task | None, n_tokens: int
    ) -> None:
        self.circuit, self.model, self.n_tokens = running_part(circuit, model), model, n_tokens
        self.dropped = sorted(set(circuit.nodes) - set(self.circuit.nodes))
        circuit = self.circuit
        self.token = partial(token_text, model)
        self.answers = dict(task.answer_ids) if isinstance(task, PairTask) else {}
        self.deciding = deciding_tokens(task) if isinstance(task, PairTask) else ()
        self.into: dict[Node, list[Edge]] = defaultdict(list)
        self.out_of: dict[Node, list[Edge]] = defaultdict(list)
        for edge in circuit.edges:
            self.into[edge.target].append(edge)
            self.out_of[edge.source].append(edge)
        self.written_by: dict[Node, list[str]] = defaultdict(list)
        self.read_by: dict[Node, list[str]] = defaultdict(list)
        for source, read in residual_links(circuit):
            self.written_by[read].append(str(source))
            self.read_by[source].append(str(read))
        self.readouts = set(readout_nodes(circuit))
        self.arriving = {joint.target: self._arriving(joint) for joint in site_map(model).joints}

    def explanation(self) -> Explanation:
        cfg = self.model.cfg
        return Explanation(
            task=self.circuit.task,
            n_nodes=self.circuit.n_nodes,
            n_edges=self.circuit.n_edges,
            answers=tuple(map(repr, self.answers)),
            act_fn=str(cfg.act_fn),
            d_head=cfg.d_head,
            d_model=cfg.d_model,
            nodes=tuple(self._node(node) for node in self.circuit.nodes),
            heads=tuple(self._heads()),
            notes=tuple(self._notes()),
        )

    def _arriving(self, joint: Joint) -> tuple[Tensor, Tensor]:
        """Give bias and sum of held weight x reference at each node of a joint's target."""
        reference = torch.tensor(self.circuit.references[joint.source], dtype=torch.float64)
        bias = self.model.get_parameter(joint.bias).detach().flatten().double().cpu()
        return bias, reference @ held_weights(self.circuit, self.model, joint)

    def _node(self, node: Node) -> ExplainedNode:
        site, channel = node.site, node.channel
        found: dict[str, Any] = {}
        if site.name in ("q", "k", "v"):
            found["head"] = channel // self.model.cfg.d_head
        if site.name in READ_SITES:
            found |= self._read(node)
        else:
            bias, constant = self.arriving[site]
            found |= {"bias": bias[channel].item(), "constant": constant[channel].item()}
        if node in self.readouts:
            found |= self._readout(node)
        return ExplainedNode(
            node=str(node),
            layer=site.layer,
            site=site.name,
            channel=channel,
            reference=float(self.circuit.references[site][channel]),
            inputs=tuple((str(e.source), float(e.weight)) for e in self.into[node]),
            outputs=tuple((str(e.target), float(e.weight)) for e in self.out_of[node]),
            read_by=tuple(self.read_by[node]),
            **found,
        )

    def _read(self, node: Node) -> dict[str, Any]:
        if node.channel >= self.model.cfg.d_model:
            return self._read_position(node)
        column = self.model.embed.W_E.detach()[:, node.channel]
        return {
            "gain": read_gain(self.model, node),
            "highest": self._top(column),
            "lowest": self._top(column, sign=-1),
            "n_tokens": int((column != 0).sum()),
            "task_tokens": tuple((self.token(i), column[i].item()) for i in self.deciding),
            "written_by": tuple(self.written_by[node]),
        }

    def _read_position(self, node: Node) -> dict[str, Any]:
        model: Any = self.model
        channel = node.channel - model.cfg.d_model
        column = model.positions.table.detach()[:, channel]
        return {
            "position_channel": channel,
            "gain": read_gain(model, node),
            "highest": self._top(column, name="position {}".format),
            "lowest": self._top(column, sign=-1, name="position {}".format),
        }

    def _readout(self, node: Node) -> dict[str, Any]:
        row = self.model.unembed.W_U.detach()[node.channel]
        row = row * final_gain(self.model, node.channel)
        return {
            "logits": tuple((repr(text), row[i].item()) for text, i in self.answers.items()),
            "raises": self._top(row),
            "lowers": self._top(row, sign=-1),
        }

    def _top(
        self,
        column: Float[Tensor, " row"],
        *,
        sign: int = 1,
        name: Callable[[int], str] | None = None,
    ) -> tuple[Weighted, ...]:
        """Give the tokens, or what else `name` says, with the largest entries of one sign."""
        name = name or self.token
        values, ids = (sign * column).topk(min(self.n_tokens, len(column)))
        return tuple(
            (name(i), sign * value)
            for value, i in zip(values.tolist(), ids.tolist(), strict=True)
            if value > 0
        )

    def _heads(self) -> list[ExplainedHead]:
        kept = {node for node in self.circuit.nodes if node.site.name in ("q", "k", "v")}
        d_head, heads = self.model.cfg.d_head, []
        for layer, head in sorted({(n.site.layer, n.channel // d_head) for n in kept}):
            attention: Any = self.model.blocks[layer].attn
            scale, rest, channels = float(attention.attn_scale), 0.0, []
            for c in range(d_head):
                pair = [Node(Site(layer, name), head * d_head + c) for name in ("q", "k")]
                held = [float(self.circuit.references[n.site][n.channel]) for n in pair]
                q, k = (None if n in kept else x for n, x in zip(pair, held, strict=True))
                if q is not None and k is not None:
                    rest += q * k / scale
                else:
                    channels.append((c, q, k))
            sinks = attention.sinks if self.model.cfg.use_attention_sinks else None
            heads.append(
                ExplainedHead(
                    layer=layer,
                    head=head,
                    scale=scale,
                    channels=tuple(channels),
                    constant_score=rest,
                    sink=None if sinks is None else sinks[head].item(),
                )
            )
        return heads

    def _notes(self) -> list[str]:
        cfg, sparsity = self.model.cfg, getattr(self.model, "sparsity", None)
        held = {"zero": "zero", "corpus_mean": "its mean over the training text"}
        value = held.get(self.circuit.ablation, f"its reference ({self.circuit.ablation})")
        notes = [
            f"Whatever is not in the circuit is held at {value}.",
            f"The residual stream passes a norm ({cfg.normalization_type}) before each read; "
            "tokens' weights are those before it, effects on logits per unit after the last one.",
        ]
        if self.dropped:
            names = ", ".join(map(str, self.dropped[:8])) + ", ..." * (len(self.dropped) > 8)
            notes.append(f"No edge leads into {names}: held too, and not counted here.")
        if sparsity is not None and any(sparsity.site_density(site) < 1 for site in SITES):
            notes.append("AbsTopK follows each step: at a token only the largest channels stay.")
        if sparsity is not None and sparsity.bigram_table:
            notes.append(
                "A bigram table adds to the logits beside the circuit, by the last token alone."
            )
        if cfg.positional_embedding_type not in ("none", None):
            notes.append(f"Positions ({cfg.positional_embedding_type}) come in beside the tokens.")
        if sparsity is not None and sparsity.position_channels:
            notes.append(
                f"Attention and MLP read {sparsity.position_channels} position channels too, behind"
                f" the {cfg.d_model} of the residual stream; no node writes them."
            )
        return notes
