"""The arms side by side: sparse, dense, and SAEs on the dense.

1. Each sparse model has its dense match (`Finished.match`), and the SAE arm is on that match.
2. A row for each arm gives its circuits' nodes and edges, as geometric means over the tasks that it
   has circuits for, and how many times the sparse and the dense arm's they are, task by task, on
   tasks that both have.
3. Of the SAE arm also: what its nodes are (latents, errors of a site, channels of sites without an
   SAE), its edges at errors, and the standard scores of the SAEs.
"""

from collections.abc import Sequence
from typing import Any

from tl_sparse.sae_arm import ArmScores
from tl_sparse.sweeps.cells import ModelCell
from tl_sparse.sweeps.figures.finished import (
    Counts,
    Finished,
    listed,
    mean,
    pooled,
    ratio,
)
from tl_sparse.sweeps.figures.tables import target_rows
from tl_sparse.sweeps.presets import TARGET

ARMS = {"sparse": (0, False), "dense": (1, False), "SAEs on the dense": (1, True)}
"""Which model of a pair, and whether with SAEs."""

SAE_ARM = "SAEs on the dense"

NOTE = (
    "Edges between latents are virtual weights, not parameters, and what an SAE leaves out at a "
    "site, its error, is one node more, whose edges each bundle many weights: before comparing "
    "sizes see docs/concepts/sae_arm.md."
)

KINDS = {
    "latents": "n_latents", "errors": "n_errors", "channels": "n_channels",
    "edges at errors": "n_edges_of_errors",
}  # fmt: skip


def arm_rows(done: Finished, *, target: float = TARGET) -> list[dict[str, Any]]:
    """Give a row for each arm that has a circuit: sizes, and how many times the others'."""
    pairs = matched(done)
    rows = []
    for arm in ARMS:
        edges = _counts(done, pairs, arm, "n_edges", target)
        nodes = _counts(done, pairs, arm, "n_nodes", target)
        if not any(edges):
            continue
        row: dict[str, Any] = {
            "arm": arm,
            "tasks with a circuit": [len(some) for some in edges],
            "nodes": listed(pooled(nodes)),
            "edges": listed(pooled(edges)),
        }
        for other in ARMS:
            if other == arm:
                break
            row |= _against(done, pairs, (other, arm), target)
        rows.append(row | _kinds(done, pairs, arm, target))
    return rows


def matched(done: Finished) -> list[tuple[ModelCell, ModelCell]]:
    """Pair each sparse model with its dense match."""
    return [(m, rival) for m in done.sparse() if (rival := done.match(m)) is not None]


def _counts(
    done: Finished,
    pairs: Sequence[tuple[ModelCell, ModelCell]],
    arm: str,
    what: str,
    target: float,
) -> list[Counts]:
    """Give each pair's counts in an arm, by task."""
    side, saes = ARMS[arm]
    return [done.counts(pair[side], what, target=target, saes=saes) for pair in pairs]


def _against(
    done: Finished,
    pairs: Sequence[tuple[ModelCell, ModelCell]],
    arms: tuple[str, str],
    target: float,
) -> dict[str, Any]:
    """Give how many times the first arm's nodes and edges the second's are."""
    found, n_tasks = {}, 0
    for what in ("nodes", "edges"):
        first, second = (_counts(done, pairs, arm, f"n_{what}", target) for arm in arms)
        times = ratio(zip(first, second, strict=True))
        found[f"{what} / {arms[0]}"] = listed(times)
        n_tasks = 0 if times is None else times.n
    return found | {f"tasks compared with {arms[0]}": n_tasks}


def _kinds(
    done: Finished, pairs: Sequence[tuple[ModelCell, ModelCell]], arm: str, target: float
) -> dict[str, Any]:
    """Give the mean number of each kind of node in a circuit, if the arm has kinds."""
    found = {}
    for name, what in KINDS.items() if arm == SAE_ARM else ():
        some = _counts(done, pairs, arm, what, target)
        found[f"mean {name}"] = round(
            mean([float(n) for counts in some for n in counts.values()]), 1
        )
    return found


def three_arm_rows(done: Finished, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Give `target_rows`, and where there are circuits of SAEs how these compare with the sparse.

    On the tasks that the sparse model and the SAE arm have a circuit for, which may be others than
    those of the columns before.
    """
    pairs, rows = matched(done), target_rows(done, targets)
    for row in rows:
        sparse, saes = (
            _counts(done, pairs, arm, "n_edges", row["target loss"]) for arm in ("sparse", SAE_ARM)
        )
        if any(saes):
            both = [
                {t: b[t] for t in a.keys() & b.keys()} for a, b in zip(sparse, saes, strict=True)
            ]
            found = ratio(zip(sparse, saes, strict=True))
            row["SAE edges"] = listed(pooled(both))
            row["SAE / sparse"] = listed(found)
            row["tasks compared with SAEs"] = 0 if found is None else found.n
    return rows


def sae_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each set of SAEs: the standard scores."""
    rows = []
    for cell in done.saes:
        if "scores" not in done.results[cell.key]:
            continue
        scores = ArmScores.from_dict(done.results[cell.key]["scores"])
        recovered = scores.loss_recovered
        rows.append(
            {
                "model": cell.model.label.removeprefix("train "),
                "SAEs": cell.settings.architecture,
                "latents / channel": cell.settings.expansion,
                "mean L0": round(scores.l0, 1),
                "mean explained variance": round(scores.explained_variance, 3),
                "least loss recovered": None if recovered is None else round(recovered, 3),
                "dead latents": f"{scores.dead_fraction:.0%}",
                "loss": round(scores.loss, 3),
                "loss, all spliced": round(scores.loss_spliced, 3),
            }
        )
    return rows


def sae_task_rows(done: Finished, *, target: float = TARGET) -> list[dict[str, Any]]:
    """Give a row for each task of the SAE arm: each seed's sizes, or why there is no circuit."""
    rows: dict[str, dict[str, Any]] = {}
    columns = {"nodes": "n_nodes"} | KINDS | {"edges": "n_edges"}
    columns["edges at errors"] = columns.pop("edges at errors")  # beside the edges, at the end
    for _, dense in matched(done):
        for cell in done.tried(dense, target=target, saes=True):
            result = done.results[cell.key]
            row = rows.setdefault(cell.task, {"task": cell.task} | {name: [] for name in columns})
            for name, what in columns.items():
                row[name].append(result.get(what, result["note"] if name == "nodes" else "-"))
    return list(rows.values())
