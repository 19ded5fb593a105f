"""Sweeps: cells are done once, in order, whatever kills them; figures say what the cells say."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import typer
from distributed import LocalCluster
from test_sweeps_figures import SCORES
from typer.testing import CliRunner

from tl_sparse import Circuit, HookedSparseTransformer, cli, compare
from tl_sparse.ablation import references
from tl_sparse.cli.sweep import finish
from tl_sparse.config import AuditConfig, PruningConfig
from tl_sparse.presets import demo_shape
from tl_sparse.pruning import evaluate
from tl_sparse.sae_arm import SAESettings, load_saes, score_saes, splice
from tl_sparse.sites import model_hash
from tl_sparse.sweeps import (
    FIGURES,
    PRESETS,
    CircuitCell,
    ModelCell,
    SAECell,
    Store,
    Text,
    run_cells,
)  # fmt: skip
from tl_sparse.sweeps.cells import cell_of
from tl_sparse.sweeps.engine import Outcome
from tl_sparse.sweeps.plans import dense_model, is_dense, sparse_model
from tl_sparse.sweeps.presets import n_block_weights
from tl_sparse.sweeps.work import _references, do, log_kurtosis
from tl_sparse.tasks import get
from tl_sparse.training import TrainingRun, mean_loss

TINY = PRESETS["tiny"]
NOWHERE = Text(hash="0" * 64, n_characters=1000, vocab_size=300, dialect="tasks")
QUICK = PruningConfig(
    n_steps=3, n_edge_steps=3, batch_size=4, target_loss=0.72, min_accuracy=0.0, drop_one=False
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Where the tokens are."""
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def text(texts):
    return TINY.text(texts, progress=False)


def test_a_text_is_opened_by_its_hash_where_another_machine_made_it(text, texts, monkeypatch):
    def never(**_arguments):
        raise AssertionError("the text was made anew")

    monkeypatch.setattr("tl_sparse.sweeps.text.python_corpus", never)
    assert text.open(texts, progress=False).hash == text.hash


def test_another_library_is_another_text_and_the_old_ones_keep_their_names():
    assert "library" not in NOWHERE.spec()
    other = replace(NOWHERE, library="installed")
    assert Text(**other.spec()) == other != Text(**NOWHERE.spec())
    with pytest.raises(ValueError, match="library is one of 'standard', 'installed', got 'all'"):
        replace(NOWHERE, library="all")


def few_cells(text: Text) -> list[Any]:
    """A sparse and a dense model of 20 steps, and a circuit of each that takes a moment."""
    preset = replace(
        TINY,
        sparse_training=replace(TINY.sparse_training, n_tokens=20_480),
        dense_training=replace(TINY.dense_training, n_tokens=20_480),
    )
    models = [
        sparse_model(preset, text, seed=0, width=32, nonzeros=1200, checkpoint_every=3),
        dense_model(preset, text, seed=0, width=16),
    ]
    circuits = [
        CircuitCell(
            model=m,
            task="with_as",
            pruning=replace(QUICK, target_loss=0.74),
            n_reference_tokens=512,
        )
        for m in models
    ]
    return [models[0], circuits[0], models[1], circuits[1]]


def easier(circuit: CircuitCell) -> CircuitCell:
    """A circuit of the same model, soon drawn and found at once: it may be as bad as it likes."""
    return replace(circuit, task="for_while", pruning=replace(QUICK, target_loss=9.0))


def cell_result(store: Store, cell: Any) -> dict[str, Any]:
    found = store.result(cell)
    assert found is not None
    return found


def contents(store: Store) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted((store.folder / "cells").iterdir())}


# -- cells ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "figure"),
    [("tiny", f) for f in FIGURES]
    + [("laptop", "figure3"), ("gpu", "optimizer"), ("paper", "figure2")],
)
def test_every_cell_of_a_plan_is_its_spec_and_comes_after_what_it_needs(preset, figure):
    cells = FIGURES[figure](PRESETS[preset], NOWHERE)
    seen = set()
    for cell in {c.key: c for c in cells}.values():
        assert cell_of(json.loads(json.dumps(cell.spec()))) == cell
        assert all(needed.key in seen for needed in cell.needs)
        seen.add(cell.key)
    assert len(seen) >= len(PRESETS[preset].seeds) * 4


