"""What each figure shows: its tables, curves and axes, from whatever cells are finished."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tl_sparse.sweeps.figures.arms import (
    SAE_ARM,
    arm_rows,
    matched,
    sae_rows,
    sae_task_rows,
    three_arm_rows,
)
from tl_sparse.sweeps.figures.capabilities import bits_curves, bits_rows, cost_rows
from tl_sparse.sweeps.figures.finished import Finished
from tl_sparse.sweeps.figures.frontier import (
    active_density,
    adjusted_edges,
    frontier_curves,
    rival_rows,
    step_rows,
)
from tl_sparse.sweeps.figures.superposition import (
    DRAWN,
    best_rows,
    concept_curves,
    concept_rows,
    gain_rows,
)
from tl_sparse.sweeps.figures.tables import (
    method_rows,
    method_task_rows,
    model_rows,
    optimizer_rows,
    stage_rows,
    task_rows,
    verdict_rows,
)
from tl_sparse.sweeps.presets import Preset
from tl_sparse.sweeps.text import Text

Curves = dict[str, list[tuple[float, float]]]
Tables = dict[str, list[dict[str, Any]]]

TITLES = {
    "compare": "A sparse model and its dense control",
    "figure2": "Edges against target loss, sparse and dense",
    "figure3": "Validation loss against edges, over width and nonzeros",
    "activation": "The density of activations",
    "optimizer": "The optimiser without one of its parts",
    "methods": "Learned masks against attribution",
    "capability": "What sparsity costs in prediction",
    "concepts": "Concepts that nodes track",
}

TABLES = {
    "targets": "At each target loss, on the tasks that both arms compared have a circuit for",
    "stages": "The same at the target of 0.15, after each stage of the pruner",
    "arms": "The arms at the target of 0.15: circuits with edges, as geometric means over tasks",
    "saes": "The SAEs, scored on validation text",
    "sae tasks": "Circuits of latents at the target of 0.15, each seed's",
    "models": "The models, and their circuits at the target of 0.15",
    "tasks": "Edges at the target of 0.15, each seed's, sparse and dense of nearest loss",
    "rivals": "Each sparse model beside each dense one of its seed; the gap is dense minus sparse",
    "steps": "What a step changes: validation loss, and edges of the same tasks",
    "audit": "Claims of the audit that hold",
    "optimizer": "Validation loss, nats a token",
    "methods": "Edges between the nodes that attribution keeps, as a multiple of learned masks'",
    "method tasks": "The same by task, each seed's edges",
    "bits": "Bits per byte of the validation text, means over seeds",
    "cost": "What fewer nonzero weights cost the sparse model at equal width",
    "concepts": "Nodes, those that track a concept at a gain of 0.5, and each concept's best node",
    "gains": "Nodes that track some concept at a lower gain, and how many concepts each",
    "best": "F1 of each concept's best node, chosen on one half of the text, scored on the other",
}
"""What a figure's tables are, in words."""

EDGES = "edges (geometric mean over tasks)"
ADJUSTED = "edges (geometric mean, adjusted for tasks)"


@dataclass(frozen=True)
class Contents:
    """What a figure shows."""

    tables: Tables
    curves: Curves = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")


def two_arms(preset: Preset, text: Text, done: Finished) -> Contents:
    """Edges against target loss, in the arms; the tables of SAEs are empty where there are none."""
    tables = {
        "targets": three_arm_rows(done, sorted(preset.all_targets, reverse=True)),
        "stages": stage_rows(done),
        "arms": arm_rows(done),
        "saes": sae_rows(done),
        "sae tasks": sae_task_rows(done),
        "models": model_rows(done),
        "tasks": task_rows(done),
        "audit": verdict_rows(done, [model for pair in matched(done) for model in pair]),
    }
    return Contents(
        tables,
        _over_targets(tables["targets"]),
        ("target loss (nats)", EDGES),
    )


def frontier(preset: Preset, text: Text, done: Finished) -> Contents:
    """Edges against validation loss, over widths and nonzeros."""
    tables = {
        "models": model_rows(done),
        "rivals": rival_rows(done),
        "steps": step_rows(done),
        "audit": verdict_rows(done),
    }
    return Contents(tables, frontier_curves(done), ("validation loss (nats a token)", ADJUSTED))


def activation(preset: Preset, text: Text, done: Finished) -> Contents:
    """Edges over the density of activations."""
    tables = {
        "models": model_rows(done),
        "rivals": rival_rows(done),
        "steps": step_rows(done),
        "audit": verdict_rows(done),
    }
    found = adjusted_edges(done, done.sparse())
    points = [(active_density(models), edges) for models, edges in found]
    return Contents(tables, {"sparse": sorted(points)}, ("activation density", ADJUSTED))


def optimizer(preset: Preset, text: Text, done: Finished) -> Contents:
    """Validation loss without one part of the optimiser."""
    return Contents({"optimizer": optimizer_rows(preset, text, done)})


def methods(preset: Preset, text: Text, done: Finished) -> Contents:
    """Edges by learned masks and by attribution."""
    return Contents({"methods": method_rows(done), "method tasks": method_task_rows(done)})


def capability(preset: Preset, text: Text, done: Finished) -> Contents:
    """Bits per byte over nonzeros."""
    tables = {"bits": bits_rows(preset, text, done), "cost": cost_rows(done)}
    return Contents(tables, bits_curves(done), ("nonzeros in blocks", "bits per byte"))


def concepts(preset: Preset, text: Text, done: Finished) -> Contents:
    """Nodes by the number of concepts that they track."""
    tables = {"concepts": concept_rows(done), "gains": gain_rows(done), "best": best_rows(done)}
    axes = (f"concepts at a gain of {DRAWN}, at least", "share of nodes")
    return Contents(tables, concept_curves(done), axes)


CONTENTS: dict[str, Callable[[Preset, Text, Finished], Contents]] = {
    "compare": two_arms,
    "figure2": two_arms,
    "figure3": frontier,
    "activation": activation,
    "optimizer": optimizer,
    "methods": methods,
    "capability": capability,
    "concepts": concepts,
}


def _over_targets(rows: Sequence[Mapping[str, Any]]) -> Curves:
    arms = {"sparse": "sparse edges", "dense, nearest in loss": "dense edges"}
    if any(row.get("SAE edges") for row in rows):
        arms[SAE_ARM] = "SAE edges"
    return {
        arm: [(row["target loss"], row[column][0]) for row in rows if row.get(column)]
        for arm, column in arms.items()
    }
