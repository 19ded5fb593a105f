"""The audit's prompts of other forms: what they are made of, and who answers them how.

The toy is that of test_auditing.py, the kind of a marked letter, with room for longer prompts and a
corpus of unmarked letters in lines.
"""

import ast
import io
import random
import re
import tokenize
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from test_auditing import FIND, LEAK, ONE, TASK, circuit_of, neurons
from test_auditing import grow as grow_small
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tl_sparse import HookedSparseTransformer, data, tasks
from tl_sparse.ablation import pair_references, zero_references
from tl_sparse.auditing import audit
from tl_sparse.auditing.generality import (
    Answers,
    alike,
    answers_on,
    by_length,
    families,
    generality,
    shared_mistakes,
)
from tl_sparse.auditing.subject import Subject
from tl_sparse.config import AuditConfig
from tl_sparse.tasks import PairTask

CONFIG = AuditConfig(n_random=20, n_subsets=20, n_adversarial_steps=20, n_examples=32)
N_CTX = 48
NEWLINE, EOS = 12, 13


def letters() -> PreTrainedTokenizerFast:
    """One token for each of twelve letters, the newline and the end of a text."""
    signs = {letter: i for i, letter in enumerate("abcdefghijkl\n")} | {"<eos>": EOS}
    tokenizer = Tokenizer(models.WordLevel(signs, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-l\n]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(scope="module")
def lettered(tmp_path_factory) -> data.Corpus:
    """Texts of twelve lines of three to six unmarked letters."""
    folder, rng, sides = tmp_path_factory.mktemp("letters"), random.Random(0), []
    for name in ("train", "validation"):
        tokens = []
        for _ in range(40):
            for _ in range(12):
                tokens += [rng.randrange(6) for _ in range(rng.randint(3, 6))] + [NEWLINE]
            tokens.append(EOS)
        (folder / name).write_bytes(np.array(tokens, dtype="uint16").tobytes())
        sides.append(data.TokenSplit(folder / name, dtype="uint16", n_bytes=len(tokens)))
    return data.Corpus(*sides, tokenizer=letters(), hash="letters", d_vocab=14)


def grow(edges) -> HookedSparseTransformer:
    """The model of test_auditing.py with newlines, ends of text and room for them."""
    small = grow_small(edges)
    shape = {
        "n_layers": 1, "d_model": 12, "n_heads": 2, "d_head": 4, "d_mlp": 12, "n_ctx": N_CTX,
        "d_vocab": 14, "act_fn": "relu", "normalization_type": None, "device": "cpu",
        "positional_embedding_type": "none",
    }  # fmt: skip
    model = HookedSparseTransformer(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            known = small.get_parameter(name)
            parameter.zero_()
            parameter[tuple(slice(n) for n in known.shape)] = known
        model.embed.W_E[12:, ONE] = 1
    return model


PULL = [(f"0.mlp_in.{ONE}", "0.mlp_neuron.4", 0.5), ("0.mlp_neuron.4", "0.mlp_out.5", 0.3)]
"""A little for `b` at all times: the mark's kind has to come with some weight to be heard."""

FOUND = FIND + LEAK + neurons(0) + PULL
"""The mark's kind by an attention that finds it."""

DILUTED = LEAK + neurons(0) + PULL
"""The mark's kind by a mean over the context: 2.07 / n_tokens against a pull of 0.15."""


def subject_of(model, edges, task=TASK, references=None) -> Subject:
    circuit = circuit_of(model, edges, task.name)
    return Subject(model, circuit, task, references or zero_references(model), CONFIG)


# Longer prompts -----------------------------------------------------------------------------------


def check_longer(task: PairTask, corpus: data.Corpus, n_ctx: int) -> int:
    """Check each longer prompt against the corpus' text and the old prompts; say how many."""
    new = tasks.longer(task, corpus, n_ctx=n_ctx)
    stream = corpus.validation.tokens.tolist()
    tokenizer: Any = corpus.tokenizer
    text = tokenizer.decode(stream)
    old = {pair.prompts: tokens for pair, tokens in
           zip(task.pairs["test"], task.encoded("test"), strict=True)}  # fmt: skip
    for pair, tokens in zip(new.pairs["test"], new.encoded("test"), strict=True):
        (prompts,) = (
            p for p in old
            if all(a.endswith(f"\n{b}") for a, b in zip(pair.prompts, p, strict=True))
            and pair.prompts[0][: -len(p[0])] == pair.prompts[1][: -len(p[1])]
            and tokens.prompts[0][-len(old[p].prompts[0]) :] == old[p].prompts[0]
        )  # fmt: skip
        before = pair.prompts[0][: -len(prompts[0])]
        assert tokenizer.eos_token not in before  # within one document
        assert any(
            m.start() == 0 or text[: m.start()].endswith(("\n", ">"))
            for m in re.finditer(re.escape(before), text)
        )
        n = len(tokens.prompts[0]) - len(old[prompts].prompts[0])
        assert 16 <= n <= (n_ctx - max(map(len, old[prompts].prompts))) // 2
        lines = tokens.prompts[0][:n]
        assert tokenizer.decode(lines) == before
        assert lines in {tuple(stream[i : i + n]) for i in range(len(stream))}
        for side in (0, 1):
            assert tokens.prompts[side] == lines + old[prompts].prompts[side]
        assert tokens.answers == old[prompts].answers
    assert new.pairs["train"] == task.pairs["train"]
    assert new.encoded("held_out") == task.encoded("held_out")
    assert new.longest <= n_ctx
    assert new.pairs == tasks.longer(task, corpus, n_ctx=n_ctx).pairs
    assert new.pairs != tasks.longer(task, corpus, n_ctx=n_ctx, seed=1).pairs
    return new.n_examples("test")


def test_longer_prompts_are_the_test_prompts_behind_lines_of_one_document(lettered):
    assert check_longer(TASK, lettered, N_CTX) == TASK.n_examples("test")


def test_prompts_of_a_real_tokenizer_get_longer_too(quote_corpus):
    few = {"n_train": 8, "n_validation": 4, "n_test": 16, "n_held_out": 8}
    task = tasks.get("single_double_quote", tokenizer=quote_corpus.tokenizer, **few)
    assert check_longer(task, quote_corpus, 96) == 16


def test_without_room_or_with_another_tokenizer_nothing_gets_longer(lettered, quote_corpus):
    with pytest.raises(ValueError, match=r"Only 0 of the 48 test pairs of marked .* 16 tokens"):
        tasks.longer(TASK, lettered, n_ctx=30)
    with pytest.raises(ValueError, match="otherwise than the task marked does"):
        tasks.longer(TASK, quote_corpus, n_ctx=N_CTX)


# Mined prompts ------------------------------------------------------------------------------------


def test_mined_prompts_stand_in_the_corpus_before_one_of_the_answers(lettered):
    found = tasks.mined_like(TASK, lettered, n_ctx=N_CTX, n_pairs=60)
    assert found.answer_ids == TASK.answer_ids == {"a": 0, "b": 1}
    text = lettered.tokenizer.decode(lettered.validation.tokens.tolist())
    assert found.n_examples("test") == 60
    for pair in found.pairs["test"]:
        assert pair.answers == ("a", "b")
        assert pair.prompts[0] + "a" in text
        assert pair.prompts[1] + "b" in text
    assert found.longest <= N_CTX


def test_fewer_contexts_than_wanted_are_a_quarter_or_none(lettered):
    n = lettered.validation.tokens.tolist().count(0)
    assert tasks.mined_like(TASK, lettered, n_pairs=n + 4).n_examples("test") == (n + 4) // 4
    with pytest.raises(ValueError, match="usable contexts of"):
        tasks.mined_like(TASK, lettered, n_pairs=4 * n + 4)


def test_contexts_are_mined_for_the_same_two_tokens_only(lettered, quote_corpus):
    with pytest.raises(ValueError, match="other tokens for the answers of marked"):
        tasks.mined_like(TASK, quote_corpus, n_pairs=4)
    few = {"n_train": 8, "n_validation": 4, "n_test": 8, "n_held_out": 8}
    names = tasks.get("var_swap", tokenizer=quote_corpus.tokenizer, **few)
    with pytest.raises(ValueError, match=r"two answers, and var_swap has \d"):
        tasks.mined_like(names, quote_corpus)


# Adversarial prompts ------------------------------------------------------------------------------


def scanned(prompt: str) -> tuple[int, list[str]]:
    """Square brackets that stand open in the code of a prompt, and its comments."""
    depth, comments = 0, []
    try:
        for token in tokenize.generate_tokens(io.StringIO(prompt).readline):
            if token.type == tokenize.COMMENT:
                comments.append(token.string)
            depth += {"[": 1, "]": -1}.get(token.string, 0)
    except tokenize.TokenError:  # the list that the prompt breaks off in
        pass
    return depth, comments


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


@pytest.fixture(scope="module")
def brackets(quote_corpus) -> dict[str, PairTask]:
    made = tasks.adversarial(
        "bracket_counting", tokenizer=quote_corpus.tokenizer, max_tokens=96, n_pairs=40
    )
    assert list(made) == ["longer lists", "an open bracket in a comment"]
    return made


@pytest.mark.parametrize("family", ["longer lists", "an open bracket in a comment"])
def test_misleading_brackets_have_the_right_answers(brackets, family):
    task = brackets[family]
    assert task.n_examples("held_out") == 40
    assert max(len(p) for pair in task.encoded("held_out") for p in pair.prompts) <= 96
    for pair in task.pairs["held_out"]:
        for depth, prompt, right, wrong in zip(
            (1, 2), pair.prompts, pair.answers, pair.answers[::-1], strict=True
        ):
            found, comments = scanned(prompt)
            assert found == depth == right.count("]")
            assert parses(prompt + right)
            assert not parses(prompt + wrong)
            unmatched = [c for c in comments if c.count("[") > c.count("]")]
            assert len(unmatched) == (family != "longer lists")
            n_entries = prompt.rpartition("[")[2].count(",") + 1
            assert n_entries >= 10 if family == "longer lists" else n_entries < 10


def test_a_comment_leaves_a_quote_open_before_the_string(quote_corpus):
    made = tasks.adversarial("single_double_quote", tokenizer=quote_corpus.tokenizer, n_pairs=20)
    for pair in made["an open quote in a comment"].pairs["held_out"]:
        for prompt, right, wrong in zip(
            pair.prompts, pair.answers, pair.answers[::-1], strict=True
        ):
            assert len(re.findall(r"['\"]", prompt.splitlines()[0])) == 1
            assert prompt.startswith("# ")
            assert parses(prompt + right)
            assert not parses(prompt + wrong)


def test_families_that_cannot_be_made_are_left_out(quote_corpus):
    tokenizer = quote_corpus.tokenizer
    assert tasks.adversarial("for_while", tokenizer=tokenizer) == {}
    assert tasks.adversarial("bracket_counting", tokenizer=tokenizer, max_tokens=4) == {}
    single_bytes = data.train_tokenizer(["a"], vocab_size=257)
    assert tasks.adversarial("single_double_quote", tokenizer=single_bytes) == {}
    with pytest.raises(ValueError, match="no task 'whale'"):
        tasks.adversarial("whale", tokenizer=tokenizer)


# Answers ------------------------------------------------------------------------------------------


def some_answers(whole: str, circuit: str) -> Answers:
    a, b = (torch.tensor([float(sign) for sign in signs]) for signs in (whole, circuit))
    return Answers(a, b, torch.arange(len(whole)))


def test_answers_alike_are_counted():
    finding = alike("some", some_answers("11110000", "11010010"))
    assert finding.name == "prompts that circuit and model answer alike, some"
    assert finding.value == 6 / 8
    assert not finding.holds
    assert finding.control == pytest.approx(0.5)
    lopsided = alike("some", some_answers("1110", "1111"))
    assert (lopsided.value, lopsided.control) == (0.75, 0.75)


def test_mistakes_of_the_model_are_looked_up_in_the_circuit():
    few = some_answers("0" * 9 + "1" * 20, "0" * 29)
    assert list(shared_mistakes(few)) == []
    (finding,) = shared_mistakes(some_answers("0" * 10 + "1" * 10, "0" * 4 + "1" * 12 + "0" * 4))
    assert (finding.value, finding.control) == (pytest.approx(0.4), pytest.approx(0.4))
    assert not finding.holds
    (finding,) = shared_mistakes(some_answers("0" * 10 + "1" * 10, "0" * 6 + "1" * 14))
    assert (finding.value, finding.control) == (pytest.approx(0.6), pytest.approx(0.3))
    assert finding.holds


def test_accuracy_by_length_is_given_in_quarters():
    right = torch.tensor([0.0, 1, 1, 1, 0, 1, 0, 0])
    n_tokens = torch.tensor([9, 2, 3, 1, 8, 4, 6, 7])
    assert by_length(right, n_tokens) == [(1.5, 1), (3.5, 1), (6.5, 0), (8.5, 0)]


@pytest.mark.parametrize("edges", [FOUND, DILUTED])
def test_answers_are_those_of_a_model_with_these_weights_alone(lettered, edges):
    model = grow(FOUND)
    longer = tasks.longer(TASK, lettered, n_ctx=N_CTX)
    found = answers_on(subject_of(model, edges), longer, "test")
    chosen = [i * 48 // 32 for i in range(32)]
    pairs = [longer.encoded("test")[i] for i in chosen]
    for one, right in ((grow(FOUND), found.whole), (grow(edges), found.circuit)):
        wanted = []
        for side in (0, 1):
            for pair in pairs:
                logits = one(torch.tensor([pair.prompts[side]]))[0, -1]
                wanted.append(float(logits[side] > logits[1 - side]))
        assert right.tolist() == wanted
    assert found.n_tokens.tolist() == [len(p.prompts[s]) for s in (0, 1) for p in pairs]


def judged(edges, corpus):
    curves = {}
    found = list(generality(subject_of(grow(FOUND), edges), corpus, curves))
    return {f.name.removeprefix("prompts that circuit and model answer alike, "): f
            for f in found}, curves  # fmt: skip


def test_a_circuit_that_takes_a_mean_fails_on_longer_contexts_only(lettered):
    found, curves = judged(DILUTED, lettered)
    assert [name for name, finding in found.items() if not finding.holds] == ["longer contexts"]
    assert found["longer contexts"].value == 0.5  # `b` to everything
    assert list(found)[:4] == [
        "new words", "held-out templates", "longer contexts", "mined contexts"
    ]  # fmt: skip
    name = "marked, longer contexts: accuracy by number of tokens"
    assert [y for _, y in curves[f"{name}, whole model"]] == [1, 1, 1, 1]
    lengths, accuracies = zip(*curves[f"{name}, circuit"], strict=True)
    assert lengths[:2] == (7, 7)
    assert 23 <= lengths[2] <= lengths[3] <= 27
    assert accuracies[:2] == (1, 1)
    assert sum(accuracies[2:]) == pytest.approx(1)


def test_the_truth_holds_on_longer_and_on_mined_contexts(lettered):
    report = audit(
        grow(FOUND), circuit_of(grow(FOUND), FOUND), TASK, lettered, CONFIG, progress=False
    )
    found = report.of("general")
    assert len(found) == 5
    assert all(finding.holds for finding in found)
    # `b` behind every mined context, so half of those 64 answers and no others are wrong
    assert found[-1].name == "share of the model's wrong answers that the circuit gets wrong too"
    assert found[-1].value == 1
    assert found[-1].control == pytest.approx(32 / 256)
    assert len(report.curves) >= 2


def test_without_a_corpus_only_the_tasks_own_prompts_are_judged():
    found, curves = judged(DILUTED, None)
    assert list(found) == ["new words", "held-out templates"]
    assert curves == {}


def test_resampling_from_the_pair_leaves_out_pairs_of_unequal_length(lettered):
    model = grow(FOUND)
    found = families(subject_of(model, FOUND, references=pair_references(model)), lettered)
    assert list(found) == ["new words", "held-out templates", "longer contexts"]
    assert not tasks.mined_like(TASK, lettered, n_ctx=N_CTX).equal_lengths


def test_a_task_of_the_catalogue_is_judged_on_its_adversarial_prompts_too(quote_corpus):
    few = {"n_train": 8, "n_validation": 4, "n_test": 16, "n_held_out": 8}
    task = tasks.get("bracket_counting", tokenizer=quote_corpus.tokenizer, **few)
    model = make_model(n_layers=1, n_ctx=128, d_vocab=quote_corpus.d_vocab)
    edge = ("0.attn_in.0", "0.v.0", 1.0)
    subject = subject_of(model, [edge], task)
    found = families(subject, quote_corpus)
    assert {"longer contexts", "longer lists", "an open bracket in a comment"} <= set(found)
    assert all(each.longest <= 128 for each, _ in found.values())
    curves = {}
    findings = list(generality(subject, quote_corpus, curves))
    assert len(findings) == len(found) + 1  # a random model makes mistakes
    assert len(curves) == 4
    other = tasks.shuffled(task)
    assert "longer lists" not in families(subject_of(model, [edge], other), None)
    nonsense = tasks.nonsense(task)
    nonsense.name = task.name
    assert "longer lists" not in families(subject_of(model, [edge], nonsense), quote_corpus)
