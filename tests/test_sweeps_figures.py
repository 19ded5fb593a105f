"""Figures of sweeps: what their tables, pages and drawings say, from results made up."""

import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tl_sparse.sweeps import (
    FIGURES,
    PRESETS,
    CircuitCell,
    ModelCell,
    SAECell,
    Store,
    Text,
    summarise,
)  # fmt: skip
from tl_sparse.sweeps.figures.finished import Finished, ratio
from tl_sparse.sweeps.figures.means import estimate, geometric_mean
from tl_sparse.sweeps.figures.tables import model_rows, stage_rows, target_rows, task_rows
from tl_sparse.sweeps.plans import ablated_model, is_dense

TINY = PRESETS["tiny"]
NOWHERE = Text(hash="0" * 64, n_characters=1000, vocab_size=300, dialect="tasks")


def test_geometric_means_and_their_intervals():
    assert geometric_mean([2, 8, 4]) == pytest.approx(4)
    found = estimate({"a": [2, 8], "b": [16], "c": []})
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(8), 2)  # of 4 and 16, each task once
    assert (found.low, found.high) == (pytest.approx(4), pytest.approx(16))
    assert (found.to_list(), str(found)) == ([8], "8")  # of two tasks there is no interval
    four = estimate({task: [2] for task in "abcd"})
    assert four is not None
    assert four.to_list() == [2, 2, 2]
    assert estimate({}) is None
    rng = random.Random(1)
    logs = [rng.gauss(1, 0.5) for _ in range(40)]
    wide = estimate({str(i): [math.exp(v)] for i, v in enumerate(logs)})
    error = 1.96 * statistics.stdev(logs) / math.sqrt(40)  # by the central limit theorem
    assert wide is not None
    assert math.log(wide.low) == pytest.approx(statistics.fmean(logs) - error, abs=0.03)
    assert math.log(wide.high) == pytest.approx(statistics.fmean(logs) + error, abs=0.03)
    times = ratio([({"a": 2, "x": 1}, {"a": 20}), ({"a": 1}, {"a": 1000})])
    assert times is not None
    assert times.value == pytest.approx(100)


SCORES = {
    "sites": [
        {"site": "0.attn_in", "n_latents": 32, "l0": 8.0, "explained_variance": 0.9,
         "loss_spliced": 3.3, "loss_recovered": 0.98, "n_dead": 8},
        {"site": "0.mlp_in", "n_latents": 32, "l0": 8.0, "explained_variance": 0.8,
         "loss_spliced": 3.4, "loss_recovered": 0.96, "n_dead": 0},
    ],
    "loss": 3.2, "loss_spliced": 3.6, "n_tokens": 512,
}  # fmt: skip
TWO_SEEDS = replace(TINY, seeds=(0, 1), targets=(0.5, 0.15))
TWO_ARMS = replace(TWO_SEEDS, saes=None)


def written(tmp_path: Path, preset: Any = TWO_ARMS) -> Store:
    """A store for figure 2 with made-up results: two seeds, one sparse and two dense models."""
    store, edges = Store(tmp_path), {"sparse": 4, 8: 64, 16: 400}
    for cell in FIGURES["figure2"](preset, NOWHERE):
        result: dict[str, Any]
        if isinstance(cell, ModelCell):
            loss = {8: 3.2, 16: 2.9}[cell.width] if is_dense(cell) else 3.15
            result = {"model_hash": cell.key, "validation_loss": loss, "kurtosis": 1.0}
            store.keep(cell, result | {"n_nonzero_blocks": 1000}, seconds=2.0)
            continue
        if isinstance(cell, SAECell):
            result = {"model_hash": cell.model.key, "saes_hash": cell.key, "scores": SCORES}
            store.keep(cell, result, seconds=2.0)
            continue
        assert isinstance(cell, CircuitCell)
        result = {"model_hash": cell.model.key, "note": ""}
        seed = cell.model.training.seed
        if cell.task == "for_while" and is_dense(cell.model) and seed == 1:
            result["note"] = "can't do the task"
        else:
            n = edges[cell.model.width if is_dense(cell.model) else "sparse"]
            result["n_edges"] = n * (1 if cell.pruning.target_loss == 0.15 else 2)
            result["n_nodes"] = 2 * n
            many = 3 * n * (2 if is_dense(cell.model) else 1)
            result["stages"] = [{"stage": "nodes", "n_nodes": 9, "n_edges": many}]
            if cell.audit is not None:
                holds = "holds" if not is_dense(cell.model) else "fails"
                result["verdicts"] = {"necessary": holds, "stable": "not tested"}
        if cell.saes is not None:
            result["saes_hash"] = cell.saes.key
            if "n_edges" in result:
                kinds = {"n_latents": 20, "n_errors": 3 + seed, "n_channels": 1}
                verdicts = {"necessary": "holds"}
                result |= kinds | {"n_nodes": 24 + seed, "n_edges": 36, "n_edges_of_errors": 5}
                result |= {"verdicts": verdicts}
        store.keep(cell, result, seconds=3.0)
    return store


