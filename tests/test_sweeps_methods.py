"""Attribution beside learned masks, and the optimiser without a part, from made-up results."""

from dataclasses import replace
from pathlib import Path

import pytest

from tl_sparse.sweeps import FIGURES, PRESETS, CircuitCell, ModelCell, Store, Text, summarise
from tl_sparse.sweeps.plans import ABLATIONS, ablated_model, is_dense, sparse_model

NOWHERE = Text(hash="0" * 64, n_characters=1000, vocab_size=300, dialect="tasks")
TASKS = ("for_while", "with_as", "class_init")
PRESET = replace(PRESETS["laptop"], control_widths=(48,), seeds=(0, 1), tasks=TASKS)
LEARNED = {"for_while": 10, "with_as": 40, "class_init": 90}
TIMES = {"for_while": 2, "with_as": 8, "class_init": 4}


def circuit(cell: CircuitCell) -> dict[str, object]:
    """Attribution keeps 2, 8 or 4 times the edges; on sparse models it misses one of the tasks."""
    n = LEARNED[cell.task] * (100 if is_dense(cell.model) else 1)
    found = {"model_hash": cell.model.key, "note": "", "n_nodes": 9}
    if cell.pruning.method == "learned":
        nodes = [{"stage": "nodes", "n_edges": n}, {"stage": "edges", "n_edges": n // 2}]
        return found | {"n_edges": n // 5, "stages": nodes}
    if cell.task == "class_init" and not is_dense(cell.model):
        return {"model_hash": cell.model.key, "note": "no circuit reaches the target"}
    return found | {"n_edges": n * TIMES[cell.task], "stages": []}


def test_methods_are_compared_at_the_papers_count_where_both_have_a_circuit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for cell in FIGURES["methods"](PRESET, NOWHERE):
        if isinstance(cell, ModelCell):
            loss = {"model_hash": cell.key, "validation_loss": 3.0, "kurtosis": 1.0}
            store.keep(cell, loss, seconds=1.0)
        else:
            assert isinstance(cell, CircuitCell)
            store.keep(cell, circuit(cell), seconds=1.0)
    summary = summarise("methods", PRESET, NOWHERE, store)
    sparse, dense = summary.tables["methods"]
    assert [sparse[n] for n in ("arm", "width", "seeds")] == ["sparse", 128, 2]
    assert sparse["tasks with a circuit, learned"] == [3, 3]
    assert sparse["by attribution"] == [2, 2]
    assert sparse["tasks compared"] == 2
    assert sparse["edges, learned"][0] == pytest.approx((10 * 40) ** 0.5, rel=1e-3)
    assert sparse["edges, attribution"][0] == pytest.approx((20 * 320) ** 0.5, rel=1e-3)
    assert sparse["attribution / learned"] == [4.0]
    assert dense["tasks compared"] == 3
    assert dense["attribution / learned"][0] == 4.0
    assert dense["edges, learned"][0] == pytest.approx(100 * (10 * 40 * 90) ** (1 / 3), rel=1e-3)
    page = summary.markdown()
    assert "| sparse | 128 | 2 | 3, 3 | 2, 2 |" in page
    assert "| sparse | with_as | 40, 40 | 320, 320 | 8.0 |" in page
    assert "| sparse | class_init | 90, 90 | -, - | - |" in page
    assert "| dense | class_init | 9000, 9000 | 36000, 36000 | 4.0 |" in page


def test_a_change_of_the_optimiser_is_set_against_the_mean_of_the_recipe_as_it_is(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    for name, seed, loss in (("as it is", 0, 3.0), ("as it is", 1, 4.0), ("eps 1", 1, 4.5)):
        cell = ablated_model(PRESET, NOWHERE, seed=seed, changes=ABLATIONS[name])
        store.keep(cell, {"model_hash": cell.key, "validation_loss": loss}, seconds=1.0)
    gone = ablated_model(PRESET, NOWHERE, seed=0, changes=ABLATIONS["no warm-up"])
    store.keep(gone, {"model_hash": "", "diverged": True}, seconds=1.0)
    whole = sparse_model(PRESET, NOWHERE, seed=0)  # trained four times as long: another model
    store.keep(whole, {"model_hash": whole.key, "validation_loss": 1.0}, seconds=1.0)
    summary = summarise("optimizer", PRESET, NOWHERE, store)
    rows = {row["change"]: row for row in summary.tables["optimizer"]}
    assert list(rows) == list(ABLATIONS)
    assert rows["as it is"]["validation loss"] == 3.5
    assert (rows["eps 1"]["validation loss"], rows["eps 1"]["difference"]) == (4.5, 1.0)
    assert (rows["no warm-up"]["seeds"], rows["no warm-up"]["diverged"]) == (1, 1)
    assert rows["no warm-up"]["validation loss"] is None
    assert rows["eps 0.01"]["seeds"] == 0
    assert summary.about["done"] == 4
