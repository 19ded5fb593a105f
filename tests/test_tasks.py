"""Tasks: pairs, splits, losses by hand, and tokenizers that can't serve them."""

import math
from typing import Any

import pytest
import torch
from conftest import make_model

from tl_sparse import data, tasks
from tl_sparse.tasks import Pair, PairTask


class Letters:
    """A tokenizer of single letters, with `bc` as one token when it stands alone."""

    def encode(self, text, add_special_tokens=True):
        return [2] if text == "bc" else [ord(c) - 97 for c in text]

    def decode(self, tokens):
        return "".join(chr(97 + t) for t in tokens)


def a_task(**changes) -> PairTask:
    pairs: dict[Any, list[Pair]] = {
        "train": [Pair(("aaab", "aaac"), ("d", "e")), Pair(("ab", "ac"), ("d", "f"))],
        "validation": [Pair(("b", "c"), ("d", "e"))],
        "test": [Pair(("bb", "bcb"), ("d", "e"))],
        **changes,
    }
    return PairTask("letters", pairs, tokenizer=Letters())


def test_batches_are_padded_on_the_right_and_read_at_the_true_last_token():
    batch = a_task().batch("train")
    assert batch.tokens.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 2]]
    assert batch.last.tolist() == [1, 3, 1, 3]
    assert batch.correct.tolist() == [3, 3, 5, 4]
    assert batch.wrong.tolist() == [5, 4, 3, 3]
    assert a_task().batch("train", [1]).tokens.tolist() == [[0, 0, 0, 1], [0, 0, 0, 2]]


def test_loss_and_accuracy_by_hand():
    task = a_task()
    batch = task.batch("validation")
    logits = torch.zeros(2, 10)
    assert task.loss(logits, batch).item() == pytest.approx(math.log(2))
    assert task.accuracy(logits, batch) == 0
    logits[0, 3] = 2.0  # side A right by 2, side B wrong by 1
    logits[1, 3] = 1.0
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert task.loss(logits, batch).item() == pytest.approx(expected)
    assert task.accuracy(logits, batch) == 0.5


def test_the_last_tokens_logits_are_those_of_the_whole_forward_pass():
    task, model = a_task(), make_model(dtype=torch.float64)
    batch = task.batch("train")
    whole = model(batch.tokens)[torch.arange(4), batch.last]
    torch.testing.assert_close(task.logits(model, batch), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": []}, "has no test pairs"),
        ({"test": [Pair(("ab", "q"), ("d", "e"))]}, "has the prompt 'ab' in train and in test"),
        ({"test": [Pair(("q", "q"), ("d", "e"))]}, "has a pair with one prompt twice"),
        ({"test": [Pair(("q", "r"), ("d", "ef"))]}, "answer 'ef' to be one token.*makes 2"),
        ({"test": [Pair(("", "r"), ("d", "e"))]}, "a prompt without any token"),
        ({"test": [Pair(("q", "r"), ("d", "d"))]}, "has a pair with one answer twice: 'd' after"),
        ({"held_out": [Pair(("q", "ab"), ("d", "e"))]}, "the prompt 'ab' in train and in held_out"),
    ],
)
def test_bad_pairs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_task(**changes)


def test_a_task_without_a_tokenizer_is_refused():
    pairs = [((f"{i} (", f"{i} ["), (")", "]")) for i in range(10)]
    for make in (
        lambda: tasks.get("single_double_quote", tokenizer=None),
        lambda: tasks.get("ioi", tokenizer="gpt2"),
        lambda: tasks.from_pairs("closing", pairs, tokenizer=None),
    ):
        with pytest.raises(ValueError, match=r"made for a tokenizer.* got .*model\.tokenizer"):
            make()


class Merging(Letters):
    """Two a's in a row are one token, wherever they stand."""

    def encode(self, text, add_special_tokens=True):
        return [ord(c) - 97 for c in text.replace("aa", "z")]


