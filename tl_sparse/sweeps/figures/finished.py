"""The finished cells of a plan, and which of them are compared.

What is not done yet is left out and counted. Each sparse model is set beside the dense one, of the
same seed and text, whose validation loss is nearest; the gap stands beside it. Circuits are
compared on the tasks that both have a circuit with edges for, and a ratio is the geometric mean
over tasks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tl_sparse.sweeps.cells import (
    BitsCell,
    Cell,
    CircuitCell,
    ConceptCell,
    ModelCell,
    NGramCell,
    SAECell,
)
from tl_sparse.sweeps.figures.means import Estimate, estimate
from tl_sparse.sweeps.plans import is_dense
from tl_sparse.sweeps.presets import TARGET
from tl_sparse.sweeps.store import Store

Counts = dict[str, int]
"""Edges of a circuit, or nodes, by task."""


class Finished:
    """The finished cells of a plan, by what one asks for."""

    def __init__(self, cells: Iterable[Cell], store: Store) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.models: dict[str, ModelCell] = {}
        self.saes: list[SAECell] = []
        self.circuits: list[CircuitCell] = []
        self.concepts: list[ConceptCell] = []
        self.scored: list[BitsCell] = []
        self.n_grams: list[NGramCell] = []
        self.n_asked = 0
        for cell in {cell.key: cell for cell in cells}.values():
            self.n_asked += 1
            result = store.result(cell)
            if result is None:
                continue
            self.results[cell.key] = result
            if isinstance(cell, ModelCell):
                if not result.get("diverged"):
                    self.models[cell.key] = cell
            elif isinstance(cell, SAECell):
                self.saes.append(cell)
            elif isinstance(cell, CircuitCell):
                self.circuits.append(cell)
            elif isinstance(cell, NGramCell):
                self.n_grams.append(cell)
            elif isinstance(cell, ConceptCell) and not result.get("diverged"):
                self.concepts.append(cell)
            elif isinstance(cell, BitsCell) and not result.get("diverged"):
                self.scored.append(cell)

    def loss(self, model: ModelCell) -> float:
        """Give a model's validation loss."""
        return self.results[model.key]["validation_loss"]

    def tried(
        self, model: ModelCell, *, target: float = TARGET, method: str = "learned",
        saes: bool = False,
    ) -> list[CircuitCell]:  # fmt: skip
        """List a model's circuits, or those of its SAEs, with those that were not found."""
        return [
            cell for cell in self.circuits
            if cell.model.key == model.key and cell.pruning.target_loss == target
            and cell.pruning.method == method and (cell.saes is not None) is saes
        ]  # fmt: skip

    def counts(
        self, model: ModelCell, what: str, *, target: float = TARGET, saes: bool = False
    ) -> Counts:
        """Give a number of each result of a model, or its SAEs, by task, where there are edges."""
        results = {
            cell.task: self.results[cell.key]
            for cell in self.tried(model, target=target, saes=saes)
        }
        return {task: r[what] for task, r in results.items() if r.get("n_edges", 0)}

    def edges(
        self, model: ModelCell, *, target: float = TARGET, method: str = "learned",
        stage: str | None = None,
    ) -> Counts:  # fmt: skip
        """Give the edges of a model's circuits by task, of those that have any.

        `stage` counts those left after a stage of the pruner, "nodes" or "edges", not at its end.
        """
        found = {}
        for cell in self.tried(model, target=target, method=method):
            result = self.results[cell.key]
            n_edges = result.get("n_edges", 0)
            if stage is not None and n_edges:
                n_edges = {s["stage"]: s["n_edges"] for s in result.get("stages", ())}.get(stage, 0)
            if n_edges:
                found[cell.task] = n_edges
        return found

    def dense(self, seed: int) -> list[ModelCell]:
        """List the dense models of a seed, narrow ones first."""
        some = [m for m in self.models.values() if is_dense(m) and m.training.seed == seed]
        return sorted(some, key=lambda m: m.width)

    def sparse(self) -> list[ModelCell]:
        """List the sparse models, in the order of the plan."""
        return [m for m in self.models.values() if not is_dense(m)]

    def match(self, model: ModelCell) -> ModelCell | None:
        """Give the dense model of the same seed whose validation loss is nearest."""
        rivals = self.dense(model.training.seed)
        return min(rivals, key=lambda m: abs(self.loss(m) - self.loss(model)), default=None)


def by_recipe(models: Sequence[ModelCell]) -> dict[tuple[Any, ...], list[ModelCell]]:
    """Put the seeds of one recipe together."""
    found: dict[tuple[Any, ...], list[ModelCell]] = {}
    for model in models:
        spec = model.spec()
        spec["training"].pop("seed")
        key = (model.width, model.sparsity.weight_density, str(spec))
        found.setdefault(key, []).append(model)
    return found


def mean(values: Sequence[float]) -> float:
    """Give the mean."""
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """Give the greatest less the least; of one value there is none."""
    return round(max(values) - min(values), 4) if len(values) > 1 else None


def pooled(some: Iterable[Counts]) -> Estimate | None:
    """Give the geometric mean over tasks of the edges of several seeds."""
    groups: dict[str, list[float]] = {}
    for edges in some:
        for task, n in edges.items():
            groups.setdefault(task, []).append(n)
    return estimate(groups)


def ratio(pairs: Iterable[tuple[Counts, Counts]]) -> Estimate | None:
    """Give the geometric mean of how many times the second has the first's edges.

    On the tasks that both of a pair have; the pairs are seeds.
    """
    groups: dict[str, list[float]] = {}
    for first, second in pairs:
        for task in first.keys() & second.keys():
            groups.setdefault(task, []).append(second[task] / first[task])
    return estimate(groups)


def listed(found: Estimate | None) -> list[float] | None:
    """Give an estimate as a table has it: value, low and high, or None."""
    return None if found is None else found.to_list()
