"""From a model and a circuit to parts: which numbers vary, and tables for all others.

A residual channel is in the *stream* if a node of the circuit reads or writes it. All other
channels are, after any sublayer, the token's embedding plus reference values, hence known for each
token. Where AbsTopK stands, a rival is *computed* if some node of the circuit feeds it through a
live weight, and otherwise constant.

Everything is worked out in double precision and then rounded to the model's type.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tl_sparse.ablation import select_circuit
from tl_sparse.circuit import Circuit, Site
from tl_sparse.compiling.attention import Attention, Head
from tl_sparse.compiling.parts import Affine, Constant, Mlp, Part, Read, Readout, Rivals, Write
from tl_sparse.model import SUPPORTED_ACTIVATIONS, HookedSparseTransformer
from tl_sparse.sites import Joint, joint_matrix, site_map

MAX_TABLE = 2**27
"""The most entries of the table from which the others are made: a gigabyte while compiling."""


class Builder:
    """Builds the parts of one circuit, sublayer by sublayer."""

    def __init__(self, model: HookedSparseTransformer, circuit: Circuit) -> None:
        self.model, self.cfg, self.circuit = model, model.cfg, circuit
        self.dtype = model.cfg.dtype
        self.final = any(node.site.name == "final_in" for node in circuit.nodes)
        self.sites = site_map(model, final=self.final)
        self.selection = select_circuit(circuit, self.sites, torch.device("cpu"))
        self.values = {
            site: torch.tensor(values, dtype=torch.float64)
            for site, values in circuit.references.items()
        }
        self.joints = {(j.source.layer, j.source.name, j.target.name): j for j in self.sites.joints}
        touched: set[int] = set()
        for site, kept in self.selection.nodes.items():
            if site.name in ("attn_in", "attn_out", "mlp_in", "mlp_out", "final_in"):
                touched.update(kept.nonzero().flatten().tolist())
        self.stream = sorted(touched)
        outside = torch.ones(self.cfg.d_model, dtype=torch.bool)
        outside[self.stream] = False
        self.outside = outside.nonzero().flatten()
        self.table = self._table()

    def _table(self) -> Tensor:
        """Give the embedding of each row: a token, or a token at a position."""
        cfg, embedding = self.cfg, self._double(self.model.embed.W_E)
        if cfg.positional_embedding_type == "none":
            return embedding
        n_rows = cfg.d_vocab * cfg.n_ctx
        if n_rows * cfg.d_model > MAX_TABLE:
            raise ValueError(
                f"With positions, the tables have a row for each token at each position: {n_rows:,}"
                f" x {cfg.d_model} entries while compiling, over the limit of {MAX_TABLE:,}. Run "
                "the circuit in the model instead: only_circuit(model, circuit)."
            )
        positions = self._double(self.model.pos_embed.W_pos)
        return (embedding[:, None] + positions[None, : cfg.n_ctx]).flatten(0, 1)

    # -- the sublayers ------------------------------------------------------------------------

    def embed(self) -> Tensor:
        """Give the stream of each row before the first sublayer."""
        return self._round(self.table[:, self.stream])

    def sublayers(self) -> list[Part]:
        """Build the sublayers in order; the tables go on with what each adds outside the stream."""
        parts: list[Part] = []
        for layer in range(self.cfg.n_layers):
            parts.append(self._sublayer(layer, "attn", self._attention))
            if not self.cfg.attn_only:
                parts.append(self._sublayer(layer, "mlp", self._mlp))
        return parts

    def _sublayer(self, layer: int, kind: str, build: Any) -> Part:
        out = Site(layer, f"{kind}_out")
        part = build(layer) if self._kept(out) else Constant(added=self._added(out))
        self.table = self.table.clone()
        self.table[:, self.outside] += self.values[out][self.outside]
        return part

    def _attention(self, layer: int) -> Attention:
        read = self._read(Site(layer, "attn_in"), self.model.blocks[layer].ln1)
        sources = self._kept(Site(layer, "attn_in"))
        q, k, v = (self._affine(Site(layer, name), sources) for name in ("q", "k", "v"))
        heads = self._heads(layer)
        parts = {f"head{i}": self._head(layer, h) for i, h in enumerate(heads)}
        write = self._attention_write(layer, heads)
        return Attention(
            read=read, q=q, k=k, v=v, write=write, **parts,
            n_heads=len(heads), row_sums=bool(self.cfg.use_attention_sinks),
        )  # fmt: skip

    def _mlp(self, layer: int) -> Mlp:
        read = self._read(Site(layer, "mlp_in"), self.model.blocks[layer].ln2)
        neurons = self._affine(Site(layer, "mlp_neuron"), self._kept(Site(layer, "mlp_in")))
        source, out = Site(layer, "mlp_neuron"), Site(layer, "mlp_out")
        weight, bias = self._flows(self.joints[layer, "mlp_neuron", "mlp_out"], self._kept(source))
        return Mlp(read=read, neurons=neurons, write=self._write(out, weight, bias[None]))

    def _read(self, site: Site, norm: Any) -> Read:
        kept = self._kept(site)
        fields = self._norm(norm)
        n_kept = self._n_kept(site)
        if n_kept is not None:
            gain = self._gain(norm)
            rest = (self.table * gain)[:, self.outside].abs()
            fields["rivals"] = self._rivals(n_kept, rest, len(self.stream))
        return Read(**fields, channels=[self.stream.index(c) for c in kept])

    def _norm(self, norm: Any) -> dict[str, Any]:
        """Give the fields of a norm over the stream and what is known of all outside of it."""
        kind = self.cfg.normalization_type
        fields: dict[str, Any] = {"width": self.cfg.d_model, "eps": float(self.cfg.eps)}
        if kind is None:
            return fields
        rest = self.table[:, self.outside]
        fields |= {"norm": kind[:2] if kind.startswith("LN") else "RMS"}
        fields["rest_squares"] = self._round(rest.square().sum(1))
        if fields["norm"] == "LN":
            fields["rest_sums"] = self._round(rest.sum(1))
        if hasattr(norm, "w"):
            fields["gain"] = self._round(self._double(norm.w)[self.stream])
        if hasattr(norm, "b"):
            fields["shift"] = self._round(self._double(norm.b)[self.stream])
        return fields

    def _affine(self, site: Site, sources: list[int]) -> Affine:
        """Build the channels of q, k, v or neurons that are kept, and the rivals that vary."""
        reads = "mlp_in" if site.name == "mlp_neuron" else "attn_in"
        weight, bias = self._flows(self.joints[site.layer, reads, site.name], sources)
        activation = self.cfg.act_fn if site.name == "mlp_neuron" else None
        kept = self._kept(site)
        computed, n_kept, rivals = kept, self._n_kept(site), None
        if n_kept is not None and kept:
            computed = self._computed(kept, weight)
            constant = SUPPORTED_ACTIVATIONS[activation](bias) if activation else bias
            rest = _without(constant, computed).abs()[None]
            rivals = self._rivals(n_kept, rest, len(computed))
        return Affine(
            weight=self._round(weight[:, computed]), bias=self._round(bias[computed]),
            activation=activation, rivals=rivals, channels=computed,
            kept=[computed.index(c) for c in kept],
        )  # fmt: skip

    # -- attention ----------------------------------------------------------------------------

    def _heads(self, layer: int) -> list[int]:
        """Give the heads that matter: with a kept v, or, where rows have sums, a kept q or k."""
        names = ("q", "k", "v") if self.cfg.use_attention_sinks else ("v",)
        kept = [c for name in names for c in self._kept(Site(layer, name))]
        return sorted({channel // self.cfg.d_head for channel in kept})

    def _head(self, layer: int, head: int) -> Head:
        q, k = Site(layer, "q"), Site(layer, "k")
        kept_q, kept_k, kept_v = (self._kept(Site(layer, name)) for name in ("q", "k", "v"))
        mine = range(head * self.cfg.d_head, (head + 1) * self.cfg.d_head)
        live = [c for c in mine if c in kept_q or c in kept_k]
        fixed = [c for c in mine if c not in live]
        attention: Any = self.model.blocks[layer].attn
        sinks = self._double(attention.sinks) if self.cfg.use_attention_sinks else None
        return Head(
            head=head,
            queries=[kept_q.index(c) if c in kept_q else -1 for c in live],
            keys=[kept_k.index(c) if c in kept_k else -1 for c in live],
            query_values=self._round(self.values[q][live]),
            key_values=self._round(self.values[k][live]),
            constant=self._round((self.values[q][fixed] * self.values[k][fixed]).sum()),
            scale=float(attention.attn_scale),
            sink=None if sinks is None else self._round(sinks[head]),
            causal=self.cfg.attention_dir == "causal",
            values=[i for i, c in enumerate(kept_v) if c in mine],
        )  # fmt: skip

    def _attention_write(self, layer: int, heads: list[int]) -> Write:
        """Build attn_out: from kept values, and from constant ones times the sums of rows."""
        v, joint = Site(layer, "v"), self.joints[layer, "v", "attn_out"]
        n_heads, d_head = self.cfg.n_heads, self.cfg.d_head
        kept_v = self._kept(v)
        weight, _ = self._flows(joint, kept_v)
        by_head = self._constant_part(joint).unflatten(0, (n_heads, d_head)).sum(1)
        bias = self._bias(joint)[None]
        if not self.cfg.use_attention_sinks:
            return self._write(Site(layer, "attn_out"), weight, bias + by_head.sum(0))
        rows = []
        for head in heads:
            rows += [weight[i] for i, c in enumerate(kept_v) if c // d_head == head]
            rows.append(by_head[head])
        for head in set(range(n_heads)) - set(heads):
            bias = bias + self._row_sums(layer, head)[:, None] * by_head[head]
        return self._write(Site(layer, "attn_out"), torch.stack(rows), bias)

    def _row_sums(self, layer: int, head: int) -> Tensor:
        """Give the sum of a constant head's row, for each number of keys from 1 to n_ctx."""
        attention: Any = self.model.blocks[layer].attn
        mine = slice(head * self.cfg.d_head, (head + 1) * self.cfg.d_head)
        products = self.values[Site(layer, "q")][mine] * self.values[Site(layer, "k")][mine]
        score = products.sum() / float(attention.attn_scale)
        n_keys = torch.arange(1, self.cfg.n_ctx + 1, dtype=torch.float64)
        return torch.sigmoid(score + n_keys.log() - self._double(attention.sinks)[head])

    # -- what flows through a joint -----------------------------------------------------------

    def _flows(self, joint: Joint, sources: list[int]) -> tuple[Tensor, Tensor]:
        """Give the live weights from the kept sources, and what all else adds, biases included."""
        matrix = self._matrix(joint)
        weight = (matrix - self._cut(joint, matrix))[sources]
        return weight, self._bias(joint) + self._constant_part(joint).sum(0)

    def _constant_part(self, joint: Joint) -> Tensor:
        """Give, for each source and target, what the source's reference value sends."""
        matrix = self._matrix(joint)
        constant = self._cut(joint, matrix)
        out = ~self.selection.nodes[joint.source]
        constant[out] = matrix[out]
        return self.values[joint.source][:, None] * constant

    def _cut(self, joint: Joint, matrix: Tensor) -> Tensor:
        """Give the weights that are cut: those between kept nodes that are no edges."""
        nodes = self.selection.nodes
        inside = nodes[joint.source][:, None] & nodes[joint.target][None, :]
        return matrix * (inside & ~self.selection.edges[joint])

    def _write(self, site: Site, weight: Tensor, bias: Tensor) -> Write:
        kept = self._kept(site)
        computed, n_kept, rivals = kept, self._n_kept(site), None
        if n_kept is not None:
            computed = self._computed(kept, weight)
            rivals = self._rivals(n_kept, _without(bias, computed).abs(), len(computed))
        return Write(
            weight=self._round(weight[:, computed]), bias=self._round(bias[:, computed]),
            rivals=rivals, channels=computed, kept=[computed.index(c) for c in kept],
            into=[self.stream.index(c) for c in kept], added=self._added(site),
        )  # fmt: skip

    def _computed(self, kept: Sequence[int], weight: Tensor) -> list[int]:
        fed = (weight != 0).any(0).nonzero().flatten().tolist()
        return sorted({*kept, *fed})

    def _rivals(self, n_kept: int, rest: Tensor, n_computed: int) -> Rivals:
        """Make the table of thresholds from the magnitudes of the constant rivals, by row."""
        largest = rest.sort(-1, descending=True).values
        columns = []
        for j in range(n_computed):
            place = n_kept - 1 - j
            if place < 0:
                columns.append(torch.full((len(rest),), float("inf"), dtype=rest.dtype))
            elif place >= rest.shape[-1]:
                columns.append(-torch.ones(len(rest), dtype=rest.dtype))
            else:
                columns.append(largest[:, place])
        width = n_computed + rest.shape[-1]
        return Rivals(n_kept=n_kept, width=width, thresholds=self._round(torch.stack(columns, -1)))

    # -- the end ------------------------------------------------------------------------------

    def readout(self, answers: Mapping[str, int]) -> Readout:
        """Build what gives the answer logits."""
        norm: Any = getattr(self.model, "ln_final", None)
        ids = list(answers.values())
        unembed = self._double(self.model.unembed.W_U)[:, ids]
        weight, bias = unembed.clone(), self._double(self.model.unembed.b_U)[ids]
        weight[self.outside] = 0
        gained = unembed * self._gain(norm)[:, None]
        fields: dict[str, Any] = {}
        if self.final:
            final = Site(self.cfg.n_layers, "final_in")
            out = ~self.selection.nodes[final]
            bias = bias + self.values[final][out] @ gained[out]
            weight[out] = 0
        else:
            rest = gained[self.outside]
            fields["rest"] = self._round(self.table[:, self.outside] @ rest)
            if str(self.cfg.normalization_type).startswith("LN"):
                fields["rest_weight"] = self._round(rest.sum(0))
        if hasattr(norm, "b"):  # of the channels that `weight` has not
            bias = bias + self._double(norm.b) @ (unembed - weight)
        if self.model.sparsity.bigram_table:
            fields["bigram"] = self._round(self._double(self.model.bigram.table)[:, ids])
        read = Read(**self._norm(norm), channels=list(range(len(self.stream))))
        weight, bias = self._round(weight[self.stream]), self._round(bias)
        return Readout(read=read, weight=weight, bias=bias, **fields)

    # -- small things -------------------------------------------------------------------------

    def _kept(self, site: Site) -> list[int]:
        return self.selection.nodes[site].nonzero().flatten().tolist()

    def _added(self, site: Site) -> Tensor:
        values = self.values[site].clone()
        values[self._kept(site)] = 0
        return self._round(values[self.stream])

    def _n_kept(self, site: Site) -> int | None:
        """Give how many channels AbsTopK keeps at a site, if any stands there."""
        block: Any = self.model.blocks[site.layer]
        if site.name in ("q", "k", "v"):
            topk = getattr(block.attn, f"topk_{site.name}")
        elif site.name == "mlp_neuron":
            topk = getattr(block.mlp, "topk", None)
        else:
            topk = getattr(block, f"topk_{site.name}")
        return None if topk is None or topk.n_kept == topk.width else topk.n_kept

    def _gain(self, norm: Any) -> Tensor:
        if hasattr(norm, "w"):
            return self._double(norm.w)
        return torch.ones(self.cfg.d_model, dtype=torch.float64)

    def _matrix(self, joint: Joint) -> Tensor:
        return self._double(joint_matrix(self.model, joint))

    def _bias(self, joint: Joint) -> Tensor:
        return self._double(self.model.get_parameter(joint.bias)).flatten()

    def _double(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().double()

    def _round(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).contiguous()


def _without(values: Tensor, computed: Sequence[int]) -> Tensor:
    """Leave out some entries of the last axis."""
    stays = torch.ones(values.shape[-1], dtype=torch.bool)
    stays[list(computed)] = False
    return values[..., stays]
