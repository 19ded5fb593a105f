"""Pairs that come with the package: what is written is what is loaded, and it is small."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from typer.testing import CliRunner

from tl_sparse import SparsityConfig, only_circuit, zoo
from tl_sparse.auditing import audit
from tl_sparse.bench.circuits import CIRCUIT_DENSITIES, letters_task, made_up_circuit
from tl_sparse.bench.sizes import SIZES
from tl_sparse.bench.training import our_model
from tl_sparse.checkpoints import read_tensors
from tl_sparse.cli import app
from tl_sparse.config import AuditConfig
from tl_sparse.pruning import evaluate
from tl_sparse.sites import model_hash
from tl_sparse.tasks import get

ROOT = Path(__file__).resolve().parents[1]

QUICK = AuditConfig(
    n_random=2, n_subsets=2, n_adversarial_steps=1, n_examples=4, max_edges=2, max_nodes=4
)


@pytest.fixture(scope="module")
def pair():
    """Two models that have learned nothing, with a made-up circuit each, audited."""
    models, circuits, audits = {}, {}, {}
    task = letters_task(SIZES["tiny"])
    for arm, density in (("sparse", "1/64"), ("control", "1/8")):
        model = our_model(
            SIZES["tiny"], torch.device("cpu"), CIRCUIT_DENSITIES[f"density {density}"]
        )
        circuit = made_up_circuit(model, task)
        report = audit(model, circuit, task, config=QUICK, progress=False)
        models[arm], circuits[arm], audits[arm] = model, {task.name: circuit}, {task.name: report}
    return zoo.Pair(
        "mine", models["sparse"], models["control"], circuits, audits, {"command": "none"}
    )


def test_a_pair_comes_back_as_it_was(pair, tmp_path):
    zoo.write(pair, tmp_path / "mine")
    again = zoo.load_folder(tmp_path / "mine")
    assert (again.name, again.card) == ("mine", {"command": "none"})
    for arm in zoo.ARMS:
        model = getattr(again, arm)
        assert model_hash(model) == model_hash(getattr(pair, arm))
        assert again.circuits[arm] == pair.circuits[arm]
        assert again.circuits[arm]["letters"].model_hash == model_hash(model)
        (report,) = again.audits[arm].values()
        assert report.verdicts() == pair.audits[arm]["letters"].verdicts()


def test_what_half_precision_holds_is_stored_so_and_nothing_else(tmp_path):
    model = make_model(SparsityConfig(bigram_table=True), d_vocab=300)
    assert model.bigram.table.numel() == 90_000
    model.save(tmp_path / "whole")
    with torch.no_grad():
        model.bigram.table.copy_(model.bigram.table.half().float())
    model.save(tmp_path / "half")
    for name, dtype in (("whole", torch.float32), ("half", torch.float16)):
        tensors = read_tensors(tmp_path / name / "model.safetensors")
        assert tensors.pop("bigram.table").dtype == dtype
        assert {t.dtype for t in tensors.values()} == {torch.float32}
    again = type(model).load(tmp_path / "half")
    assert torch.equal(again.bigram.table, model.bigram.table)
    assert again.bigram.table.dtype == torch.float32


def test_a_pair_with_another_model_in_it_is_refused(pair, tmp_path):
    zoo.write(pair, tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "sparse")
    shutil.copytree(tmp_path / "mine" / "control", tmp_path / "mine" / "sparse")
    with pytest.raises(ValueError, match=r"does not fit together: the circuit .* another model"):
        zoo.load_folder(tmp_path / "mine")


def test_a_pair_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no pair 'nothing'; there are: "):
        zoo.load("nothing")
    with pytest.raises(ValueError, match=r"There is no folder .*sparse to load a model from"):
        zoo.load_folder(tmp_path)


@pytest.mark.parametrize("name", zoo.names())
def test_a_shipped_pair_is_small_and_its_circuits_are_of_its_models(name):
    pair = zoo.load(name)
    files = [path for path in (zoo.HERE / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    for arm in zoo.ARMS:
        found = model_hash(getattr(pair, arm))
        assert pair.circuits[arm]
        assert {circuit.model_hash for circuit in pair.circuits[arm].values()} == {found}
        assert pair.audits[arm].keys() <= pair.circuits[arm].keys()
    json.dumps(pair.card)


@pytest.mark.parametrize(
    ("folder", "n_edges", "most", "least"), [("pair", 5, 0.15, 0.99), ("pair1024", 12, 0.2, 0.95)]
)
def test_the_wide_pairs_of_the_results_do_the_quote_by_few_weights(folder, n_edges, most, least):
    pair = zoo.load_folder(ROOT / "results" / "wider" / folder)
    for arm in zoo.ARMS:
        found = model_hash(getattr(pair, arm))
        assert {circuit.model_hash for circuit in pair.circuits[arm].values()} == {found}
    circuit = pair.circuits["sparse"]["single_double_quote"]
    assert circuit.n_edges == n_edges
    task = get("single_double_quote", tokenizer=pair.sparse.tokenizer)
    with only_circuit(pair.sparse, circuit):
        loss, accuracy = evaluate(pair.sparse, task, "test")
    assert loss == pytest.approx(circuit.losses["test"], abs=1e-5)
    assert loss < most
    assert accuracy > least


def test_the_head_of_that_circuit_looks_at_the_token_that_opened_the_string():
    pair = zoo.load_folder(ROOT / "results" / "wider" / "pair")
    model, circuit = pair.sparse, pair.circuits["sparse"]["single_double_quote"]
    tokenizer: Any = model.tokenizer
    batch = get("single_double_quote", tokenizer=model.tokenizer).batch("test")
    quotes = [tokenizer.encode(text, add_special_tokens=False)[0] for text in ('("', "('")]
    is_quote = torch.isin(batch.tokens, torch.tensor(quotes))
    name, rows = "blocks.1.attn.hook_pattern", torch.arange(len(batch.last))

    @torch.no_grad()
    def looked_at() -> float:
        _, cache = model.run_with_cache(batch.tokens, names_filter=name)
        pattern = cache[name][rows, 26, batch.last, : batch.tokens.shape[1]]
        assert is_quote[rows, pattern.argmax(-1)].all()
        return float((pattern * is_quote).sum(-1).mean())

    assert looked_at() == pytest.approx(0.94, abs=0.005)
    with only_circuit(model, circuit):
        assert looked_at() == pytest.approx(0.57, abs=0.005)


def info(folder: str) -> dict:
    done = CliRunner().invoke(app, ["info", folder, "--json"])
    return json.loads(done.stdout) if done.exit_code == 0 else {"error": done.output}


@pytest.mark.parametrize("name", zoo.names())
def test_the_command_line_opens_a_pair_by_name_unless_a_folder_of_that_name_is_here(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pair = zoo.load(name)
    hashes = {arm: model_hash(getattr(pair, arm)) for arm in zoo.ARMS}
    assert info(name)["model_hash"] == hashes["sparse"]
    assert info(f"{name}/control")["model_hash"] == hashes["control"]
    assert f"There is no folder {name}/nothing to load" in info(f"{name}/nothing")["error"]
    assert "There is no folder" in info(f"{name}/../{name}")["error"]
    mine = make_model(SparsityConfig(weight_density=0.5))
    mine.save(tmp_path / name)
    assert info(name)["model_hash"] == model_hash(mine)
