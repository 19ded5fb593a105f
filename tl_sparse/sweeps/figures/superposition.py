"""Concepts that nodes track, in three arms: sparse models, dense ones near in loss, SAEs on those.

Each sparse model is set beside the dense one of its seed whose validation loss is nearest, as the
figures of circuits do. Numbers are means over seeds; a range is that of the seeds.
"""

from collections.abc import Sequence
from typing import Any

from tl_sparse.sweeps.cells import ConceptCell
from tl_sparse.sweeps.figures.arms import SAE_ARM
from tl_sparse.sweeps.figures.finished import Finished, mean
from tl_sparse.sweeps.plans import is_dense

DRAWN = "0.2"
"""The gain from which on the curves count a node as tracking a concept."""

MEASURES = {
    "nodes": 0,
    "nodes that track a concept": 1,
    "by chance": 1,
    "concepts per such node": 3,
    "monosemanticity": 3,
    "purity": 3,
    "concepts tracked": 1,
    "mean best gain": 3,
    "by chance, mean best gain": 3,
}
"""Numbers of a report's summary, and the digits that they are given with."""


def concept_arms(done: Finished) -> dict[str, list[dict[str, Any]]]:
    """Give the results of each arm that has any, one for each seed."""
    found: dict[str, list[dict[str, Any]]] = {"sparse": [], "dense": [], SAE_ARM: []}
    rivals = {m.key for sparse in done.sparse() if (m := done.match(sparse)) is not None}
    for cell in done.concepts:
        if is_dense(cell.model) and cell.model.key not in rivals and done.sparse():
            continue
        found[_arm(cell)].append(done.results[cell.key])
    return {arm: results for arm, results in found.items() if results}


def _arm(cell: ConceptCell) -> str:
    if cell.saes is not None:
        return SAE_ARM
    return "dense" if is_dense(cell.model) else "sparse"


def concept_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each arm: nodes, how many track a concept, and how well the best ones do."""
    rows = []
    for arm, results in concept_arms(done).items():
        summaries = [result["summary"] for result in results]
        row: dict[str, Any] = {"arm": arm, "seeds": len(results)}
        for measure, digits in MEASURES.items():
            values = [float(s[measure]) for s in summaries if s[measure] is not None]
            row[measure] = round(mean(values), digits or None) if values else None
        row["mean best F1"] = _with_range([s["mean best F1"] for s in summaries])
        rows.append(row)
    return rows


def gain_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each gain: the share of nodes that reach it, and for how many concepts."""
    arms = concept_arms(done)
    gains = dict.fromkeys(gain for some in arms.values() for r in some for gain in r["tracked"])
    rows = []
    for gain in gains:
        row: dict[str, Any] = {"gain at least": gain}
        for arm, results in arms.items():
            tracked = [result["tracked"][gain] for result in results]
            n_nodes = sum(result["summary"]["nodes"] for result in results)
            n_tracking = sum(t["nodes"] for t in tracked)
            n_lucky = sum(t["by chance"] for t in tracked)
            row[f"{arm}: nodes"] = f"{n_tracking / n_nodes:.1%}"
            row[f"{arm}: by chance"] = f"{n_lucky / n_nodes:.1%}"
            n_concepts = sum(t["concepts"] for t in tracked)
            row[f"{arm}: concepts per node"] = (
                round(n_concepts / n_tracking, 2) if n_tracking else None
            )
        rows.append(row)
    return rows


def best_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each concept: F1, precision and recall of the best node of each arm."""
    arms = concept_arms(done)
    rows: dict[str, dict[str, Any]] = {}
    for arm, results in arms.items():
        by_concept: dict[str, list[dict[str, Any]]] = {}
        for result in results:
            for found in result["concepts"]:
                by_concept.setdefault(found["concept"], []).append(found)
        for concept, some in by_concept.items():
            always = round(mean([f["always_f1"] for f in some]), 2)
            row = rows.setdefault(concept, {"concept": concept, "always": always})
            row[arm] = _with_range([f["f1"] for f in some])
            precision, recall = (mean([f[name] for f in some]) for name in ("precision", "recall"))
            row[f"{arm}, precision / recall"] = f"{precision:.2f} / {recall:.2f}"
            lucky = max(f["chance_f1"] for f in some)
            row["shifted"] = round(max(lucky, row.get("shifted", 0.0)), 2)
    # The highest F1 on shifted labels, of all arms, stands last.
    return [row | {"shifted": row.pop("shifted")} for row in rows.values()]


def concept_curves(done: Finished) -> dict[str, list[tuple[float, float]]]:
    """Give the share of nodes over the concepts that they track at least, by arm."""
    curves = {}
    for arm, results in concept_arms(done).items():
        shares = [result["tracked"][DRAWN]["at least"] for result in results]
        longest = max(len(some) for some in shares)
        curves[arm] = [
            (float(k), mean([some[k] if k < len(some) else 0.0 for some in shares]))
            for k in range(longest)
        ]
    return curves


def _with_range(values: Sequence[float]) -> str:
    """Write a mean, and behind it the lowest and the highest of several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
