"""What came of scoring a model's nodes for concepts: by concept, by node, as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tl_sparse.checkpoints import read_json
from tl_sparse.concepts.scoring import PairScores
from tl_sparse.files import write_text

UNSAVED = frozenset({"pairs", "shifted"})


@dataclass(frozen=True, kw_only=True)
class ConceptRow:
    """A concept and its best node: chosen on one half of the tokens, scored on the other."""

    concept: str
    n_positive: int
    """Tokens of the second half at which it holds."""
    always_f1: float
    """F1 of always saying that it holds."""
    node: str
    threshold: float
    above: bool
    """Whether it is said to hold where the node is above the threshold, or else below."""
    precision: float
    recall: float
    f1: float
    gain: float
    """F1 above `always_f1`, as a share of what there is above it."""
    auroc: float
    n_nodes: int
    """Nodes that track it."""
    chance_gain: float
    """Gain of the best node, chosen likewise, on labels shifted against the tokens."""
    chance_f1: float
    own_share: float
    """Monosemanticity of a node that is this concept, exactly: below 1, as concepts overlap."""


@dataclass(frozen=True, kw_only=True)
class ConceptReport:
    """How many concepts each node tracks, and which node tracks each concept best."""

    concepts: tuple[ConceptRow, ...]
    left_out: tuple[str, ...]
    """Concepts that are too rare in this text to be scored."""
    places: Mapping[str, int]
    """Number of nodes at each site or hook point, in the order of the tuples below."""
    n_tracked: tuple[int, ...] = field(repr=False)
    """For each node, the concepts that it tracks: whose gain reaches the threshold."""
    n_tracked_by_chance: tuple[int, ...] = field(repr=False)
    """The same, on labels shifted against the tokens."""
    best_concept: tuple[str | None, ...] = field(repr=False)
    """For each node that tracks any, the concept that it has most information on."""
    monosemanticity: tuple[float | None, ...] = field(repr=False)
    """For each node that tracks any: information on its best concept, as a share of the sum of its
    information on all of them."""
    purity: tuple[float | None, ...] = field(repr=False)
    """Monosemanticity as a share of that of a node that is the best concept exactly."""
    provenance: Mapping[str, Any] = field(repr=False)
    """Model, text, settings, versions."""
    pairs: PairScores | None = field(default=None, repr=False, compare=False)
    """Every score of every concept and node, concepts in the order of `concepts`; not saved."""
    shifted: PairScores | None = field(default=None, repr=False, compare=False)
    """The same on labels shifted against the tokens; not saved."""

    @property
    def n_nodes(self) -> int:
        """The number of nodes scored."""
        return sum(self.places.values())

    def node_name(self, index: int) -> str:
        """Name a node by its place in the tuples, as `0.mlp_neuron.31`."""
        return node_name(self.places, index)

    def tracked_at(self, threshold: float, *, by_chance: bool = False) -> tuple[int, ...]:
        """Count each node's concepts whose gain reaches another threshold than the report's.

        Raises:
            ValueError: If the report was read from a file, which has no `pairs`.
        """
        pairs = self.shifted if by_chance else self.pairs
        if pairs is None:
            raise ValueError("A report read from a file has one threshold only. Score again.")
        return tuple((pairs.gain >= threshold).sum(0).tolist())

    def at_least(self, threshold: float | None = None) -> list[tuple[int, float]]:
        """Give the share of nodes that track at least 0, 1, 2 ... concepts.

        `threshold` is another one than the report's; see `tracked_at`.
        """
        counts = self.n_tracked if threshold is None else self.tracked_at(threshold)
        most = max(counts, default=0)
        return [(k, sum(n >= k for n in counts) / len(counts)) for k in range(most + 1)]

    def summary(self) -> dict[str, Any]:
        """Give the numbers that one compares models by."""
        tracking = [n for n in self.n_tracked if n]
        purities = [p for p in self.purity if p is not None]
        shares = [m for m in self.monosemanticity if m is not None]
        rows = self.concepts
        return {
            "nodes": self.n_nodes,
            "nodes that track a concept": len(tracking),
            "by chance": sum(n > 0 for n in self.n_tracked_by_chance),
            "concepts per such node": _mean(tracking),
            "monosemanticity": _mean(shares),
            "purity": _mean(purities),
            "concepts tracked": sum(row.n_nodes > 0 for row in rows),
            "concepts": len(rows),
            "mean best F1": _mean([row.f1 for row in rows]),
            "mean best gain": _mean([row.gain for row in rows]),
            "by chance, mean best gain": _mean([row.chance_gain for row in rows]),
        }

    def __str__(self) -> str:
        """A table: each concept with its best node."""
        lines = [f"{'concept':<16} {'best node':<24} {'precision':>9} {'recall':>7} {'F1':>6}"
                 f" {'gain':>6} {'chance':>7} {'nodes':>6}"]  # fmt: skip
        for row in self.concepts:
            lines.append(
                f"{row.concept:<16} {row.node:<24} {row.precision:>9.3f} {row.recall:>7.3f}"
                f" {row.f1:>6.3f} {row.gain:>6.3f} {row.chance_gain:>7.3f} {row.n_nodes:>6,}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give all but `pairs` and `shifted` as JSON values."""
        values = {name: value for name, value in vars(self).items() if name not in UNSAVED}
        rows = [asdict(row) for row in self.concepts]
        values |= {"concepts": rows, "places": dict(self.places)}
        values["provenance"] = dict(self.provenance)
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ConceptReport":
        """Read what `to_dict` gave."""
        rows = tuple(ConceptRow(**row) for row in values["concepts"])
        lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **lists, "concepts": rows})

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all, but for `pairs` and `shifted`."""
        write_text(path, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "ConceptReport":
        """Read a file that `save` wrote; it has no `pairs` and no `shifted`."""
        return cls.from_dict(read_json(Path(path)))


def node_name(places: Mapping[str, int], index: int) -> str:
    """Name the node with some number, counted through all places."""
    for name, width in places.items():
        if index < width:
            return f"{name}.{index}"
        index -= width
    raise IndexError(f"There are {sum(places.values())} nodes, numbered from 0.")


def _mean(values: list[float] | list[int]) -> float | None:
    return sum(values) / len(values) if values else None
