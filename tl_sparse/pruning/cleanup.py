"""Clean-up: what the target does not need goes. The paper's authors did this by hand.

1. singles: take out each node, then each edge, that the target can do without, the lowest tau
   first, until each of those left is needed. Of many, whole handfuls go first, and circuits of
   more than `config.max_singles` edges, which nobody reads one by one, end with handfuls of
   four;
2. pairs: two edges that only go together;
3. exchanges: put one edge back that was cut, and take out what it makes needless. Single removals
   alone end far from the smallest circuit.

Steps 2 and 3 are for circuits of up to `config.max_exchange` edges and repeat, with step 1 after
each success, until nothing helps. Edges come before nodes: fewer edges is the aim.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.config import PruningConfig
from tl_sparse.pruning.trial import Trial
from tl_sparse.selection import Selection
from tl_sparse.sites import Joint

N_SCREEN = 32
"""Examples on which a removal is tried before it is tried on all."""

N_TRIED_BACK = 16
"""Edges that an exchange tries to put back, the most helpful ones."""

N_LOOSEST = 16
"""Of larger circuits, the edges that pairs and exchanges try to take out: those whose removal alone
costs least."""


class CleanUp:
    """The clean-up of one selection; `best` is the smallest found so far that meets the target."""

    def __init__(
        self,
        trial: Trial,
        selection: Selection,
        pool: Selection,
        node_taus: Mapping[Site, Tensor],
        edge_taus: Mapping[Joint, Tensor],
        config: PruningConfig,
        progress: bool,
    ) -> None:
        self.trial, self.best, self.pool, self.config = trial, selection, pool, config
        self.progress = progress
        self._losses: dict[tuple[bytes, int | None], float] = {}
        self.n_screen = min(N_SCREEN, trial.task.n_examples("validation"))
        self.node_tau = {site: tau.tolist() for site, tau in node_taus.items()}
        self.edge_tau: dict[tuple[Node, Node], float] = {}
        for joint, tau in edge_taus.items():
            places = pool.edges[joint].nonzero().tolist()
            for (source, target), value in zip(places, tau.tolist(), strict=True):
                self.edge_tau[Node(joint.source, source), Node(joint.target, target)] = value

    def run(self) -> Selection:
        """Go through the three steps until nothing can go."""
        self.singles()
        while self.config.exchange and self.best.n_edges <= self.config.max_exchange:
            before = self.best
            for step in (self.pairs, self.exchanges):
                if step():
                    self.singles()
            if self.best is before:
                break
        return self.best

    # -- the steps ----------------------------------------------------------------------------

    def singles(self) -> None:
        """Take out nodes and edges one by one until each is needed."""
        changed = True
        while changed:
            changed = self._handfuls("nodes")
            for node in self._bar(self._nodes(), "drop nodes"):
                if self.best.nodes[node.site][node.channel]:
                    changed |= self._accept(self.best.without(nodes=[node]))
            if self.config.edges:
                changed |= self._handfuls("edges")
                few = self.best.n_edges <= self.config.max_singles
                for edge in self._bar(self._edges() if few else (), "drop edges"):
                    if self._has(self.best, edge):
                        changed |= self._accept(self.best.without(edges=[edge]))

    def _handfuls(self, what: Literal["nodes", "edges"]) -> bool:
        """Take out many at a time, while there are many times more: it saves most trials."""
        before = self.best
        for size in (64, 16, 4):
            some = self._nodes() if what == "nodes" else self._edges()
            starts = range(0, len(some), size) if len(some) > 8 * size else ()
            for start in self._bar(starts, f"drop {size} {what}"):
                handful: dict[str, Any] = {what: some[start : start + size]}
                self._accept(self.best.without(**handful))
        return self.best is not before

    def pairs(self) -> bool:
        """Take out two loose edges at once, each pair tried once; tell whether some went."""
        before = self.best
        for pair in self._bar(list(combinations(self._loosest(), 2)), "drop pairs"):
            if all(self._has(self.best, edge) for edge in pair):
                self._accept(self.best.without(edges=pair))
        return self.best is not before

    def exchanges(self) -> bool:
        """Put one cut edge back and take out more than that, once; tell whether it worked."""
        outside = [e for e in self.pool.edge_list(self.trial.model) if not self._has(self.best, e)]
        outside.sort(key=lambda edge: -self._tau(edge))
        with_one = [self.best.with_edges([edge]) for edge in outside[: 4 * N_TRIED_BACK]]
        losses = [self._loss(more, n_examples=self.n_screen) for more in with_one]
        order = sorted(range(len(with_one)), key=losses.__getitem__)[:N_TRIED_BACK]
        goal = self.best.n_edges
        loose = self._loosest()
        for i in self._bar(order, "exchange"):
            fewer = self._shrink(with_one[i], [*loose, outside[i]], goal)
            if fewer.n_edges < goal and self._accept(fewer):
                return True
        return False

    def _shrink(self, selection: Selection, edges: list[Edge], goal: int) -> Selection:
        """Take out, again and again, the edge whose absence costs least, while the target holds."""
        while selection.n_edges >= goal:
            trials = [
                selection.without(edges=[edge]) for edge in edges if self._has(selection, edge)
            ]
            losses = [self._loss(fewer, selection, n_examples=self.n_screen) for fewer in trials]
            if not losses or min(losses) > self._screen():
                break
            selection = trials[losses.index(min(losses))]
        return selection

    def _loosest(self) -> list[Edge]:
        """Give the edges whose removal alone costs least, all of them in a small circuit."""
        edges = self._edges()
        if len(edges) <= N_LOOSEST:
            return edges
        costs = [
            self._loss(self.best.without(edges=[edge]), n_examples=self.n_screen)
            for edge in self._bar(edges, "loose edges")
        ]
        order = sorted(range(len(edges)), key=costs.__getitem__)[:N_LOOSEST]
        return [edges[i] for i in sorted(order)]

    # -- judging ------------------------------------------------------------------------------

    def _accept(self, fewer: Selection) -> bool:
        """Take a selection over if it reaches the target, tried on a few examples first."""
        screen, target = self._screen(), self.config.target_loss
        if self._loss(fewer, n_examples=self.n_screen) > screen or self._loss(fewer) > target:
            return False
        self.best, self._screened = fewer, None
        return True

    def _loss(
        self,
        selection: Selection,
        changed_from: Selection | None = None,
        *,
        n_examples: int | None = None,
    ) -> float:
        """Give the loss of a selection that is another one, by default the best, with a change."""
        key = (_as_bytes(selection), n_examples)  # many a change makes what another one made
        if key not in self._losses:
            self.trial.start_from(changed_from or self.best)
            self._losses[key] = self.trial.loss(selection, n_examples=n_examples)
        return self._losses[key]

    _screened: float | None = None

    def _screen(self) -> float:
        """Give the loss on the few examples above which the target is out of reach on all."""
        if self._screened is None:  # they may be harder than the whole split
            here = self._loss(self.best, n_examples=self.n_screen)
            self._screened = 1.1 * max(self.config.target_loss, here)
        return self._screened

    def _nodes(self) -> list[Node]:
        return sorted(self.best.node_list(), key=lambda n: self.node_tau[n.site][n.channel])

    def _edges(self) -> list[Edge]:
        return sorted(self.best.edge_list(self.trial.model), key=self._tau)

    def _tau(self, edge: Edge) -> float:
        return self.edge_tau.get((edge.source, edge.target), 0.0)

    def _has(self, selection: Selection, edge: Edge) -> bool:
        return any(
            bool(kept[edge.source.channel, edge.target.channel])
            for joint, kept in selection.edges.items()
            if (joint.source, joint.target) == (edge.source.site, edge.target.site)
        )

    def _bar(self, items: Iterable[Any], what: str) -> Any:
        return tqdm(items, desc=what, disable=not self.progress, leave=False)


def _as_bytes(selection: Selection) -> bytes:
    kept = torch.cat(
        [some.flatten() for some in (*selection.nodes.values(), *selection.edges.values())]
    )
    return kept.nonzero().cpu().numpy().tobytes()
