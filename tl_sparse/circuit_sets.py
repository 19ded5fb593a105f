"""Circuits of one model as sets: what both have, what either has, what only the first has.

1. What is out has to be set to the same in both, or the two together would be run as neither was:
   the same ablation, and the same reference value wherever both hold one.
2. Nodes and edges combine as sets. An edge is known by its ends: its weight is the model's.
3. What is said of the circuit stays where both say the same. Losses nobody has measured.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tl_sparse.circuit import Circuit
from tl_sparse.nodes import Node, Site, edge_order

ROUNDING = 1e-5
"""Of the largest value at a site: the same means, measured on another processor, differ by less."""

OF_BOTH = ("answers", "references", "saes", "task_file", "versions")
"""What stays of the provenance if both have the same: what is of the model, the task and what is
out, and not of the search."""


def combined(
    one: Circuit, other: Circuit, sign: str, combine: Callable[[set[Any], set[Any]], set[Any]]
) -> Circuit:
    """Combine two circuits of one model by a set operation, whose sign is `&`, `|` or `-`.

    Raises:
        ValueError: If they are of different models, or what is out is set to other values.
    """
    one.check_same_model(other)
    _check_same_values(one, other)
    mine = {(edge.source, edge.target): edge for edge in one.edges}
    theirs = {(edge.source, edge.target): edge for edge in other.edges}
    ends = combine(set(mine), set(theirs))
    nodes = combine(set(one.nodes), set(other.nodes)).union(*ends)
    same_task, names = one.task == other.task, f"{one.task} {sign} {other.task}"
    same_target = same_task and one.target_loss == other.target_loss
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(sorted((mine.get(two) or theirs[two] for two in ends), key=edge_order)),
        references={**other.references, **one.references},
        task=one.task if same_task else names,
        model_hash=one.model_hash,
        ablation=one.ablation,
        tie_qk=one.tie_qk and other.tie_qk,
        target_loss=one.target_loss if same_target else math.nan,
        forced=one.forced or other.forced,
        provenance=_of_both(one.provenance, other.provenance) | {"combined": names},
        labels=_names(one.labels, other.labels, nodes),
        groups=_names(one.groups, other.groups, nodes),
    )


def _check_same_values(one: Circuit, other: Circuit) -> None:
    """Check that a node that is out takes the same value in both."""
    both = f"The circuits {one.task} and {other.task}"
    if one.ablation != other.ablation:
        raise ValueError(
            f"{both} were found under other ablations: what is out is set to {one.ablation!r} and "
            f"to {other.ablation!r}. Prune both under one, or compare them only: jaccard, overlap."
        )
    noted, also = (each.provenance.get("references", {}) for each in (one, other))
    if one.ablation == "resample_corpus" and noted != also:
        raise ValueError(
            f"{both} take the values of what is out from other prompts: {noted} and {also}. Prune "
            "both with the same references."
        )
    for site in sorted(set(one.references) & set(other.references)):
        if unlike := _unlike(site, one.references[site], other.references[site]):
            raise ValueError(
                f"{both} have other reference values: {unlike}. Prune both with the same "
                "references, or give one the other's: dataclasses.replace(circuit, "
                "references=other.references)."
            )


def _unlike(site: Site, mine: Sequence[float], theirs: Sequence[float]) -> str:
    """Say where the reference values of a site differ by more than rounding, if they do."""
    if len(mine) != len(theirs):
        return f"{len(mine)} and {len(theirs)} of them for {site}"
    largest = max(map(abs, (*mine, *theirs)), default=0.0)
    for channel, (here, there) in enumerate(zip(mine, theirs, strict=True)):
        if abs(here - there) > ROUNDING * largest:
            return f"{here:g} and {there:g} for the node {Node(site, channel)}"
    return ""


def _of_both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Give what two provenances have in common; of the settings too, where seeds may differ."""
    kept = {name: one[name] for name in OF_BOTH if name in one and one[name] == other.get(name)}
    mine, theirs = one.get("pruning", {}), other.get("pruning", {})
    settings = {k: v for k, v in mine.items() if k in theirs and theirs[k] == v}
    return kept | ({"pruning": settings} if settings else {})


def _names(
    one: Mapping[str, str], other: Mapping[str, str], nodes: Collection[Node]
) -> dict[str, str]:
    """Give the labels or groups of nodes that are left, but those on which the two disagree."""
    return {
        str(node): name
        for node in sorted(nodes)
        if (name := one.get(str(node), other.get(str(node)))) is not None
        and other.get(str(node), name) == name
    }
