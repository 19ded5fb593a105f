"""Concepts in three arms of a sweep: scored cell by cell, set side by side."""

from dataclasses import replace
from typing import Any

import pytest

from tl_sparse import HookedSparseTransformer, concepts
from tl_sparse.sae_arm import SAESettings, load_saes
from tl_sparse.sweeps import FIGURES, PRESETS, ModelCell, SAECell, Store, Text, run_cells, summarise
from tl_sparse.sweeps.cells import ConceptCell
from tl_sparse.sweeps.plans import dense_model, is_dense

TINY = replace(PRESETS["tiny"], n_characters=300_000)
NOWHERE = Text(hash="0" * 64, n_characters=1000, vocab_size=300, dialect="tasks")
SAES = SAESettings(l0=2, expansion=2, n_windows=8, batch_size=64, sites=("mlp_neuron",))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A dense model of five steps, its nodes and the latents of two SAEs, scored."""
    store = Store(tmp_path_factory.mktemp("concepts"))
    text = TINY.text(store.text_folder, progress=False)
    preset = replace(TINY, dense_training=replace(TINY.dense_training, n_tokens=5_120))
    model = dense_model(preset, text, seed=0, width=8)
    saes = SAECell(model=model, settings=SAES, n_eval_windows=2)
    cells = [
        ConceptCell(model=model, n_tokens=4_000),
        ConceptCell(model=model, saes=saes, n_tokens=4_000),
    ]
    outcome = run_cells(cells, store, progress=False)
    assert (outcome.n_done, outcome.failed) == (4, {})
    return store, text, cells


def test_a_cell_keeps_what_scoring_by_hand_gives(scored):
    store, text, (cell, of_saes) = scored
    model = HookedSparseTransformer.load(store.model_folder(cell.model))
    corpus = text.open(store.text_folder, progress=False)
    config = concepts.ConceptConfig(n_tokens=4_000)
    report = concepts.score(model, corpus, config, progress=False)
    result = store.result(cell)
    assert result["summary"] == pytest.approx(report.summary())
    best = {row["concept"]: (row["node"], row["f1"]) for row in result["concepts"]}
    assert best == {row.concept: (row.node, pytest.approx(row.f1)) for row in report.concepts}
    at_a_fifth = report.tracked_at(0.2)
    kept = result["tracked"]["0.2"]
    assert kept["nodes"] == sum(n > 0 for n in at_a_fifth)
    assert kept["concepts"] == sum(at_a_fifth)
    assert kept["at least"] == [share for _, share in report.at_least(0.2)]

    saes = load_saes(store.saes_folder(of_saes.saes))
    hooks = {f"blocks.{site.layer}.mlp.hook_post": sae for site, sae in saes.items()}
    latents = concepts.score(model, corpus, config, coders=hooks, progress=False)
    result = store.result(of_saes)
    assert result["summary"]["nodes"] == 2 * 2 * 4 * 8  # layers, expansion, neurons
    assert result["summary"] == pytest.approx(latents.summary())
    assert result["saes_hash"] == store.result(of_saes.saes)["saes_hash"]


def test_a_cell_of_other_saes_is_another_one(scored):
    _, _, (cell, of_saes) = scored
    assert len({cell.key, of_saes.key, replace(cell, n_tokens=3_000).key}) == 3
    assert "saes" not in cell.spec()
    assert "model" not in of_saes.spec()["saes"]
    with pytest.raises(ValueError, match="saes are of the cell's own model"):
        replace(of_saes, model=replace(cell.model, width=16))


def found(summary: dict[str, Any], f1: dict[str, float], counts: list[int]) -> dict[str, Any]:
    """A made-up result: nodes that track so many concepts at a gain of 0.2."""
    tracking = [n for n in counts if n]
    measures = ["by chance", "concepts per such node", "monosemanticity", "purity",
                "concepts tracked", "mean best gain", "by chance, mean best gain"]  # fmt: skip
    rows = [
        {"concept": name, "node": "0.q.1", "precision": value, "recall": 1.0, "f1": value,
         "gain": value, "always_f1": 0.1, "chance_f1": 0.12}
        for name, value in f1.items()
    ]  # fmt: skip
    least = [sum(n >= k for n in counts) / len(counts) for k in range(max(counts) + 1)]
    tracked = {"at least": least, "nodes": len(tracking), "by chance": 0, "concepts": sum(counts)}
    whole = dict.fromkeys(measures, 0.25) | {"nodes": len(counts)} | summary
    whole |= {"nodes that track a concept": 1, "mean best F1": sum(f1.values()) / len(f1)}
    return {"summary": whole, "tracked": {"0.2": tracked}, "concepts": rows}


def test_arms_are_compared_over_seeds_at_the_dense_model_of_nearest_loss(tmp_path):
    preset, store = replace(TINY, seeds=(0, 1)), Store(tmp_path)
    for cell in FIGURES["concepts"](preset, NOWHERE):
        if isinstance(cell, ModelCell):
            loss = 3.0 + (0.0 if not is_dense(cell) else 0.1 if cell.width == 16 else 0.5)
            result: dict[str, Any] = {"model_hash": cell.key, "validation_loss": loss}
        elif isinstance(cell, SAECell):
            result = {"model_hash": cell.model.key, "saes_hash": "x", "scores": {}}
        else:
            assert isinstance(cell, ConceptCell)
            seed = cell.model.training.seed
            if cell.saes is not None:
                result = found({"purity": None}, {"string": 0.5}, [1, 0, 0, 0])
                result["saes_hash"] = "x"
            elif not is_dense(cell.model):
                result = found({}, {"string": 0.8 + seed / 10, "list": 0.4}, [1, 1, 0, 0])
            elif cell.model.width == 16:
                result = found({}, {"string": 0.6, "list": 0.2 + seed / 10}, [3, 1])
            else:
                result = found({}, {"string": 0.99, "list": 0.99}, [9, 9])  # too far in loss
            result["model_hash"] = cell.model.key
        store.keep(cell, result, seconds=1.0)
    summary = summarise("concepts", preset, NOWHERE, store)
    arms = {row["arm"]: row for row in summary.tables["concepts"]}
    assert list(arms) == ["sparse", "dense", "SAEs on the dense"]
    assert [row["seeds"] for row in arms.values()] == [2, 2, 2]
    assert arms["sparse"]["mean best F1"] == "0.62 (0.60 to 0.65)"
    assert arms["dense"]["mean best F1"] == "0.43 (0.40 to 0.45)"
    assert arms["SAEs on the dense"]["purity"] is None
    (gains,) = summary.tables["gains"]
    assert (gains["sparse: nodes"], gains["sparse: concepts per node"]) == ("50.0%", 1.0)
    assert (gains["dense: nodes"], gains["dense: concepts per node"]) == ("100.0%", 2.0)
    string, lists = summary.tables["best"]
    assert string["sparse"] == "0.85 (0.80 to 0.90)"
    assert string["dense, precision / recall"] == "0.60 / 1.00"
    assert lists["concept"] == "list"
    assert "SAEs on the dense" not in lists
    assert string["shifted"] == 0.12
    assert summary.curves["dense"] == [(0, 1), (1, 1), (2, 0.5), (3, 0.5)]
    page = summary.markdown()
    assert "share of nodes against concepts at a gain of 0.2" in page
    assert "0.99" not in page
    without = summarise("concepts", replace(preset, saes=None), NOWHERE, store)
    assert list(without.curves) == ["sparse", "dense"]
