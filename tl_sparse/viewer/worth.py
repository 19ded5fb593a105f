"""What each part of a circuit is worth, and what is left of it as its edges go.

Of each node and edge: how far the circuit's task loss rises when it alone is taken out; of each
node also how far the whole model's loss rises. Then a row of sizes: the circuit with the k edges
that are worth most, each judged, from one edge to all of them. An edge that leads nowhere, or whose
source is fed by nothing, goes with those it hangs on, so each size is a circuit by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from tl_sparse.auditing.subject import Subject
from tl_sparse.circuit import Edge, Node

MAX_SIZES = 24
"""Sizes that are judged at most."""

Ends = tuple[Node, Node]
"""An edge by its source and target."""


@dataclass(frozen=True)
class Worth:
    """Losses, in nats, without parts of a circuit."""

    nodes: Mapping[Node, float]
    """How far the circuit's loss rises without a node."""
    nodes_in_model: Mapping[Node, float]
    """How far the whole model's loss rises without a node."""
    edges: Mapping[Ends, float]
    """How far the circuit's loss rises without an edge."""
    sizes: tuple[tuple[int, float], ...]
    """Number of edges and loss of the circuit's smaller selves, smallest first."""
    enters: Mapping[Ends, int]
    """For each edge the first of the sizes that has it."""


def worth(subject: Subject, *, progress: bool) -> Worth:
    """Measure what each part of a circuit is worth, and its smaller selves."""
    alone = subject.node_costs(progress)
    in_model: dict[Node, float] = {}
    for node in tqdm(alone, desc="nodes of the model", disable=not progress):
        kept = torch.zeros_like(subject.selection.nodes[node.site])
        kept[node.channel] = True
        in_model[node] = subject.loss(subject.cut({node.site: kept})) - subject.whole
    costs = subject.edge_costs(progress)
    sizes, enters = _sizes(subject, costs, progress)
    edges = {(edge.source, edge.target): cost for edge, cost in costs.items()}
    return Worth(alone, in_model, edges, sizes, enters)


def _sizes(
    subject: Subject, costs: Mapping[Edge, float], progress: bool
) -> tuple[tuple[tuple[int, float], ...], dict[Ends, int]]:
    order = sorted(costs, key=lambda edge: -costs[edge])
    nothing = replace(
        subject.selection,
        edges={joint: torch.zeros_like(kept) for joint, kept in subject.selection.edges.items()},
    )
    sizes: list[tuple[int, float]] = []
    enters: dict[Ends, int] = {}
    for n in tqdm(_grid(len(order)), desc="sizes", disable=not progress):
        some = nothing.with_edges(order[:n])
        edges = some.edge_list(subject.model)
        if sizes and len(edges) == sizes[-1][0]:
            continue
        for edge in edges:
            enters.setdefault((edge.source, edge.target), len(sizes))
        sizes.append((len(edges), subject.loss(subject.gates_of(some))))
    return tuple(sizes), enters


def _grid(n: int) -> list[int]:
    """Give numbers from 0 to n, all of them or evenly spread in their logarithm.

    Examples:
        >>> _grid(3), _grid(0), len(_grid(5000)), _grid(5000)[-1]
        ([0, 1, 2, 3], [0], 24, 5000)
    """
    if n < MAX_SIZES:
        return list(range(n + 1))
    found = [0, 1]
    for i in range(1, MAX_SIZES - 1):
        even = n ** (i / (MAX_SIZES - 2))
        left = MAX_SIZES - 2 - i
        found.append(min(max(round(even), found[-1] + 1), n - left))
    return found
