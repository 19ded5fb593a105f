"""The smallest of nested selections that reaches the target.

Ranking nodes or edges by tau gives one nested selection for each size. Loss is not monotone in the
size, so sizes are tried from small to large, and the rule for dropped nodes is applied at each.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from tl_sparse.circuit import Site
from tl_sparse.pruning.trial import Trial
from tl_sparse.selection import Selection, select_nodes
from tl_sparse.sites import Joint

Key = TypeVar("Key", bound=Hashable)
Curve = list[tuple[int, float]]
"""Sizes tried, as (number of nodes or edges asked for, validation loss)."""


def choose_nodes(
    trial: Trial, taus: Mapping[Site, Tensor], target: float, *, tie_qk: bool, progress: bool
) -> tuple[Selection | None, Curve]:
    """Give the smallest selection of nodes that reaches the target, if any; the sizes tried."""
    select = nested_nodes(trial, taus, tie_qk=tie_qk)
    total = sum(len(tau) for tau in taus.values())
    return _choose(trial, select, total, target, progress)


def nested_nodes(
    trial: Trial, taus: Mapping[Site, Tensor], *, tie_qk: bool
) -> Callable[[int], Selection]:
    """Give the function from a number of nodes to the selection of those ranked highest."""
    ranks = rank(taus)

    def select(n: int) -> Selection:
        kept = {site: place < n for site, place in ranks.items()}
        if tie_qk:
            for site in list(kept):
                if site.name == "q":
                    key = Site(site.layer, "k")
                    kept[site] = kept[key] = kept[site] | kept[key]
        return select_nodes(kept, trial.weights, tie_qk=tie_qk)

    return select


def choose_edges(
    trial: Trial,
    selection: Selection,
    taus: Mapping[Joint, Tensor],
    target: float,
    *,
    progress: bool,
) -> tuple[Selection, Curve]:
    """Give the smallest selection of a selection's edges that reaches the target; sizes tried."""
    if not taus:
        return selection, []
    ranks = rank(taus)

    def select(n: int) -> Selection:
        edges = {joint: kept.clone() for joint, kept in selection.edges.items()}
        for joint, place in ranks.items():
            edges[joint][selection.edges[joint]] = place < n
        return Selection(selection.nodes, edges, selection.tie_qk).settled()

    chosen, curve = _choose(trial, select, selection.n_edges, target, progress)
    return chosen or selection, curve


def rank(taus: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Give each its place, from 0, in the order of falling tau; ties by position."""
    flat = torch.cat(list(taus.values()))
    order = torch.argsort(flat, descending=True, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return dict(zip(taus, places.split([len(tau) for tau in taus.values()]), strict=True))


def _choose(
    trial: Trial, select: Callable[[int], Selection], total: int, target: float, progress: bool
) -> tuple[Selection | None, Curve]:
    curve: dict[int, float] = {}

    def loss_at(n: int) -> float:
        if n not in curve:
            curve[n] = trial.loss(select(n))
        return curve[n]

    chosen = _smallest(loss_at, total, target, progress)
    return None if chosen is None else select(chosen), sorted(curve.items())


def _smallest(
    loss_at: Callable[[int], float], total: int, target: float, progress: bool
) -> int | None:
    """Give the smallest size that reaches the target: sizes 20 % apart, upwards, then finer."""
    last = -1
    for n in tqdm(grid(1, total, 1.2), desc="choose size", disable=not progress):
        if loss_at(n) <= target:
            return next(m for m in grid(last + 1, n, 1.02) if loss_at(m) <= target)
        last = n
    return None


def grid(first: int, last: int, ratio: float) -> list[int]:
    """Give rising whole numbers from `first` to `last`, about `ratio` apart, at least 1."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(last, max(sizes[-1] + 1, int(sizes[-1] * ratio))))
    return sizes