def test_the_key_hangs_on_every_setting():
    model = sparse_model(TINY, NOWHERE, seed=0)
    circuit = CircuitCell(model=model, task="for_while", pruning=PruningConfig())
    others = [
        replace(model, width=64), replace(model, n_ctx=64), replace(model, device="cuda"),
        replace(model, text=replace(NOWHERE, hash="1" * 64)),
        replace(model, training=replace(model.training, eps=0.2)),
        replace(model, sparsity=replace(model.sparsity, min_alive=1)),
        circuit, replace(circuit, task="lambda_func"), replace(circuit, audit=AuditConfig.quick()),
        replace(circuit, pruning=PruningConfig(target_loss=0.2)),
        replace(circuit, model=replace(model, width=64)),
    ]  # fmt: skip
    assert len({cell.key for cell in [model, *others]}) == 12
    assert replace(model).key == model.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "cake"},
            "kind is one of model, saes, circuit, concepts, bits, n-grams, got 'cake'",
        ),
        ({"width": 0}, "width is a positive finite integer, got 0"),
        ({"colour": "red"}, "no model cell of this version: .*colour"),
        ({"device": "tpu"}, "device is one of 'cpu', 'cuda', got 'tpu'"),
    ],
)
def test_a_spec_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        cell_of(sparse_model(TINY, NOWHERE, seed=0).spec() | change)


def test_the_models_of_a_plan_have_the_nonzeros_and_widths_that_it_names(text, tmp_path):
    cell = sparse_model(TINY, text, seed=3, width=48, nonzeros=1200)
    assert n_block_weights(TINY, 48) == 2 * (4 * 48 * 48 + 8 * 48 * 48)
    assert cell.sparsity.weight_density == 1200 / 55296
    assert (cell.training.seed, cell.sparsity.activation_density) == (3, 0.25)
    for one in FIGURES["figure3"](PRESETS["laptop"], NOWHERE):
        if isinstance(one, ModelCell) and not is_dense(one):
            n = one.sparsity.weight_density * n_block_weights(PRESETS["laptop"], one.width)
            assert round(n) in PRESETS["laptop"].nonzeros


RESULTS = Path(__file__).resolve().parents[1] / "results"


def test_the_finished_cells_that_are_committed_keep_their_names():
    """Results of days of computing: a new field must stay out of the specs of older cells."""
    kept = {p.stem: json.loads(p.read_text())["cell"] for p in RESULTS.glob("*/cells/*.json")}
    assert {"13e99ad68275d097", "1a8d64f57d9a4d35", "332216b960c75cd9"} <= set(kept)
    text = Text(**kept["13e99ad68275d097"]["text"])
    planned = {c.key for c in FIGURES["figure2"](PRESETS["laptop"], text)}
    for key, spec in kept.items():
        assert cell_of(spec).key == key
    assert len(planned & set(kept)) >= 45  # those of today; other figures' may come beside


def test_a_circuit_of_saes_says_their_settings_and_is_of_their_model():
    model = dense_model(TINY, NOWHERE, seed=0, width=16)
    saes = SAECell(model=model, settings=SAESettings(l0=4))
    circuit = CircuitCell(model=model, task="for_while", pruning=PruningConfig())
    of_latents = replace(circuit, saes=saes)
    assert "saes" not in circuit.spec()
    assert of_latents.spec()["saes"]["settings"]["l0"] == 4
    others = [replace(saes, n_eval_windows=8), replace(saes, settings=SAESettings(l0=8))]
    keys = [replace(circuit, saes=one).key for one in (None, saes, *others)]
    assert len(set(keys)) == 4
    assert of_latents.needs == (model, saes)
    with pytest.raises(ValueError, match=r"own model, .* seed 0; these are of .* seed 1\."):
        replace(circuit, saes=replace(saes, model=dense_model(TINY, NOWHERE, seed=1, width=16)))


def test_the_sae_arm_comes_after_both_others_at_the_target_and_before_other_targets():
    preset = replace(PRESETS["laptop"], seeds=(0, 1), tasks=("for_while",), targets=(0.5, 0.15))
    order = []
    for cell in FIGURES["figure2"](preset, NOWHERE):
        if isinstance(cell, CircuitCell):
            arm = "dense" if is_dense(cell.model) else "sparse"
            arm = arm if cell.saes is None else "saes"
            order.append((arm, cell.model.training.seed, cell.pruning.target_loss))
            assert (cell.audit is not None) is (cell.pruning.target_loss == 0.15)
    assert order == [
        ("sparse", 0, 0.15), ("dense", 0, 0.15), ("sparse", 1, 0.15), ("dense", 1, 0.15),
        ("saes", 0, 0.15), ("saes", 1, 0.15),
        ("sparse", 0, 0.5), ("dense", 0, 0.5), ("sparse", 1, 0.5), ("dense", 1, 0.5),
    ]  # fmt: skip
    without = FIGURES["figure2"](replace(preset, saes=None), NOWHERE)
    arms = {c.key for c in FIGURES["figure2"](preset, NOWHERE)} - {c.key for c in without}
    assert len(arms) == 4  # two sets of SAEs, a circuit of each


