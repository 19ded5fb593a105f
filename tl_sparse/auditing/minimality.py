"""Can anything go? Drop each edge alone; and the curve on which all go, the least needed first."""

import math
from collections.abc import Iterator

from tqdm import tqdm

from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Subject
from tl_sparse.circuit import Edge


def minimality(
    subject: Subject, costs: dict[Edge, float], curves: dict[str, list[tuple[float, float]]]
) -> Iterator[Finding]:
    """Judge every edge's removal, by the losses of `drop_one`; not without edges or a target."""
    if costs and not math.isnan(subject.circuit.target_loss):
        target = max(subject.circuit.target_loss, subject.trial.loss(subject.selection))
        needless = sum(cost <= target for cost in costs.values())
        yield Finding(
            "minimal", "share of edges whose removal alone the target allows",
            needless / len(costs), 0.0, at_most=True,
            why="an edge that can go is no part of an explanation",
        )  # fmt: skip
    edges = subject.selection.edge_list(subject.model)
    order = sorted(costs, key=costs.__getitem__)
    fewer = subject.selection
    points = [(float(fewer.n_edges), subject.alone)]
    for edge in order if len(costs) == len(edges) else ():
        fewer = fewer.without(edges=[edge])
        if fewer.n_edges < points[-1][0]:
            points.append((float(fewer.n_edges), subject.loss(subject.gates_of(fewer))))
    curves["edges left, test loss"] = points[::-1]


def drop_one(subject: Subject, progress: bool) -> dict[Edge, float]:
    """Give the loss without each edge; of very many, of some evenly spread.

    On all of the validation examples, by which the circuit was chosen, whatever `n_examples` says,
    and beside the surroundings that it was chosen beside, if it was.
    """
    return {
        edge: subject.trial.loss(subject.selection.without(edges=[edge]))
        for edge in tqdm(subject.some_edges(), desc="drop one", disable=not progress)
    }