def test_the_sae_arm_stands_beside_the_others_at_the_dense_model_of_nearest_loss(tmp_path):
    summary = summarise("figure2", TWO_SEEDS, NOWHERE, written(tmp_path, TWO_SEEDS))
    sparse, dense, saes = summary.tables["arms"]
    assert (sparse["nodes"][0], sparse["edges"][0]) == (8, 4)
    assert dense["edges / sparse"] == [16.0]
    assert (saes["arm"], saes["tasks with a circuit"]) == ("SAEs on the dense", [2, 1])
    assert saes["edges / sparse"] == [9.0]  # 36 / 4
    assert saes["edges / dense"][0] == pytest.approx(36 / 64, rel=1e-3)
    # Each task counts once: for_while has seed 0 alone, the quotes the mean of both seeds.
    nodes = math.sqrt(24 * math.sqrt(24 * 25))
    assert saes["nodes"][0] == pytest.approx(nodes, rel=1e-3)
    assert saes["nodes / sparse"][0] == pytest.approx(nodes / 8, rel=1e-3)
    assert saes["tasks compared with sparse"] == saes["tasks compared with dense"] == 2
    assert (saes["mean latents"], saes["mean errors"]) == (20, 3.3)
    assert saes["mean edges at errors"] == 5
    easy, asked = summary.tables["targets"]
    assert "SAE edges" not in easy
    assert (asked["SAE edges"][0], asked["SAE / sparse"][0]) == (36, 9)
    assert summary.curves["SAEs on the dense"] == [(0.15, 36.0)]
    assert {"arm": "SAEs on the dense", "claim": "necessary", "holds": 3, "of": 3} in (
        summary.tables["audit"]
    )
    scores = summary.tables["saes"][0]
    assert (scores["mean L0"], scores["mean explained variance"]) == (8.0, 0.85)
    assert (scores["least loss recovered"], scores["dead latents"]) == (0.96, "12%")
    assert (scores["loss"], scores["loss, all spliced"]) == (3.2, 3.6)
    quotes, loops = summary.tables["sae tasks"]
    assert (quotes["nodes"], quotes["errors"], quotes["edges"]) == ([24, 25], [3, 4], [36, 36])
    assert (loops["nodes"], loops["edges"]) == ([24, "can't do the task"], [36, "-"])


def test_the_page_of_three_arms_says_what_an_edge_between_latents_is(tmp_path):
    summary = summarise("figure2", TWO_SEEDS, NOWHERE, written(tmp_path, TWO_SEEDS))
    for page in (summary.markdown(), summary.html()):
        assert "Edges between latents are virtual weights" in page
        assert "docs/concepts/sae_arm.md" in page
        assert 'class="c2"' in page  # the third colour
    summary.save(tmp_path)
    assert json.loads((tmp_path / "figure2.json").read_text())["notes"] == list(summary.notes)
    without = summarise("figure2", TWO_ARMS, NOWHERE, written(tmp_path / "two", TWO_ARMS))
    for page in (without.markdown(), without.html()):
        assert "latents" not in page
        assert 'class="c2"' not in page


def test_each_sparse_model_is_set_beside_the_dense_one_of_nearest_loss(tmp_path):
    store = written(tmp_path)
    preset = TWO_ARMS
    done = Finished(FIGURES["figure2"](preset, NOWHERE), store)
    (sparse, *dense) = model_rows(done)
    assert (sparse["arm"], sparse["seeds"], sparse["edges"]) == ("sparse", 2, [4.0])
    assert sparse["matched dense widths"] == [8, 8]
    assert sparse["mean loss gap"] == pytest.approx(0.05)
    assert sparse["dense / sparse edges"] == [16.0]
    assert sparse["by nodes"] == [32.0]
    assert sparse["tasks with a circuit"] == [2, 2]
    assert [(row["width"], row["tasks with a circuit"]) for row in dense] == [
        (8, [2, 1]), (16, [2, 1])
    ]  # fmt: skip
    easy, asked = target_rows(done, preset.targets)
    assert (easy["sparse edges"][0], easy["dense edges"][0]) == (8.0, 128.0)
    assert (asked["dense / sparse"], asked["tasks compared"]) == ([16.0], 2)
    first, last = stage_rows(done)  # no circuit here has a second stage
    assert "the paper's count" in first["edges left after"]
    assert (first["sparse edges"][0], first["dense edges"][0]) == (12.0, 384.0)
    assert first["dense / sparse"] == [32.0]
    assert last == {"edges left after": "the clean-up"} | {
        name: value for name, value in asked.items() if name != "target loss"
    }


def test_only_the_matched_dense_models_stand_in_a_comparisons_audit(tmp_path):
    rows = summarise("figure2", TWO_ARMS, NOWHERE, written(tmp_path)).tables["audit"]
    assert [(row["arm"], row["of"]) for row in rows] == [("sparse", 4), ("dense", 3)]