def test_an_answer_that_grows_together_with_a_prompt_is_refused():
    pairs: dict[Any, list[Pair]] = {
        split: [Pair((x + "b", x + "c"), ("a", "e"))]
        for split, x in zip(tasks.SPLITS, "klmn", strict=True)
    }
    assert PairTask("merged", pairs, tokenizer=Merging()).n_examples("held_out") == 1
    pairs["test"] = [Pair(("ma", "mc"), ("a", "e"))]
    message = "answer 'a' to be the next token after 'ma'.*cuts the two together into .'m', 'z'"
    with pytest.raises(ValueError, match=message):
        PairTask("merged", pairs, tokenizer=Merging())


def test_equal_lengths_counts_tokens_of_the_two_prompts_of_each_pair():
    assert not a_task().equal_lengths
    pair = Pair(("bb", "bcb"), ("d", "e"))
    assert not a_task(test=[pair]).equal_lengths
    assert a_task(test=[Pair(("bb", "cc"), ("d", "e"))]).equal_lengths


def test_answers_may_differ_from_pair_to_pair_and_repr_names_some():
    task = a_task(validation=[Pair((f"b{x}", f"c{x}"), (x, "z")) for x in "ghijklm"])
    batch = task.batch("validation", [2])
    assert batch.correct.tolist() == [ord("i") - 97, 25]
    assert repr(task).endswith("answers 'd' / 'e' / 'f' / 'g' / 'h' / 'i' / 5 more)")


def test_the_quote_task_differs_in_one_token_and_holds_its_splits_apart(quote_corpus):
    task = tasks.get("single_double_quote", tokenizer=quote_corpus.tokenizer)
    assert task.n_examples("train") == 1024
    words: dict[str, set[str]] = {}
    for split in tasks.SPLITS:
        assert len({pair.prompts for pair in task.pairs[split]}) == task.n_examples(split)
        for pair in task.pairs[split]:
            single, double = pair.prompts
            assert single.replace("('", '("') == double
            assert pair.answers == ("')", '")')
            phrase = single.split("('")[1]
            words.setdefault(split, set()).update(phrase.split())
        batch = task.batch(split)
        a, b = batch.tokens.chunk(2)
        assert ((a != b).sum(1) == 1).all()
    assert not words["test"] & (words["train"] | words["validation"])
    again = tasks.get("single_double_quote", tokenizer=quote_corpus.tokenizer)
    assert again.pairs == task.pairs
    other = tasks.get("single_double_quote", tokenizer=quote_corpus.tokenizer, seed=1)
    assert other.pairs["train"] != task.pairs["train"]


def test_a_tokenizer_without_the_answers_is_refused(texts):
    coarse = data.train_tokenizer(["abc def\n"] * 10, vocab_size=258)
    with pytest.raises(
        ValueError, match=r"needs \(' to be one token, and this tokenizer splits it"
    ):
        tasks.get("single_double_quote", tokenizer=coarse)
    with pytest.raises(
        ValueError, match=r"There is no task 'quotes'\. There are: single_double_quote"
    ):
        tasks.get("quotes", tokenizer=coarse)
    with pytest.raises(ValueError, match=r"Did you mean for_while\? There are: "):
        tasks.get("for-while", tokenizer=coarse)


def test_an_answer_that_is_two_tokens_in_two_pairs_is_refused():
    class Continued(Letters):
        """A letter behind a c is another token than the same letter elsewhere."""

        def encode(self, text, add_special_tokens=True):
            pairs = zip(" " + text, text, strict=False)
            return [ord(c) - 97 + 26 * (before == "c") for before, c in pairs]

    pairs: dict[Any, list[Pair]] = {
        split: [Pair((x + "b", x + "d"), ("a", "e"))]
        for split, x in zip(tasks.SPLITS, "klmn", strict=True)
    }
    pairs["test"] = [Pair(("mbc", "mdc"), ("a", "e"))]
    with pytest.raises(ValueError, match="answer 'a' that this tokenizer makes token 0 of in one"):
        PairTask("continued", pairs, tokenizer=Continued())
