"""Tables of models, targets, stages, tasks, claims, methods and changes of the optimiser."""

from collections.abc import Iterable, Sequence
from typing import Any

from tl_sparse.sweeps.cells import CircuitCell, ModelCell
from tl_sparse.sweeps.figures.finished import (
    Counts,
    Finished,
    by_recipe,
    listed,
    mean,
    pooled,
    ratio,
    spread,
)
from tl_sparse.sweeps.plans import ABLATIONS, ablated_model, is_dense
from tl_sparse.sweeps.presets import TARGET, Preset
from tl_sparse.sweeps.text import Text

STAGES = {
    "nodes": "stage one, nodes (the paper's count)",
    "edges": "stage two, single weights",
    None: "the clean-up",
}
"""Stages of the pruner, in words; None is its end."""


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


def _against_match(done: Finished, models: Sequence[ModelCell], target: float) -> dict[str, Any]:
    pairs, by_nodes, gaps, widths = [], [], [], []
    for model in models:
        rival = done.match(model)
        if rival is None:
            continue
        gaps.append(done.loss(rival) - done.loss(model))
        widths.append(rival.width)
        pairs.append((done.edges(model, target=target), done.edges(rival, target=target)))
        nodes = {"target": target, "stage": "nodes"}
        by_nodes.append((done.edges(model, **nodes), done.edges(rival, **nodes)))
    if not pairs:
        return {}
    found = ratio(pairs)
    return {
        "matched dense widths": widths,
        "mean loss gap": round(mean(gaps), 4),
        "dense / sparse edges": listed(found),
        "by nodes": listed(ratio(by_nodes)),
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
    return _both(
        [
            (
                done.edges(m, target=target, stage=stage),
                done.edges(rival, target=target, stage=stage),
            )
            for m in done.sparse()
            if (rival := done.match(m)) is not None
        ],
        names=("sparse edges", "dense edges", "dense / sparse"),
    )


def _both(pairs: Sequence[tuple[Counts, Counts]], *, names: tuple[str, str, str]) -> dict[str, Any]:
    """Give the edges of either side on the tasks that both of a pair have, and their ratio."""
    first = [{t: a[t] for t in a.keys() & b.keys()} for a, b in pairs]
    second = [{t: b[t] for t in a.keys() & b.keys()} for a, b in pairs]
    found = ratio(pairs)
    values = [listed(pooled(first)), listed(pooled(second)), listed(found)]
    return dict(zip(names, values, strict=True)) | {"tasks compared": found.n if found else 0}


def task_rows(done: Finished, *, target: float = TARGET) -> list[dict[str, Any]]:
    """Give a row for each task: each seed's edges in both arms, their ratio, and what is missing.

    `by nodes` is the ratio after stage one, the paper's count. A seed without a circuit has None,
    and `no circuit` says why.
    """
    pairs = [(m, rival) for m in done.sparse() if (rival := done.match(m)) is not None]
    cells = {
        (arm, seed, cell.task): cell
        for seed, pair in enumerate(pairs)
        for arm, model in zip(("sparse", "dense"), pair, strict=True)
        for cell in done.tried(model, target=target)
    }
    rows = []
    for task in dict.fromkeys(task for _, _, task in cells):
        row: dict[str, Any] = {"task": task}
        notes: dict[str, int] = {}
        for arm in ("sparse", "dense"):
            row[arm] = []
            for seed in range(len(pairs)):
                cell = cells.get((arm, seed, task))
                result = {"note": "not done"} if cell is None else done.results[cell.key]
                row[arm].append(result.get("n_edges"))
                if result["note"]:
                    why = f"{arm}: {result['note']}"
                    notes[why] = notes.get(why, 0) + 1
        for name, stage in (("dense / sparse", None), ("by nodes", "nodes")):
            edges = [
                (
                    done.edges(a, target=target, stage=stage),
                    done.edges(b, target=target, stage=stage),
                )
                for a, b in pairs
            ]
            found = ratio([({task: x[task]}, {task: y[task]}) for x, y in edges
                           if task in x and task in y])  # fmt: skip
            row[name] = None if found is None else float(f"{found.value:.3g}")
        row["no circuit"] = "; ".join(f"{why} ({n})" for why, n in notes.items()) or None
        rows.append(row)
    return sorted(rows, key=lambda row: -(row["dense / sparse"] or 0))


def verdict_rows(done: Finished, models: Iterable[ModelCell] | None = None) -> list[dict[str, Any]]:
    """Count how often each claim of the audit holds, by arm, in all models or in some."""
    rows, keys = [], None if models is None else {model.key for model in models}
    of_arm: dict[str, list[CircuitCell]] = {"sparse": [], "dense": [], "SAEs on the dense": []}
    for cell in done.circuits:
        if keys is not None and cell.model.key not in keys:
            continue
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
    """Compare the edges after learned node masks with those after attribution, by recipe.

    Both are the paper's count, all weights between the nodes that are kept.
    """
    rows = []
    for models in by_recipe([*done.sparse(), *_all_dense(done)]).values():
        first = models[0]
        learned = [done.edges(m, stage="nodes") for m in models]
        attributed = [done.edges(m, method="attribution") for m in models]
        rows.append(
            {
                "arm": "dense" if is_dense(first) else "sparse",
                "width": first.width,
                "seeds": len(models),
                "tasks with a circuit, learned": [len(some) for some in learned],
                "by attribution": [len(some) for some in attributed],
            }
            | _both(
                list(zip(learned, attributed, strict=True)),
                names=("edges, learned", "edges, attribution", "attribution / learned"),
            )
        )
    return rows


def method_task_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each task on each size of model: each seed's edges by either method."""
    rows = []
    for models in by_recipe([*done.sparse(), *_all_dense(done)]).values():
        sides = [
            (done.edges(m, stage="nodes"), done.edges(m, method="attribution")) for m in models
        ]
        tasks = dict.fromkeys(cell.task for m in models for cell in done.tried(m))
        for task in tasks:
            both = [({task: a[task]}, {task: b[task]}) for a, b in sides if task in a.keys() & b]
            found = ratio(both)
            rows.append(
                {
                    "arm": "dense" if is_dense(models[0]) else "sparse",
                    "task": task,
                    "learned": [a.get(task) for a, _ in sides],
                    "attribution": [b.get(task) for _, b in sides],
                    "attribution / learned": found and float(f"{found.value:.3g}"),
                }
            )
    return [row for row in rows if any(row["learned"]) or any(row["attribution"])]


def optimizer_rows(preset: Preset, text: Text, done: Finished) -> list[dict[str, Any]]:
    """Give a row for each change of the optimiser: mean loss, its spread over seeds, difference.

    The difference is that of means, of whatever seeds are done: the same seed with another recipe
    is no nearer than another seed.
    """
    rows, whole = [], None
    for name, changes in ABLATIONS.items():
        cells = [ablated_model(preset, text, seed=s, changes=changes) for s in preset.seeds]
        found = [done.results[c.key] for c in cells if c.key in done.results]
        losses = [r["validation_loss"] for r in found if not r.get("diverged")]
        loss = mean(losses) if losses else None
        whole = loss if not changes else whole
        rows.append(
            {
                "change": name,
                "seeds": len(found),
                "diverged": len(found) - len(losses),
                "validation loss": None if loss is None else round(loss, 4),
                "spread over seeds": spread(losses),
                "difference": None if loss is None or whole is None else round(loss - whole, 4),
            }
        )
    return rows