# -- doing them -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(text, texts, tmp_path_factory):
    """The few cells, done one after the other in this process."""
    store = Store(tmp_path_factory.mktemp("here"))
    store.text_folder.symlink_to(texts)
    outcome = run_cells(few_cells(text), store, progress=False)
    assert (outcome.n_done, outcome.failed, outcome.n_left) == (4, {}, 0)
    return store


def test_a_model_cell_says_what_is_true_of_its_model(text, finished):
    cell = few_cells(text)[0]
    result = cell_result(finished, cell)
    model = HookedSparseTransformer.load(finished.model_folder(cell))
    blocks = [p for n, p in model.named_parameters() if n.startswith("blocks") and ".W_" in n]
    assert result["n_nonzero_blocks"] == sum(int((p != 0).sum()) for p in blocks)
    assert 1190 <= result["n_nonzero_blocks"] <= 1200
    corpus = text.open(finished.text_folder, progress=False)
    n_windows = min(64, corpus.validation.windows_per_epoch(128))
    windows = corpus.validation.windows(n_ctx=128, n_windows=n_windows)
    assert result["validation_loss"] == pytest.approx(mean_loss(model, windows), rel=1e-5)


def test_references_are_measured_once_and_half_written_ones_again(text, finished, monkeypatch):
    """Two workers may measure them at once, so nothing is ever moved out of a reader's way."""
    cell = next(c for c in few_cells(text) if isinstance(c, CircuitCell))
    model = HookedSparseTransformer.load(finished.model_folder(cell.model))
    corpus = text.open(finished.text_folder, progress=False)
    (about,) = finished.place(cell.model).glob("references-*.json")
    assert model_hash(model)[:16] in about.name
    measured = []

    def measure(*args: Any, **kwargs: Any) -> Any:
        measured.append(args)
        return references(*args, **kwargs)

    monkeypatch.setattr("tl_sparse.sweeps.work.references", measure)
    first = _references(cell, finished, model, corpus, progress=False)
    assert measured == []
    about.unlink()
    second = _references(cell, finished, model, corpus, progress=False)
    assert len(measured) == 1
    assert about.is_file()
    assert first.provenance == second.provenance
    assert all(torch.equal(first.values[site], second.values[site]) for site in first.values)


