"""What the parts of a circuit have to be, and how they are read from a file; no model is needed.

Whether a circuit fits a model is another question: `tl_sparse.circuit_checks`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tl_sparse.nodes import Edge, Node, Site
from tl_sparse.rules import choice, is_integer

ABLATIONS = ("corpus_mean", "task_mean", "zero", "resample_pair", "resample_corpus")
"""What a node that is out can be set to, by name."""

ABLATION = choice(*ABLATIONS)


def check_parts(nodes: Sequence[Node], edges: Sequence[Edge]) -> None:
    """Check that no node and no edge stands twice, and that each edge joins two of the nodes.

    Raises:
        ValueError: If not, or if the weight of an edge is no finite number.
    """
    kept = set(nodes)
    if len(kept) != len(nodes):
        raise ValueError(
            f"A node stands twice in the circuit: {len(nodes)} for {len(kept)}. Leave one out."
        )
    seen: set[tuple[Node, Node]] = set()
    for edge in edges:
        ends = (edge.source, edge.target)
        if edge.source not in kept or edge.target not in kept:
            raise ValueError(f"The edge {edge} joins a node that is not in the circuit.")
        if not math.isfinite(edge.weight):
            raise ValueError(f"The edge {edge} has no weight: it is a finite number.")
        if ends in seen:
            raise ValueError(
                f"The edge {edge} stands twice in the circuit, and between two nodes there is "
                "one. Leave one out."
            )
        seen.add(ends)


def check_references(
    nodes: Iterable[Node], references: Mapping[Site, Sequence[float]], ablation: str
) -> None:
    """Check that each node has a constant reference value, or none has under resampling.

    Raises:
        ValueError: If not, or if a value is NaN or infinite.
    """
    if ablation.startswith("resample"):
        if references:
            raise ValueError(f"Under {ablation!r} nodes have no constant reference values.")
        return
    for site, values in references.items():
        wrong = [i for i, value in enumerate(values) if not math.isfinite(value)]
        if wrong:
            raise ValueError(
                f"A reference value is a finite number, got {values[wrong[0]]} for the node "
                f"{Node(site, wrong[0])}. Measure them again: references(model, corpus)."
            )
    for node in nodes:
        if not 0 <= node.channel < len(references.get(node.site, ())):
            raise ValueError(f"There is no reference value for the node {node}.")


def check_named(nodes: Iterable[Node], named: Iterable[str]) -> None:
    """Check that whatever has a label or stands in a group is a node of the circuit.

    Raises:
        ValueError: If not.
    """
    unknown = sorted(set(named) - {str(node) for node in nodes})
    if unknown:
        raise ValueError(
            f"A label or group is for a node of the circuit, by its name; {unknown[0]!r} is "
            "none of them."
        )


# -- reading ----------------------------------------------------------------------------------


def read_edge(entry: Any) -> Edge:
    """Read an edge as `Circuit.to_json` writes it; anything else is a `ValueError`."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(f"An edge is written [source, target, weight], got {entry!r}.")
    source, target, weight = entry
    return Edge(Node.parse(source), Node.parse(target), read_number(weight))


def read_number(value: Any) -> float:
    """Read a number, null being NaN; anything else is a `ValueError`."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"A number stands here in a circuit file, got {value!r}.")
    return float(value)


def read_count(value: Any) -> int:
    """Read a whole number; anything else is a `ValueError`."""
    if not is_integer(value):
        raise ValueError(f"A whole number stands here in a circuit file, got {value!r}.")
    return int(value)


def read_curve(data: list[Any]) -> tuple[tuple[int, float], ...]:
    """Read the points of a curve, [size, loss] each; anything else is a `ValueError`."""
    for point in data:
        if not isinstance(point, list) or len(point) != 2:
            raise ValueError(f"A point of a curve is written [size, loss], got {point!r}.")
    return tuple((read_count(size), read_number(loss)) for size, loss in data)


def read_names(data: Mapping[str, str]) -> dict[str, str]:
    """Read labels or groups, by the node's name."""
    return {str(node): str(name) for node, name in data.items()}


def read_references(data: Mapping[str, list[Any]]) -> dict[Site, tuple[float, ...]]:
    """Read the reference values of each site."""
    return {Site.parse(site): tuple(map(read_number, values)) for site, values in data.items()}
