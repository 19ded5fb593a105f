"""Pairs that come with the package: what is written is what is loaded, and it is small."""

import json

import pytest
import torch
from conftest import make_model

from tl_sparse import SparsityConfig, tasks, zoo
from tl_sparse.ablation import references
from tl_sparse.auditing import audit
from tl_sparse.checkpoints import read_tensors
from tl_sparse.config import AuditConfig, PruningConfig
from tl_sparse.pruning import prune
from tl_sparse.sites import model_hash

QUICK = AuditConfig(n_random=2, n_subsets=2, n_adversarial_steps=1, n_examples=4, max_edges=2)


@pytest.fixture(scope="module")
def pair(quote_corpus):
    """Two models that have learned nothing, with a circuit each."""
    models, circuits, audits = {}, {}, {}
    for arm, sparsity in (
        ("sparse", SparsityConfig(weight_density=0.2, activation_density=0.5, bigram_table=True)),
        ("control", SparsityConfig(bigram_table=True)),
    ):
        model = make_model(
            sparsity, d_vocab=quote_corpus.d_vocab, n_ctx=64, positional_embedding_type="none",
            default_prepend_bos=False,
        )  # fmt: skip
        model.set_tokenizer(quote_corpus.tokenizer)
        with torch.no_grad():
            model.bigram.table.copy_(model.bigram.table.half().float())
        task = tasks.get("single_double_quote", tokenizer=model.tokenizer)
        loss = task.loss(task.logits(model, task.batch("test")), task.batch("test")).item()
        config = PruningConfig(n_steps=2, edges=False, drop_one=False, batch_size=4,
                               target_loss=1.0001 * loss, min_accuracy=0.0)  # fmt: skip
        circuit = prune(model, task, references(model, quote_corpus, 512), config, progress=False)
        report = audit(model, circuit, task, quote_corpus, QUICK, progress=False)
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
        assert model.tokenizer.get_vocab() == pair.sparse.tokenizer.get_vocab()
        assert again.circuits[arm] == pair.circuits[arm]
        assert again.circuits[arm]["single_double_quote"].model_hash == model_hash(model)
        (report,) = again.audits[arm].values()
        assert report.verdicts() == pair.audits[arm]["single_double_quote"].verdicts()


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