def test_kurtosis_is_that_of_the_definition():
    x = torch.randn(5, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[1] = x[1] ** 3 + 7
    for row, found in zip(x.tolist(), log_kurtosis(x).exp().tolist(), strict=True):
        m = statistics.fmean(row)
        fourth = statistics.fmean((v - m) ** 4 for v in row)
        assert found == pytest.approx(fourth / statistics.pvariance(row) ** 2)
    assert log_kurtosis(x)[0].exp().item() == pytest.approx(3, abs=0.3)


@pytest.fixture(scope="module")
def spliced(text, finished, tmp_path_factory):
    """SAEs on the dense one of the few cells, and a circuit of their latents."""
    store = Store(tmp_path_factory.mktemp("spliced"))
    for name in ("cells", "models"):
        shutil.copytree(finished.folder / name, store.folder / name)
    store.text_folder.symlink_to(finished.text_folder)
    *_, model, circuit = few_cells(text)
    few = {"n_windows": 8, "batch_size": 256, "sites": ("mlp_in",)}
    settings = SAESettings(expansion=2, l0=8, **few)
    saes = SAECell(model=model, settings=settings, n_eval_windows=4)
    few = {"n_random": 2, "n_subsets": 2, "n_adversarial_steps": 2, "n_examples": 4}
    quick = AuditConfig(**few, max_edges=2, max_nodes=2)
    # A model of twenty steps can't do a task; a circuit may be as bad as it, and hardly worse.
    whole = HookedSparseTransformer.load(store.model_folder(model))
    loss, _ = evaluate(whole, get("lambda_func", tokenizer=whole.tokenizer), "validation")
    pruning = replace(QUICK, target_loss=loss + 0.001, edges=False)
    latents = replace(circuit, task="lambda_func", saes=saes, pruning=pruning, audit=quick)
    cells = [saes, latents]
    outcome = run_cells(cells, store, progress=False)
    assert (outcome.n_done, outcome.failed) == (2, {})
    return store, cells


def test_a_worker_stopped_in_the_audit_leaves_its_circuit_to_the_next(
    spliced, tmp_path, monkeypatch
):
    store, (saes, cell) = spliced
    other = Store(tmp_path)
    for name in ("cells", "models"):
        shutil.copytree(store.folder / name, tmp_path / name)
    other.text_folder.symlink_to(store.text_folder)
    path = tmp_path / "cells" / f"{cell.key}.json"
    kept = path.read_text("utf-8")
    path.unlink()

    def never(*_arguments, **_options):
        raise AssertionError("the circuit was pruned anew")

    monkeypatch.setattr("tl_sparse.sweeps.work.prune", never)
    assert run_cells([saes, cell], other, progress=False).n_done == 1
    assert path.read_text("utf-8") == kept


def test_circuits_of_a_model_of_a_gpu_are_found_on_a_cpu_where_there_is_no_gpu(
    text, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, circuit = few_cells(text)[:2]
    there = replace(model, device="cuda")
    store = Store(tmp_path)
    store.text_folder.symlink_to(finished.text_folder)
    shutil.copytree(finished.place(model), store.place(there))
    store.keep(there, cell_result(finished, model), seconds=1.0)
    cell = replace(circuit, model=there)
    assert run_cells([there, cell], store, progress=False).failed == {}
    assert cell_result(store, cell) == cell_result(finished, circuit)


def test_a_set_of_saes_is_trained_and_scored_on_its_model(text, spliced):
    store, (saes, _) = spliced
    result = cell_result(store, saes)
    model = HookedSparseTransformer.load(store.model_folder(saes.model))
    opened = load_saes(store.saes_folder(saes))
    corpus = text.open(store.text_folder, progress=False)
    scores = score_saes(model, opened, corpus.validation.windows(128, 4), progress=False)
    assert result["scores"] == json.loads(json.dumps(scores.to_dict()))
    assert result["saes_hash"] == model_hash(splice(model, opened)) != model_hash(model)
    assert result["model_hash"] == model_hash(model)


def test_a_circuit_of_latents_is_counted_by_kind_and_audited(spliced):
    store, (saes, cell) = spliced
    result = cell_result(store, cell)
    circuit = Circuit.load(store.place(cell.model) / "circuits" / f"{cell.key}.json")
    assert circuit.model_hash == cell_result(store, saes)["saes_hash"] == result["saes_hash"]
    latents = {"mlp_in": 32}
    of = [latents.get(n.site.name, math.inf) - n.channel for n in circuit.nodes]
    assert result["n_errors"] == of.count(0)
    assert result["n_latents"] == sum(0 < n < math.inf for n in of)
    assert result["n_channels"] == of.count(math.inf)
    at_errors = [
        e for e in circuit.edges
        if any(n.channel == latents.get(n.site.name) for n in (e.source, e.target))
    ]  # fmt: skip
    assert result["n_edges_of_errors"] == len(at_errors)
    assert result["n_edges"] == circuit.n_edges > 0
    assert set(result["verdicts"].values()) <= {"holds", "fails", "not tested"}


def test_lost_saes_are_trained_again_where_they_are_needed_and_others_have_other_circuits(
    spliced, tmp_path
):
    store, (saes, cell) = spliced
    other = Store(tmp_path)
    shutil.copytree(store.folder / "cells", tmp_path / "cells")
    shutil.copytree(store.folder / "models", tmp_path / "models")
    more = replace(cell, audit=None)
    assert other.pending([saes, cell]) == []
    assert other.pending([saes, cell, more]) == [more]
    shutil.rmtree(other.saes_folder(saes) / "1.mlp_in")
    assert other.pending([saes, cell, more]) == [saes, more]
    shutil.rmtree(other.place(cell.model))
    assert other.pending([saes, cell]) == []  # nothing that is not done needs them
    assert other.pending([saes, cell, more]) == [cell.model, saes, more]
    other.keep(saes, cell_result(store, saes) | {"saes_hash": "another"}, seconds=1.0)
    assert other.result(cell) is None
    model = cell_result(store, cell.model) | {"model_hash": "another"}
    other.keep(cell.model, model, seconds=1.0)
    assert other.result(saes) is None
    assert other.saes_folder(saes) != store.saes_folder(saes)


def test_what_is_done_is_not_done_again_and_a_lost_model_only_where_it_is_needed(
    text, finished, tmp_path
):
    cells = few_cells(text)
    assert finished.pending(cells) == []
    other = Store(tmp_path)
    for name in ("cells", "text"):
        (tmp_path / name).mkdir()
        for path in (finished.folder / name).rglob("*"):
            target = tmp_path / path.relative_to(finished.folder)
            target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    assert other.pending(cells) == []  # a clone: no models, and nothing needs them
    more = easier(cells[1])
    assert other.pending([*cells, more]) == [cells[0], more]
    run_cells([*cells, more], other, progress=False)
    for key in (more.key, cells[0].key):  # trained again: the same weights
        again = json.loads((tmp_path / "cells" / f"{key}.json").read_text())["result"]
        assert again["model_hash"] == cell_result(finished, cells[0])["model_hash"]


def test_a_lost_model_whose_training_was_stopped_again_is_trained_to_its_end(
    text, finished, tmp_path
):
    model, circuit = few_cells(text)[:2]
    store = Store(tmp_path)
    store.text_folder.symlink_to(finished.text_folder)
    shutil.copytree(finished.folder / "cells", tmp_path / "cells")
    more = easier(circuit)
    shape = demo_shape(300, width=model.width, seed=0)
    corpus = text.open(store.text_folder, progress=False)
    anew = HookedSparseTransformer(
        shape | {"n_layers": model.n_layers, "n_ctx": model.n_ctx},
        tokenizer=corpus.tokenizer, sparsity=model.sparsity,
    )  # fmt: skip
    run = TrainingRun(anew, corpus, model.training, store.place(model), False)
    with run.accelerated():
        for _ in range(5):
            run.take_step()
        run.write_checkpoint(store.place(model) / "checkpoint")
    assert store.model_folder(model).is_dir()
    assert store.pending([more]) == [model, more]
    assert run_cells([more], store, progress=False).complete
    assert cell_result(store, more)["model_hash"] == cell_result(finished, model)["model_hash"]


def test_circuits_of_a_model_with_other_weights_are_done_anew(text, finished, tmp_path):
    cells, store = few_cells(text)[:2], Store(tmp_path)
    for cell in cells:
        store.keep(cell, cell_result(finished, cell), seconds=1.0)
    assert store.result(cells[1]) is not None
    store.keep(cells[0], cell_result(finished, cells[0]) | {"model_hash": "another"}, seconds=1.0)
    assert store.result(cells[1]) is None


def test_a_lost_model_that_comes_out_otherwise_overwrites_nothing(text, finished, tmp_path):
    model, circuit = few_cells(text)[:2]
    store = Store(tmp_path)
    store.text_folder.symlink_to(finished.text_folder)
    easy = easier(circuit)
    more = replace(easy, pruning=replace(QUICK, target_loss=8.0))
    of_old = {"model_hash": "that of another processor", "note": ""}
    for cell in (model, easy):
        store.keep(cell, cell_result(finished, model) | of_old, seconds=1.0)
    before = {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    for _ in range(2):  # trained; then opened, since it is there
        (why,) = run_cells([model, easy, more], store, progress=False).failed.values()
        assert "OtherWeightsError" in why
        assert f"remove {store.file(model)}, and what is made from it is done anew (finish" in why
        assert "(finished cells: 1)" in why
        assert {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()} == before
    store.file(model).unlink()  # as the words say
    assert run_cells([model, easy, more], store, progress=False).complete
    assert cell_result(store, model) == cell_result(finished, model)
    here = cell_result(store, model)["model_hash"]
    assert cell_result(store, easy)["model_hash"] == cell_result(store, more)["model_hash"] == here


def test_a_lost_model_that_nothing_is_made_from_may_come_out_otherwise(text, finished, tmp_path):
    model = few_cells(text)[0]
    store = Store(tmp_path)
    store.text_folder.symlink_to(finished.text_folder)
    shutil.copytree(finished.place(model), store.place(model))
    store.keep(model, cell_result(finished, model) | {"model_hash": "another"}, seconds=1.0)
    assert do(model, store, progress=False) == cell_result(finished, model)
    assert cell_result(store, model) == cell_result(finished, model)


def test_the_order_is_that_of_the_plan_and_errors_leave_out_only_what_needs_them(
    monkeypatch, tmp_path
):
    cells = FIGURES["figure3"](TINY, NOWHERE)
    models = [c for c in cells if isinstance(c, ModelCell)]
    done, store = [], Store(tmp_path)

    def fake(cell, store, *, progress):
        if cell == models[0]:
            raise RuntimeError("out of luck")
        done.append(cell)
        store.keep(cell, {"model_hash": "x"}, seconds=1.0)

    monkeypatch.setattr("tl_sparse.sweeps.engine.do", fake)
    outcome = run_cells(cells, store, progress=False)
    left_out = [c for c in cells if c == models[0] or models[0] in c.needs]
    assert done == [c for c in cells if c not in left_out]
    assert outcome.failed == {models[0].label: "RuntimeError: out of luck"}
    assert (outcome.n_done, outcome.n_left) == (len(done), len(left_out) - 1)
    assert not outcome.complete
    assert run_cells(cells, store, hours=1e-9, progress=False).n_left == len(left_out)


def test_failures_of_cells_that_are_called_alike_are_all_told(monkeypatch, tmp_path):
    def fake(cell, store, *, progress):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("tl_sparse.sweeps.engine.do", fake)
    cells = FIGURES["optimizer"](TINY, NOWHERE)
    outcome = run_cells(cells, Store(tmp_path), progress=False)
    assert len(outcome.failed) == len(cells) == 18
    assert f"{cells[1].label} ({cells[1].key})" in outcome.failed


SCRIPT = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
from test_sweeps import few_cells, Store, Text, run_cells
text, store, rng = Text(**{text!r}), Store({folder!r}), random.Random({seed})
n_killed = n_ended = 0
while n_killed < 10 and n_ended < 30:
    child = os.fork()
    if child == 0:
        run_cells(few_cells(text), store, progress=False)
        os._exit(0)
    time.sleep(rng.uniform(0.05, 0.5))
    os.kill(child, signal.SIGKILL)
    was_killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    n_killed, n_ended = n_killed + was_killed, n_ended + (not was_killed)
run_cells(few_cells(text), store, progress=False)
print(n_killed)
"""


def test_killed_at_ten_random_moments_a_sweep_ends_with_the_same_files(text, finished, tmp_path):
    folder = tmp_path / "killed"
    (folder / "text").parent.mkdir()
    (folder / "text").symlink_to(finished.text_folder)
    code = SCRIPT.format(
        tests=str(Path(__file__).parent), text=text.spec(), folder=str(folder), seed=5
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split()[-1] == "10"
    assert contents(Store(folder)) == contents(finished)
    circuits = [cell for cell in few_cells(text) if isinstance(cell, CircuitCell)]
    assert all("n_edges" in cell_result(finished, cell) for cell in circuits)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Dask's own, of a worker that dies
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_workers_one_of_them_killed_end_with_the_same_files(text, finished, tmp_path):
    """A local Dask cluster; the first worker that begins a cell dies."""
    folder = tmp_path / "workers"
    folder.mkdir()
    (folder / "text").symlink_to(finished.text_folder)
    killed: list[int] = []

    def kill_a_worker() -> None:
        while not killed:
            if list((folder / "models").glob("*/checkpoint")):
                for child in psutil.Process().children():
                    if "spawn_main" in " ".join(child.cmdline()) and not killed:
                        child.kill()
                        killed.append(child.pid)
            time.sleep(0.02)

    watcher = threading.Thread(target=kill_a_worker, daemon=True)
    watcher.start()
    outcome = run_cells(few_cells(text), Store(folder), workers=2, progress=False)
    watcher.join(timeout=5)
    assert killed
    assert outcome.complete
    assert contents(Store(folder)) == contents(finished)


def test_no_cell_waits_behind_a_long_one_while_a_worker_is_idle(tmp_path, monkeypatch):
    """The first model takes until the third is done; the second fails, and its circuit is left."""
    models = [dense_model(TINY, NOWHERE, seed=seed, width=8) for seed in range(3)]
    circuits = [
        CircuitCell(model=model, task="single_double_quote", pruning=QUICK) for model in models
    ]
    cells = [cell for pair in zip(models, circuits, strict=True) for cell in pair]
    last_done, order = threading.Event(), list[Any]()

    def fake(cell: Any, store: Store, *, progress: bool) -> None:
        if cell == models[0]:
            assert last_done.wait(30)
        if cell == models[1]:
            raise RuntimeError("out of luck")
        order.append(cell)
        if cell == circuits[2]:
            last_done.set()

    monkeypatch.setattr("tl_sparse.sweeps.engine.do", fake)
    how: Any = {"n_workers": 2, "threads_per_worker": 1, "processes": False}
    made: Any = LocalCluster(**how | {"dashboard_address": None})
    with made as cluster:
        where = cluster.scheduler_address
        outcome = run_cells(cells, Store(tmp_path), scheduler=where, progress=False)
    assert order == [models[2], circuits[2], models[0], circuits[0]]
    assert outcome.failed == {models[1].label: "RuntimeError: out of luck"}
    assert (outcome.n_done, outcome.n_left) == (4, 1)


def test_a_scheduler_that_is_not_there_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"No Dask scheduler answers at 'tcp://127.0.0.1:9'"):
        run_cells(few_cells(text), Store(tmp_path), scheduler="tcp://127.0.0.1:9", progress=False)
    with pytest.raises(ValueError, match="workers is a non-negative finite integer, got -1"):
        run_cells([], Store(tmp_path), workers=-1)


@pytest.mark.parametrize("damage", ["{", '{"format": "x"}', "[]"])
def test_a_damaged_file_is_named(text, finished, tmp_path, damage):
    store, cell = Store(tmp_path), few_cells(text)[0]
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cell.key}.json").write_text(damage)
    with pytest.raises(ValueError, match=rf"{cell.key}\.json .*Remove it"):
        store.result(cell)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ValueError, match=r"folder is where cells.* is a file. Give another"):
        Store(tmp_path / "x")


def test_another_text_than_the_cells_is_refused(text, finished):
    with pytest.raises(ValueError, match="The cell asks for the text 000000000000 and this"):
        replace(text, hash="0" * 64).open(finished.text_folder, progress=False)


# -- comparing --------------------------------------------------------------------------------


@pytest.fixture
def made_up(monkeypatch):
    """Cells are done by rule: dense loss falls with the logarithm of width, sparse loss is 2.95."""
    trained: list[int] = []

    def fake(cell, store, *, progress):
        if isinstance(cell, SAECell):
            result = {"model_hash": cell.model.key, "saes_hash": "x", "scores": SCORES}
            store.keep(cell, result, seconds=1.0)
            return
        if isinstance(cell, CircuitCell):
            n_edges = 300 if is_dense(cell.model) else 6
            result = {"model_hash": cell.model.key, "note": "", "n_edges": n_edges, "n_nodes": 9,
                      "verdicts": {"necessary": "holds"}}  # fmt: skip
            if cell.saes is not None:
                result |= {"saes_hash": "x", "n_edges": 60, "n_latents": 6, "n_errors": 2,
                           "n_channels": 1, "n_edges_of_errors": 7}  # fmt: skip
            store.keep(cell, result, seconds=1.0)
            return
        loss = 4 - 0.3 * math.log2(cell.width) + 0.01 * cell.training.seed
        trained.extend([cell.width] if is_dense(cell) else [])
        result = {"model_hash": cell.key, "validation_loss": loss if is_dense(cell) else 2.95}
        result |= {"kurtosis": 1.0, "n_nonzero_blocks": 1000}
        store.keep(cell, result, seconds=1.0)

    monkeypatch.setattr("tl_sparse.sweeps.engine.do", fake)
    return trained


def test_a_comparison_finds_the_controls_width_and_goes_on_where_it_was(
    made_up, text, texts, tmp_path
):
    (tmp_path / "text").symlink_to(texts)
    preset = replace(TINY, seeds=(0, 1))
    found = compare(tmp_path, preset, progress=False)
    assert found.match.width == pytest.approx(2 ** ((4 - 2.95) / 0.3), rel=0.1)
    assert abs(found.match.mean_gap) <= 0.03
    assert found.outcome.complete
    (row,) = found.summary.tables["targets"]
    assert (row["sparse edges"][0], row["dense edges"][0], row["dense / sparse"][0]) == (6, 300, 50)
    tasks = found.summary.tables["tasks"]
    assert (tasks[0]["task"], tasks[0]["sparse"]) == ("single_double_quote", [6, 6])
    assert (tasks[0]["dense"], tasks[0]["dense / sparse"]) == ([300, 300], 50)
    assert (row["SAE edges"][0], row["SAE / sparse"][0]) == (60, 10)
    n_trained = len(made_up)
    again = compare(tmp_path, preset, progress=False)
    assert len(made_up) == n_trained
    assert again.summary == found.summary
    page = (tmp_path / "compare.html").read_text()
    assert "A sparse model and its dense control" in page


def test_a_comparison_refuses_before_it_trains_and_keeps_to_its_hours(
    made_up, text, texts, tmp_path, monkeypatch
):
    (tmp_path / "text").symlink_to(texts)
    wrong: Any
    for wrong, message in (
        ({"hours": -1}, "hours is a positive finite number or None, got -1"),
        ({"tolerance": math.nan}, "tolerance is a positive finite number, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(tmp_path, TINY, progress=False, **wrong)
    with pytest.raises(ValueError, match="at least one seed"):
        compare(tmp_path, replace(TINY, seeds=()), progress=False)
    with pytest.raises(RuntimeError, match="hours were over before the dense control was found"):
        compare(tmp_path, TINY, hours=1e-9, progress=False)
    assert made_up == []
    monkeypatch.setattr(
        "tl_sparse.sweeps.engine.do",
        lambda cell, store, progress: store.keep(
            cell, {"model_hash": "", "diverged": True}, seconds=1.0
        ),
    )
    with pytest.raises(RuntimeError, match=r"diverged, at a learning rate of 0\.003: it has"):
        compare(tmp_path, TINY, progress=False)


def test_the_command_compares(made_up, text, texts, tmp_path):
    (tmp_path / "text").symlink_to(texts)
    asked = ["--preset", "tiny", "--folder", tmp_path, "--targets", "0.15,0.5", "--quiet"]
    result = command(*asked, "--no-sae", name="compare")
    assert result.exit_code == 0, result.output
    assert "| 0.5 | 6 | 300 | 50 | 2 |" in result.stdout
    assert not list((tmp_path / "models").glob("*/saes"))
    result = command(*asked, name="compare")
    row = "| 0.15 | 6 | 300 | 50 | 2 | 60 | 10 |"
    assert row in result.stdout
    numbers = json.loads(command(*asked, "--json", name="compare").stdout)
    assert numbers["about"]["width match"]["width"] > 2
    other = command(*asked[:-3], "--targets", "0.05,0.5,0.5", "--json", "--quiet", name="compare")
    tables = json.loads(other.stdout)["tables"]  # audits, SAEs and tables are at 0.15
    assert [row["target loss"] for row in tables["targets"]] == [0.5, 0.15, 0.05]
    assert tables["tasks"]
    assert {row["arm"] for row in tables["arms"]} == {"sparse", "dense", "SAEs on the dense"}
    for wrong, message in (
        (["--targets", "x"], "targets are losses in nats joined by commas, got 'x'"),
        (["--preset", "y"], "A preset is one of tiny, laptop, gpu, paper; got 'y'"),
        (["--targets", ","], "--targets is one or more of them joined by commas, got ','"),
        (["--seeds", ""], "--seeds is one or more of them joined by commas, got ''"),
    ):
        result = command(*wrong, "--folder", tmp_path / "z", name="compare")
        assert (result.exit_code, message in result.output) == (1, True), result.output


# -- the command ------------------------------------------------------------------------------


def command(*arguments: Any, name: str = "sweep") -> Any:
    return CliRunner().invoke(cli.app, [name, *map(str, arguments)], env={"COLUMNS": "100"})


def test_the_command_does_a_figure_and_writes_it(tmp_path, finished, monkeypatch):
    (tmp_path / "text").symlink_to(finished.text_folder)
    monkeypatch.setattr(
        "tl_sparse.sweeps.engine.do",
        lambda cell, store, progress: store.keep(cell, {"model_hash": "x", "validation_loss": 3.0,
            "diverged": isinstance(cell, ModelCell) and cell.training.eps == 1}, seconds=1.0),
    )  # fmt: skip
    asked = ["optimizer", "--preset", "tiny", "--folder", tmp_path, "--quiet"]
    for sae, n in (("--sae", 9 + 6), ("--no-sae", 9)):
        result = command("figure2", *asked[1:], sae, "--estimate")
        assert f"{n} cells, " in result.stdout
    result = command(*asked, "--estimate")
    assert "18 cells, 18 of them to do." in result.stdout
    result = command(*asked, "--estimate", "--json")
    counts = {"cells": 18, "to_do": 18, "trained_again": 0, "hours_of_preset": 0.1}
    assert json.loads(result.stdout) == counts
    result = command(*asked)
    assert result.exit_code == 0, result.output
    assert "| eps 1 | 1 | 1 | - | - | - |" in result.stdout
    assert "| eps 0.01 | 1 | 0 | 3.0 | - | 0.0 |" in result.stdout
    numbers = json.loads(command(*asked, "--json").stdout)
    assert numbers["about"]["done"] == 18
    assert (tmp_path / "optimizer.html").is_file()
    # "as it is" is the main sparse model: finished, but its weights are not here to be scored
    lines = command("capability", *asked[1:], "--estimate").stdout.splitlines()
    assert f"their weights are not in {tmp_path}: 1." in lines[1]


def test_what_failed_for_one_reason_is_said_once(capsys):
    outcome = Outcome(failed={"train a": "no text", "prune b": "no disk", "prune c": "no disk"})
    with pytest.raises(typer.Exit) as ended:
        finish(outcome, "look", as_json=False)
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["Failed: train a: no text", "Failed: prune b and 1 more: no disk"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["figure9"],
            "A figure is one of figure2, figure3, activation, optimizer, methods, capability",
        ),
        (["figure3", "--preset", "huge"], "A preset is one of tiny, laptop, gpu, paper; got"),
        (["figure3", "--seeds", "a"], "seeds are whole numbers joined by commas, got 'a'"),
        (["figure3", "--tasks", "tea"], "There is no task 'tea'"),
        (["figure3", "--tasks", ","], "--tasks is one or more of them joined by commas, got ','"),
    ],
)
def test_the_command_refuses_what_cant_work(arguments, message, tmp_path):
    result = command(*arguments, "--folder", tmp_path / "x", "--quiet")
    assert (result.exit_code, message in result.output) == (1, True), result.output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("field", ["widths", "nonzeros"])
def test_a_preset_without_a_main_size_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} of a preset are two or more"):
        replace(TINY, **{field: (32,)})
