"""A circuit as data: nodes, the edges between them, and what everything else is set to.

A `Circuit` holds nodes and edges (`tl_sparse.nodes`), the **reference value** of every node of the
model (what a node takes when it is out), and where it comes from: the model's hash, the task, the
target, the losses, the ablation, seeds and versions.

What is in, out and dropped (Gao et al. 2025, A.5, with the edges made explicit): a node out of the
circuit takes its reference; a node in it is computed, from the kept nodes and, through every cut
edge, from its sources' references; a node that could have in-edges and has none left is *dropped*
and takes its own reference.

No model is needed to read, compare or save a circuit. It is kept as JSON; loading runs nothing.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tl_sparse.circuit_rules import (
    ABLATION,
    check_named,
    check_parts,
    check_references,
    read_count,
    read_curve,
    read_edge,
    read_names,
    read_number,
    read_references,
)
from tl_sparse.files import write_text
from tl_sparse.nodes import SITES, Edge, Node, Site, edge_order
from tl_sparse.rules import NON_NEGATIVE_INTEGER

__all__ = ["SCHEMA_VERSION", "SITES", "Circuit", "Edge", "Node", "Site", "edge_order"]

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """The part of a model that does a task, found by `prune`.

    Raises:
        ValueError: If an edge joins a node that is not in the circuit, a node or an edge is listed
            twice, there is no ablation of that name, a count is negative, or a node is without a
            reference value or has one that is not finite.

    Examples:
        >>> a, b = Node(Site(0, "mlp_in"), 5), Node(Site(0, "mlp_neuron"), 1)
        >>> c = Circuit(nodes=(a, b), edges=(Edge(a, b, 0.5),), task="toy", model_hash="-",
        ...             references={Site(0, "mlp_in"): (0.0,) * 8,
        ...                         Site(0, "mlp_neuron"): (0.0,) * 2})
        >>> c.n_nodes, c.n_edges, Circuit.from_json(c.to_json()) == c
        (2, 1, True)
    """

    nodes: tuple[Node, ...]
    """The kept nodes, in the order of the forward pass; dropped ones are not among them."""

    edges: tuple[Edge, ...]
    """The kept edges, in the order of their targets, then sources."""

    references: Mapping[Site, tuple[float, ...]]
    """The reference value of *every* node of each prunable site, kept or not; none where what is
    out takes its value on another prompt."""

    task: str
    """Name of the task it was found on."""

    model_hash: str
    """`sites.model_hash` of the model it was found in."""

    ablation: str = "corpus_mean"
    """What is out is set to: "corpus_mean", "task_mean" or "zero"; under "resample_pair" and
    "resample_corpus" its value on another prompt."""

    tie_qk: bool = False
    """Whether the q and k node of one (head, channel) are kept or dropped together."""

    target_loss: float = math.nan
    """The task loss, in nats, that was asked for."""

    losses: Mapping[str, float] = field(default_factory=dict)
    """Task losses (nats) and accuracies, as `prune` saw them: "validation", "test", "test_accuracy"
    of the circuit and "calibrated_test" after a fit of its answers; "model_validation",
    "model_test", "model_test_accuracy" of the whole model."""

    forced: bool = False
    """True when the model failed the task's gate and `prune(force=True)` went on."""

    curve: tuple[tuple[int, float], ...] = ()
    """Sizes tried in stage one, as (number of nodes asked for, validation loss)."""

    edge_curve: tuple[tuple[int, float], ...] = ()
    """Sizes tried in stage two, as (number of edges asked for, validation loss)."""

    n_interface: int = 0
    """Nonzero embedding and unembedding entries that touch the circuit; not edges."""

    n_biases: int = 0
    """Nonzero biases of kept nodes; not edges."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Settings, seeds, hashes and versions; JSON values only."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """What a person calls nodes, by `str(node)`: "the quote that opened"."""

    groups: Mapping[str, str] = field(default_factory=dict)
    """Names of groups that a person put nodes into, by `str(node)`."""

    def __post_init__(self) -> None:
        nodes = tuple(sorted(self.nodes, key=lambda n: (n.site.order, n.channel)))
        object.__setattr__(self, "nodes", nodes)
        # As a file gives it back: tuples as lists.
        object.__setattr__(self, "provenance", json.loads(json.dumps(dict(self.provenance))))
        ABLATION.check("ablation", self.ablation)
        NON_NEGATIVE_INTEGER.check("n_interface", self.n_interface)
        NON_NEGATIVE_INTEGER.check("n_biases", self.n_biases)
        check_parts(nodes, self.edges)
        check_references(nodes, self.references, self.ablation)
        check_named(nodes, (*self.labels, *self.groups))

    @property
    def resamples(self) -> bool:
        """Whether what is out takes its value on another prompt instead of a constant."""
        return self.ablation.startswith("resample")

    @property
    def n_nodes(self) -> int:
        """Number of kept nodes, `final_in` not counted."""
        return sum(node.site.name != "final_in" for node in self.nodes)

    @property
    def n_edges(self) -> int:
        """The circuit's size: its number of edges."""
        return len(self.edges)

    def channels(self, site: Site) -> tuple[int, ...]:
        """Give the kept channels of one site, in order."""
        return tuple(node.channel for node in self.nodes if node.site == site)

    def into(self, node: Node) -> tuple[Edge, ...]:
        """Give the kept edges that end in a node."""
        return tuple(edge for edge in self.edges if edge.target == node)

    def out_of(self, node: Node) -> tuple[Edge, ...]:
        """Give the kept edges that begin in a node."""
        return tuple(edge for edge in self.edges if edge.source == node)

    def __and__(self, other: "Circuit") -> "Circuit":
        """Give what both circuits have: see `tl_sparse.circuit_sets.combined`.

        Losses and the counts of interface weights and biases are not known of it.
        """
        return self._combined(other, "&", set.intersection)

    def __or__(self, other: "Circuit") -> "Circuit":
        """Give what either circuit has, likewise."""
        return self._combined(other, "|", set.union)

    def __sub__(self, other: "Circuit") -> "Circuit":
        """Give the edges that the other lacks, and their ends, likewise."""
        return self._combined(other, "-", set.difference)

    def _combined(self, other: "Circuit", sign: str, combine: Any) -> "Circuit":
        from tl_sparse.circuit_sets import combined

        return combined(self, other, sign, combine)

    def jaccard(self, other: "Circuit", of: str = "edges") -> float:
        """Give the share of the edges, or "nodes", of either circuit that both have, in [0, 1].

        Two circuits that have none are equal: 1.

        Raises:
            ValueError: If the circuits are of different models.
        """
        self.check_same_model(other)
        if of not in ("edges", "nodes"):
            raise ValueError(f'jaccard compares "edges" or "nodes", got {of!r}.')
        mine, theirs = ({part[:2] for part in getattr(one, of)} for one in (self, other))
        return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0

    def check_same_model(self, other: "Circuit") -> None:
        """Check that another circuit is of the same model.

        Raises:
            ValueError: If not.
        """
        if self.model_hash != other.model_hash:
            raise ValueError(
                f"The circuits {self.task} and {other.task} are of different models; their "
                "channels have nothing to do with each other."
            )

    def explain(self, model: Any, task: Any = None, *, n_tokens: int = 4) -> Any:
        """Write the circuit out in words: `tl_sparse.explain.explain`, which see.

        `model` is the one it was found in; with its task, answers are named. `str` of what comes
        back, an `Explanation`, is the text.

        Raises:
            ValueError: If the circuit does not fit the model.
        """
        from tl_sparse.explain import explain

        return explain(self, model, task, n_tokens=n_tokens)

    def compile(self, model: Any, *, answers: Any = None, max_rivals: float = 0.5) -> Any:
        """Make a small `nn.Module` of the circuit: see `tl_sparse.compiling.compile_circuit`.

        Tokens in, the task's answer logits out, equal to the model's with only the circuit left in.

        Raises:
            ValueError: If the circuit does not fit the model, or can't be compiled exactly.
        """
        from tl_sparse.compiling import compile_circuit

        return compile_circuit(self, model, answers=answers, max_rivals=max_rivals)

    def to_networkx(self, *, residual: bool = False) -> Any:
        """Give the circuit as a `networkx.DiGraph`, nodes named as `str(node)`.

        Nodes have `layer`, `site`, `channel` and `reference`, edges `weight` and `kind="weight"`.
        With `residual`, edges of kind "residual" and weight 1 lead from each node that writes a
        channel of the stream to each later one that reads it, and edges of kind "qk", without a
        weight, from each query channel to its key channel.

        Raises:
            ValueError: If `residual` is asked of a circuit of SAE latents, which are no channels.
        """
        import networkx

        if residual and "saes" in self.provenance:
            raise ValueError(
                f"The nodes of the circuit {self.task} are SAE latents, and a latent that writes "
                "meets every latent that reads. Leave `residual` out."
            )

        graph = networkx.DiGraph(task=self.task, model_hash=self.model_hash)
        for node in self.nodes:
            layer, site = node.site
            graph.add_node(str(node), layer=layer, site=site, channel=node.channel)
            if not self.resamples:
                reference = self.references[node.site][node.channel]
                graph.nodes[str(node)]["reference"] = reference
        for edge in self.edges:
            graph.add_edge(str(edge.source), str(edge.target), weight=edge.weight, kind="weight")
        if residual:
            for source, target, kind in self._unweighted():
                weight = {"weight": 1.0} if kind == "residual" else {}
                graph.add_edge(str(source), str(target), kind=kind, **weight)
        return graph

    def _unweighted(self) -> Iterator[tuple[Node, Node, str]]:
        """Give what joins two nodes and is no edge: the stream, and query and key of a channel."""
        writes, reads = ("attn_out", "mlp_out"), ("attn_in", "mlp_in", "final_in")
        for source, target in product(self.nodes, repeat=2):
            if source.channel != target.channel:
                continue
            ends, later = (
                (source.site.name, target.site.name),
                source.site.order < target.site.order,
            )
            if ends[0] in writes and ends[1] in reads and later:
                yield source, target, "residual"
            elif ends == ("q", "k") and source.site.layer == target.site.layer:
                yield source, target, "qk"

    def _repr_html_(self) -> str:
        """Give what notebooks show: sizes, losses and the drawing."""
        from tl_sparse.displays import circuit_fragment

        return circuit_fragment(self)

    def __repr__(self) -> str:
        """One line: size, task and losses."""
        loss = self.losses.get("test", math.nan)
        whole = self.losses.get("model_test", math.nan)
        losses = "not evaluated" if math.isnan(loss) else f"test loss {loss:.3f}"
        if not math.isnan(loss + whole):
            losses += f" against {whole:.3f} of the whole model"
        target = "no target" if math.isnan(self.target_loss) else f"target {self.target_loss:g}"
        forced = ", forced past the gate" if self.forced else ""
        return (
            f"Circuit({self.task}: {self.n_nodes} nodes, {self.n_edges} edges; {losses}, "
            f"{target}{forced}; not audited)"
        )

    def to_json(self) -> str:
        """Write as JSON text, exactly: floats read back to the same bits."""
        data = {
            "schema": "tl_sparse.circuit",
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "model_hash": self.model_hash,
            "ablation": self.ablation,
            "tie_qk": self.tie_qk,
            "target_loss": _finite(self.target_loss),
            "losses": {name: _finite(value) for name, value in self.losses.items()},
            "forced": self.forced,
            "nodes": [str(node) for node in self.nodes],
            "edges": [[str(e.source), str(e.target), e.weight] for e in self.edges],
            "curve": [list(point) for point in self.curve],
            "edge_curve": [list(point) for point in self.edge_curve],
            "n_interface": self.n_interface,
            "n_biases": self.n_biases,
            "references": {str(site): list(values) for site, values in self.references.items()},
            "provenance": dict(self.provenance),
        }
        data |= {k: dict(v) for k in ("labels", "groups") if (v := getattr(self, k))}
        return json.dumps(data, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Circuit":
        """Read `to_json`'s text back.

        Raises:
            ValueError: If the text is not a circuit, was cut short, or has another schema version.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"This is not a circuit file, or it was cut short: {error}.") from None
        if not isinstance(data, dict) or data.get("schema") != "tl_sparse.circuit":
            raise ValueError("This JSON is not a circuit of tl_sparse: no schema of that name.")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"The circuit has schema version {data.get('schema_version')}, this tl_sparse "
                f"reads {SCHEMA_VERSION}. Read it with the version named in its provenance."
            )
        try:
            return cls(
                nodes=tuple(Node.parse(node) for node in data["nodes"]),
                edges=tuple(read_edge(edge) for edge in data["edges"]),
                references=read_references(data["references"]),
                task=str(data["task"]),
                model_hash=str(data["model_hash"]),
                ablation=str(data["ablation"]),
                tie_qk=bool(data["tie_qk"]),
                target_loss=read_number(data["target_loss"]),
                losses={name: read_number(value) for name, value in data["losses"].items()},
                forced=bool(data["forced"]),
                curve=read_curve(data["curve"]),
                edge_curve=read_curve(data["edge_curve"]),
                n_interface=read_count(data["n_interface"]),
                n_biases=read_count(data["n_biases"]),
                provenance=data["provenance"],
                labels=read_names(data.get("labels", {})),
                groups=read_names(data.get("groups", {})),
            )
        except ValueError as error:
            raise ValueError(f"The circuit file is damaged. {error}") from None
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"The circuit file is damaged: {error!r}.") from None

    def save(self, path: str | Path) -> None:
        """Write the circuit to a JSON file, whole or not at all."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit from a JSON file.

        Raises:
            ValueError: If there is no such file, or it is not a whole circuit.
        """
        if not Path(path).exists():
            raise ValueError(
                f"No circuit could be read from {path}: there is no such file. `tl-sparse prune` "
                "writes one."
            )
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"No circuit could be read from {path}: {error}.") from None
        return cls.from_json(text)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