def test_each_tasks_edges_stand_seed_by_seed_with_why_there_are_none(tmp_path):
    store = written(tmp_path)
    quotes, loops = task_rows(Finished(FIGURES["figure2"](TWO_ARMS, NOWHERE), store))
    assert (quotes["sparse"], quotes["dense"]) == ([4, 4], [64, 64])
    assert (quotes["dense / sparse"], quotes["by nodes"], quotes["no circuit"]) == (16, 32, None)
    assert (loops["sparse"], loops["dense"]) == ([4, 4], [64, None])
    assert loops["no circuit"] == "dense: can't do the task (1)"
    page = summarise("figure2", TWO_ARMS, NOWHERE, store).markdown()
    assert "| for_while | 4, 4 | 64, - | 16.0 | 32.0 | dense: can't do the task (1) |" in page
    first = next(c for c in FIGURES["figure2"](TWO_ARMS, NOWHERE) if isinstance(c, CircuitCell))
    (store.folder / "cells" / f"{first.key}.json").unlink()
    rows = task_rows(Finished(FIGURES["figure2"](TWO_ARMS, NOWHERE), store))
    row = next(row for row in rows if row["task"] == first.task)
    assert (row["sparse"], row["no circuit"]) == ([None, 4], "sparse: not done (1)")


def test_a_summary_is_written_with_what_is_there_and_says_what_is_missing(tmp_path):
    store, preset = written(tmp_path), TWO_ARMS
    summary = summarise("figure2", preset, NOWHERE, store)
    n = summary.about["cells"]
    summary.save(tmp_path)
    page, html = (tmp_path / "figure2.md").read_text(), (tmp_path / "figure2.html").read_text()
    assert f"all {n} cells are done" in page
    assert "| 0.15 | 4 | 64 | 16 | 2 |" in page
    assert "| sparse | necessary | 4 | 4 |" in page
    assert "<svg" in html
    assert "<h1>Edges against target loss, sparse and dense</h1>" in html
    written_json = json.loads((tmp_path / "figure2.json").read_text())
    assert written_json == json.loads(json.dumps(summary.to_dict()))
    next((tmp_path / "cells").iterdir()).unlink()
    assert f"{n - 1} of {n} cells" in summarise("figure2", preset, NOWHERE, store).markdown()


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_of_which_nothing_is_done_says_so(figure, tmp_path):
    summary = summarise(figure, TINY, NOWHERE, Store(tmp_path))
    assert f"0 of {summary.about['cells']} cells are done" in summary.markdown()
    summary.save(tmp_path)


def test_the_example_writes_the_page_of_whatever_is_done(tmp_path):
    preset = replace(TWO_SEEDS, targets=TINY.targets)
    store, page = written(tmp_path / "replication", preset), tmp_path / "replication.md"
    page.write_text(
        "# Words\n\n<!-- made by experiments/replication.py -->\nstale\n"
        "<!-- end -->\n\nMore words.\n"
    )
    example = Path(__file__).resolve().parents[1] / "experiments" / "replication.py"
    command = [
        sys.executable,
        str(example),
        "--folder",
        str(store.folder.parent),
        "--pages",
        str(tmp_path),
    ]
    subprocess.run([*command, "--preset", "tiny", "--seeds", "0,1"], check=True)
    text = page.read_text()
    assert text.startswith("# Words\n\n<!-- made by")
    assert text.endswith("<!-- end -->\n\nMore words.\n")
    assert "stale" not in text
    assert "| 0.15 | 4 | 64 | 16 | 2 |" in text
    assert "| 0.15 | 240 | 5,798 | 24 |" in text  # the paper's
    assert "[the SAE arm](../concepts/sae_arm.md)" in text


def test_the_optimisers_rows_are_compared_with_the_whole_recipe_alone(tmp_path):
    store = Store(tmp_path)
    whole, clipped, decay = (FIGURES["optimizer"](TINY, NOWHERE)[i] for i in (0, 1, 3))
    for cell, loss in ((clipped, 4.3), (decay, 3.3)):
        store.keep(cell, {"model_hash": "x", "validation_loss": loss}, seconds=1.0)
    rows = summarise("optimizer", TINY, NOWHERE, store).tables["optimizer"]
    assert [rows[i]["difference"] for i in (0, 1, 3)] == [None, None, None]
    store.keep(whole, {"model_hash": "x", "validation_loss": 3.0}, seconds=1.0)
    rows = summarise("optimizer", TINY, NOWHERE, store).tables["optimizer"]
    assert [rows[i]["difference"] for i in (0, 1, 3)] == [0.0, 1.3, 0.3]
    assert [rows[i]["spread over seeds"] for i in (0, 1, 3)] == [None, None, None]
    seeds = replace(TINY, seeds=(0, 1))
    again = ablated_model(seeds, NOWHERE, seed=1, changes={})
    store.keep(again, {"model_hash": "y", "validation_loss": 3.5}, seconds=1.0)
    whole_row, clipped_row = summarise("optimizer", seeds, NOWHERE, store).tables["optimizer"][:2]
    assert (whole_row["validation loss"], whole_row["spread over seeds"]) == (3.25, 0.5)
    assert (clipped_row["spread over seeds"], clipped_row["difference"]) == (None, 1.05)
