"""Tasks that are answered at every position, on causal and bidirectional models."""

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from conftest import make_model

from tl_sparse import PruningConfig, prune
from tl_sparse.ablation import zero_references
from tl_sparse.circuit import Site
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import evaluate
from tl_sparse.sites import site_map
from tl_sparse.tasks import SequenceExample, SequenceTask

WORDS = [(1, 2, 3), (4, 1), (2, 2, 1, 5), (3,)]


def model_of(**shape: Any) -> HookedSparseTransformer:
    return make_model(d_vocab=8, dtype=torch.float64, **shape)


def mirror() -> SequenceTask:
    return SequenceTask("mirror", [SequenceExample(w, (None, *w[1:])) for w in WORDS if w[1:]])


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("norm", ["RMSPre", None])
def test_padding_changes_nothing(direction, norm):
    model = model_of(attention_dir=direction, normalization_type=norm)
    task = SequenceTask.of_model("own", model, WORDS)
    batch = task.batch("test")
    logits = task.logits(model, batch)
    for row, word in enumerate(WORDS):
        alone = model(torch.tensor([word]))[0]
        torch.testing.assert_close(logits[row, : len(word)], alone, atol=1e-9, rtol=0)
    assert evaluate(model, task, "test") == (pytest.approx(0, abs=1e-18), 1.0)


def test_loss_and_accuracy_are_those_computed_by_hand():
    task, model = mirror(), model_of()
    batch = task.batch("train", [0, 1])
    logits = torch.zeros(2, 3, 8, dtype=torch.float64)
    logits[0, 1, 2] = log(7)  # right, with probability 1/2; the other two are coins of 8 sides
    by_hand = ((log(2) + log(8)) / 2 + log(8)) / 2
    assert task.loss(logits, batch).item() == pytest.approx(by_hand)
    assert task.accuracy(logits, batch) == pytest.approx((1 / 2 + 0) / 2)
    numbers = SequenceTask("n", [SequenceExample((1, 2), (None, 0.5))], kind="numbers")
    batch = numbers.batch("train")
    assert numbers.loss(torch.tensor([[[9.0], [0.7]]]), batch).item() == pytest.approx(0.04)
    assert numbers.accuracy(torch.tensor([[[9.0], [0.505]]]), batch) == 1
    assert numbers.accuracy(torch.tensor([[[9.0], [0.52]]]), batch) == 0
    with pytest.raises(ValueError, match="answers about 1 outputs; the model has 8"):
        numbers.logits(model, batch)


def test_own_classes_are_the_largest_outputs_and_skipped_positions_ask_nothing():
    model = model_of()
    task = SequenceTask.of_model("own", model, WORDS[:3], kind="classes", n_skipped=1)
    for word, example in zip(WORDS, task.examples["test"], strict=False):
        largest = model(torch.tensor([word]))[0].argmax(-1).tolist()
        assert example.answers == (None, *largest[1:])
    assert task.longest == 4


def test_a_split_may_not_share_a_sequence_unless_the_list_is_every_input():
    some = [SequenceExample(w, w) for w in WORDS]
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) in train and in test.*give one list"):
        SequenceTask("t", {"train": some[:2], "validation": some[2:], "test": some[:1]})
    with pytest.raises(ValueError, match="no test sequences"):
        SequenceTask("t", {"train": some[:2], "validation": some[2:]})
    split = SequenceTask("t", {"train": some[:2], "validation": some[2:3], "test": some[3:]})
    counts = "2 train, 1 validation, 1 test sequences of 1 to 4 tokens"
    assert repr(split) == f"SequenceTask(t: {counts}; classes)"


@pytest.mark.parametrize(
    ("tokens", "answers", "kind", "message"),
    [
        ((1, 2), (1,), "classes", "1 answers for the 2 tokens.*None where nothing is asked"),
        ((1, 2), (None, None), "classes", "asks nothing of the sequence"),
        ((1, 2), (None, 0.5), "classes", 'integers from 0 on, got 0.5.*set kind="numbers"'),
        ((1, 2), ((1.0, 2.0), 3.0), "numbers", r"answers of \[1, 2\] numbers"),
        ((1, 2), (1, 2), "words", 'kind is "classes" or "numbers"'),
    ],
)
def test_examples_that_make_no_question_are_refused(tokens, answers, kind, message):
    with pytest.raises(ValueError, match=message):
        SequenceTask("t", [SequenceExample(tokens, answers)], kind=kind)


def test_prune_takes_a_bidirectional_model_without_norms_and_its_final_read():
    model = model_of(attention_dir="bidirectional", normalization_type=None, n_layers=1)
    task = SequenceTask.of_model("own", model, WORDS)
    config = PruningConfig(n_steps=3, n_edge_steps=3, target_loss=1.0, mask_final=True)
    config = replace(config, drop_one=False)
    circuit = prune(model, task, zero_references(model), config, progress=False)
    assert circuit.losses["validation"] <= 1
    assert circuit.channels(Site(1, "final_in"))
    whole = {info.site for info in site_map(model, final=True).sites}
    assert set(circuit.references) == whole
