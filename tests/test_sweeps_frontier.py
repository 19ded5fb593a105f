"""Figure 3: what wider models, and fewer nonzeros, do to the edges of the same tasks."""

import math
import random
from dataclasses import replace

import pytest

from tl_sparse.sweeps import FIGURES, PRESETS, CircuitCell, ModelCell, Store, Text, summarise
from tl_sparse.sweeps.figures.means import adjusted_means
from tl_sparse.sweeps.plans import is_dense

NOWHERE = Text(hash="0" * 64, n_characters=1000, vocab_size=300, dialect="tasks")
PRESET = replace(
    PRESETS["laptop"], widths=(64, 128), nonzeros=(4_000, 8_000), dense_widths=(48,), seeds=(0, 1),
    tasks=("for_while", "with_as", "class_init"),
)  # fmt: skip
HARD = {"for_while": 1.0, "with_as": 4.0, "class_init": 9.0}


def test_adjusted_means_of_a_whole_table_are_geometric_means():
    rows = {"a": {"x": [2], "y": [8]}, "b": {"x": [4, 9], "y": [25, 1]}}
    found = adjusted_means(rows)
    assert found["a"] == pytest.approx(4)
    assert found["b"] == pytest.approx((4 * 9 * 25) ** (1 / 4))


def test_adjusted_means_find_a_rows_size_whatever_it_lacks():
    rng = random.Random(0)
    sizes, columns = {"a": 10.0, "b": 20.0, "c": 5.0}, {f"t{i}": rng.uniform(1, 50) for i in "0123"}
    whole = {r: {c: [s * n] for c, n in columns.items()} for r, s in sizes.items()}
    middle = math.exp(sum(map(math.log, columns.values())) / 4)
    whole["a"].pop("t3")
    whole["b"].pop("t0")
    whole["c"] = {"t3": whole["c"]["t3"]}  # shares no column with a: by way of b
    found = adjusted_means(whole)
    assert found == pytest.approx({row: size * middle for row, size in sizes.items()})


def test_rows_that_nothing_joins_to_the_rest_are_left_out():
    rows = {"alone": {"z": [3]}, "a": {"x": [2], "y": [2]}, "b": {"y": [4]}, "none": {}}
    assert list(adjusted_means(rows)) == ["a", "b"]
    assert adjusted_means({"none": {}}) == adjusted_means({}) == {}


def figure3(tmp_path):
    """Edges are width 64: 400, 128: 100; half of that with half the nonzeros; times the task's."""
    store = Store(tmp_path)
    for cell in FIGURES["figure3"](PRESET, NOWHERE):
        if isinstance(cell, ModelCell):
            n = (
                8_000
                if is_dense(cell)
                else round(cell.sparsity.weight_density * 24 * cell.width**2)
            )
            loss = 3.0 - cell.width / 1000 - n / 100_000 + cell.training.seed
            result = {"model_hash": cell.key, "validation_loss": loss, "kurtosis": 1.0}
            store.keep(cell, result | {"n_nonzero_blocks": n}, seconds=1.0)
            continue
        assert isinstance(cell, CircuitCell)
        model = cell.model
        density = model.sparsity.weight_density * 24 * model.width**2
        size = 1000 if is_dense(model) else {64: 400, 128: 100}[model.width] * density / 8_000
        result = {"model_hash": model.key, "note": "can't do the task"}
        if (cell.task, model.training.seed, is_dense(model)) != ("class_init", 1, True):
            n_edges = round(size * HARD[cell.task])
            result = {"model_hash": model.key, "note": "", "n_nodes": 9, "n_edges": n_edges}
        store.keep(cell, result, seconds=1.0)
    return store


def test_steps_in_width_and_nonzeros_are_taken_task_by_task(tmp_path):
    summary = summarise("figure3", PRESET, NOWHERE, figure3(tmp_path))
    steps = summary.tables["steps"]
    assert [(s["step"], s["from"], s["to"]) for s in steps] == [
        ("wider", "width 64, 4,000 nonzeros", "width 128, 4,000 nonzeros"),
        ("wider", "width 64, 8,000 nonzeros", "width 128, 8,000 nonzeros"),
        ("fewer nonzeros", "width 64, 8,000 nonzeros", "width 64, 4,000 nonzeros"),
        ("fewer nonzeros", "width 128, 8,000 nonzeros", "width 128, 4,000 nonzeros"),
    ]
    assert [s["edges, times"][0] for s in steps] == [0.25, 0.25, 0.5, 0.5]
    assert [s["loss"] for s in steps] == ["-0.064", "-0.064", "+0.040", "+0.040"]
    assert {s["seeds"] for s in steps} == {2}
    assert {s["tasks compared"] for s in steps} == {3}
    rivals = summary.tables["rivals"]
    assert [r["dense / sparse edges"][0] for r in rivals] == [5, 2.5, 20, 10]  # 1000 / 200 ...
    assert {(r["dense"], r["seeds"], r["tasks compared"]) for r in rivals} == {("width 48", 2, 3)}
    assert rivals[0]["loss gap"] == "-0.024"
    assert rivals[0]["by nodes"] is None  # no stages are kept here
    page = summary.markdown()
    assert "| wider | width 64, 8,000 nonzeros | width 128, 8,000 nonzeros | 2 | -0.064 |" in page


def test_the_curves_are_adjusted_for_the_tasks_that_a_model_lacks(tmp_path):
    curves = summarise("figure3", PRESET, NOWHERE, figure3(tmp_path)).curves
    middle = (1 * 4 * 9) ** (1 / 3)
    assert list(curves) == ["dense", "sparse, 4,000 nonzeros", "sparse, 8,000 nonzeros"]
    assert [edges for _, edges in curves["sparse, 8,000 nonzeros"]] == pytest.approx(
        [100 * middle, 400 * middle], rel=0.01
    )
    ((_, dense),) = curves["dense"]
    assert dense == pytest.approx(1000 * middle, rel=0.01)


def test_densities_of_activations_are_compared_on_the_tasks_that_both_have(tmp_path):
    """A quarter of the channels active, or all: the same edges, of a hard task in one alone."""
    store = Store(tmp_path)
    preset = replace(PRESET, activation_densities=(0.25, 1.0), seeds=(0,))
    for cell in FIGURES["activation"](preset, NOWHERE):
        result = {"model_hash": "x", "n_nonzero_blocks": 8_000, "kurtosis": 1.0}
        if isinstance(cell, ModelCell):
            store.keep(cell, result | {"validation_loss": 3.0}, seconds=1.0)
        elif isinstance(cell, CircuitCell):
            n_edges = {"with_as": 10, "for_while": 1000, "class_init": 0}[cell.task]
            n_edges *= 3 if is_dense(cell.model) else 1
            if cell.model.sparsity.activation_density == 1 and cell.task == "for_while":
                n_edges = 0  # so the dense one has none either
            store.keep(cell, result | {"n_edges": n_edges, "n_nodes": 9}, seconds=1.0)
    summary = summarise("activation", preset, NOWHERE, store)
    rivals = summary.tables["rivals"]
    assert [r["sparse"].rpartition(", ")[2] for r in rivals] == ["0.25 active", "1 active"]
    assert [r["dense / sparse edges"] for r in rivals] == [[3], [3]]
    assert summary.curves == {"sparse": [(0.25, pytest.approx(100)), (1.0, pytest.approx(100))]}
    (step,) = summary.tables["steps"]
    assert (step["step"], step["from"]) == (
        "fewer active channels", "width 128, 8,000 nonzeros, 1 active"
    )  # fmt: skip
    assert (step["edges, times"], step["tasks compared"]) == ([1], 1)
