"""From finished cells to a figure's numbers: one dict, from which the page is written.

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
from tl_sparse.sweeps.means import Estimate, estimate
from tl_sparse.sweeps.plans import is_dense
from tl_sparse.sweeps.presets import TARGET
from tl_sparse.sweeps.store import Store

STAGES = {
    "nodes": "stage one, nodes (the paper's count)",
    "edges": "stage two, single weights",
    None: "the clean-up",
}
"""Stages of the pruner, in words; None is its end."""

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


def model_rows(done: Finished, *, target: float = TARGET) -> list[dict[str, Any]]:
    """Give a row for each recipe: loss, size, tasks, edges, and the ratio to its match."""
    rows = []
    for models in by_recipe([*done.sparse(), *_all_dense(done)]).values():
        first = models[0]
        results = [done.results[m.key] for m in models]
        edges = [done.edges(m, target=target) for m in models]
        row: dict[str, Any] = {
            "arm": "dense" if is_dense(first) else "sparse",
            "width": first.width,
            "nonzeros in blocks": results[0]["n_nonzero_blocks"],
            "activation density": first.sparsity.activation_density,
            "seeds": len(models),
            "validation loss": round(mean([r["validation_loss"] for r in results]), 4),
            "log kurtosis": round(mean([r["kurtosis"] for r in results]), 3),
            "tasks tried": max(len(done.tried(m, target=target)) for m in models),
            "tasks with a circuit": [len(some) for some in edges],
            "edges": listed(pooled(edges)),
        }
        if not is_dense(first):
            row |= _against_match(done, models, target)
        rows.append(row)
    return rows


def _all_dense(done: Finished) -> list[ModelCell]:
    return [m for m in done.models.values() if is_dense(m)]


def listed(found: Estimate | None) -> list[float] | None:
    """Give an estimate as a table has it: value, low and high, or None."""
    return None if found is None else found.to_list()


def _against_match(done: Finished, models: Sequence[ModelCell], target: float) -> dict[str, Any]:
    pairs, gaps, widths = [], [], []
    for model in models:
        rival = done.match(model)
        if rival is None:
            continue
        gaps.append(done.loss(rival) - done.loss(model))
        widths.append(rival.width)
        pairs.append((done.edges(model, target=target), done.edges(rival, target=target)))
    if not pairs:
        return {}
    found = ratio(pairs)
    return {
        "matched dense widths": widths,
        "mean loss gap": round(mean(gaps), 4),
        "dense / sparse edges": listed(found),
        "tasks compared": 0 if found is None else found.n,
    }


def target_rows(done: Finished, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Give a row for each target loss: edges of the sparse models and of their matches."""
    return [{"target loss": target} | _side_by_side(done, target, None) for target in targets]


def stage_rows(done: Finished, *, target: float = TARGET) -> list[dict[str, Any]]:
    """Give a row for each stage of the pruner, where there is a ratio: edges left after it.

    What is left after the first stage is all weights between the nodes that are kept: a circuit as
    Gao et al. (2025) count it.
    """
    rows = [
        {"edges left after": words} | _side_by_side(done, target, stage)
        for stage, words in STAGES.items()
    ]
    return [row for row in rows if row["tasks compared"]]


def _side_by_side(done: Finished, target: float, stage: str | None) -> dict[str, Any]:
    """Give the edges of the sparse models and of their matches, on the tasks that both have."""
    pairs = [
        (done.edges(m, target=target, stage=stage), done.edges(rival, target=target, stage=stage))
        for m in done.sparse()
        if (rival := done.match(m)) is not None
    ]
    both = [{t: a[t] for t in a.keys() & b.keys()} for a, b in pairs]
    others = [{t: b[t] for t in a.keys() & b.keys()} for a, b in pairs]
    found = ratio(pairs)
    return {
        "sparse edges": listed(pooled(both)),
        "dense edges": listed(pooled(others)),
        "dense / sparse": listed(found),
        "tasks compared": 0 if found is None else found.n,
    }


def task_rows(done: Finished, *, target: float = TARGET) -> list[dict[str, Any]]:
    """Give a row for each task: each seed's edges, or why there is no circuit, in both arms."""
    rows: dict[str, dict[str, Any]] = {}
    for dense in (False, True):
        for model in done.models.values():
            if is_dense(model) is not dense:
                continue
            for cell in done.tried(model, target=target):
                row = rows.setdefault(cell.task, {"task": cell.task, "sparse": [], "dense": []})
                result = done.results[cell.key]
                row["dense" if dense else "sparse"].append(result.get("n_edges", result["note"]))
    return list(rows.values())


def verdict_rows(done: Finished) -> list[dict[str, Any]]:
    """Count how often each claim of the audit holds, by arm."""
    rows = []
    of_arm: dict[str, list[CircuitCell]] = {"sparse": [], "dense": [], "SAEs on the dense": []}
    for cell in done.circuits:
        arm = "dense" if is_dense(cell.model) else "sparse"
        of_arm[arm if cell.saes is None else f"SAEs on the {arm}"].append(cell)
    for arm, cells in of_arm.items():
        results = [done.results[cell.key] for cell in cells]
        audited = [result["verdicts"] for result in results if "verdicts" in result]
        for claim in dict.fromkeys(claim for one in audited for claim in one):
            tested = [one[claim] for one in audited if one.get(claim) != "not tested"]
            if tested:
                rows.append(
                    {"arm": arm, "claim": claim, "holds": tested.count("holds"), "of": len(tested)}
                )
    return rows


def method_rows(done: Finished) -> list[dict[str, Any]]:
    """Compare the edges after learned node masks with those after attribution, by arm."""
    rows = []
    for arm, dense in (("sparse", False), ("dense", True)):
        models = [m for m in done.models.values() if is_dense(m) is dense]
        pairs = [
            (done.edges(m, stage="nodes"), done.edges(m, method="attribution")) for m in models
        ]
        found = ratio(pairs)
        rows.append(
            {
                "arm": arm,
                "attribution / learned": listed(found),
                "tasks compared": 0 if found is None else found.n,
            }
        )
    return rows
