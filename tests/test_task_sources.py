"""Tasks of a user's own, tasks mined from a corpus, and shuffled controls."""

import json
import re
from typing import Any

import pytest

from tl_sparse import data, tasks
from tl_sparse.tasks import Pair


@pytest.fixture(scope="module")
def single_bytes():
    return data.train_tokenizer(["a"], vocab_size=257)


def rows(n, **more):
    return [{"prompts": [f"{i} (", f"{i} ["], "answers": [")", "]"], **more} for i in range(n)]


def written(path, lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


# Pairs --------------------------------------------------------------------------------------------


def test_pairs_are_divided_by_the_seed_and_those_that_share_a_prompt_stay_together(single_bytes):
    pairs = [Pair((f"{i} (", f"{i} ["), (")", "]")) for i in range(60)]
    chain = [Pair((f"{i} (", f"{i + 1} ["), (")", "]")) for i in range(100, 110)]
    chain += [Pair((f"{i} (", f"{i} ["), (")", "]")) for i in range(100, 110)]
    task = tasks.from_pairs("closing", pairs + chain, tokenizer=single_bytes)
    counts = [task.n_examples(split) for split in tasks.SPLITS]
    assert sum(counts) == 80
    assert counts[3] == 0
    assert 54 <= counts[0] <= 58
    assert [split for split in tasks.SPLITS if set(chain) & set(task.pairs[split])] == ["train"]
    again = tasks.from_pairs("closing", pairs + chain, tokenizer=single_bytes)
    other = tasks.from_pairs("closing", pairs + chain, tokenizer=single_bytes, seed=1)
    assert again.pairs == task.pairs != other.pairs


def test_pairs_may_be_given_by_split_as_plain_tuples(single_bytes):
    task = tasks.from_pairs(
        "closing",
        {"train": [(("(", "["), (")", "]"))], "validation": [Pair(("a(", "a["), (")", "]"))],
         "test": [(("b(", "b["), (")", "]"))], "held_out": [(("c(", "c["), (")", "]"))]},
        tokenizer=single_bytes,
    )  # fmt: skip
    assert [task.n_examples(split) for split in tasks.SPLITS] == [1, 1, 1, 1]
    assert task.equal_lengths


def test_three_pairs_are_enough_and_two_are_not(single_bytes):
    pairs = [((f"{i} (", f"{i} ["), (")", "]")) for i in range(3)]
    task = tasks.from_pairs("closing", pairs, tokenizer=single_bytes)
    assert [task.n_examples(split) for split in tasks.SPLITS] == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="closing has 2 pairs in 2 groups that share no prompt"):
        tasks.from_pairs("closing", pairs[:2], tokenizer=single_bytes)


def test_pairs_may_be_lists_and_what_is_no_pair_is_refused(single_bytes):
    pairs: Any = [[[f"{i} (", f"{i} ["], [")", "]"]] for i in range(10)]
    task = tasks.from_pairs("closing", pairs, tokenizer=single_bytes)
    assert sum(task.n_examples(split) for split in tasks.SPLITS) == 10
    for wrong in (["(", "["], ((1, 2), (")", "]")), (("(", "["), (")", "]"), "train"), "([)]", 3):
        with pytest.raises(ValueError, match="A pair is two prompts and two answers"):
            tasks.from_pairs("closing", [*pairs, wrong], tokenizer=single_bytes)  # pyright: ignore[reportArgumentType]


def test_a_pair_with_an_empty_prompt_is_refused_as_that(single_bytes):
    for prompts in (("", ""), ("", "x ["), ("x (", "")):
        with pytest.raises(ValueError, match=r"one of them is empty; got \(\("):
            tasks.from_pairs("closing", [(prompts, (")", "]"))] * 10, tokenizer=single_bytes)


def test_an_unknown_split_is_refused(single_bytes):
    pairs = {"training": [Pair(("(", "["), (")", "]"))]}
    with pytest.raises((ValueError, TypeError), match="training"):
        tasks.from_pairs("closing", pairs, tokenizer=single_bytes)  # pyright: ignore[reportArgumentType]


# Files --------------------------------------------------------------------------------------------


def test_a_file_gives_the_task_that_its_pairs_give(tmp_path, single_bytes):
    path = written(tmp_path / "closing.jsonl", ["", *rows(20), "  "])
    task = tasks.from_jsonl(path, tokenizer=single_bytes)
    pairs = [Pair(tuple(row["prompts"]), tuple(row["answers"])) for row in rows(20)]
    assert task.pairs == tasks.from_pairs("closing", pairs, tokenizer=single_bytes).pairs
    assert task.name == "closing"
    named = tasks.from_jsonl(path, tokenizer=single_bytes, name="brackets")
    assert named.name == "brackets"


def test_a_file_may_name_the_splits(tmp_path, single_bytes):
    lines = [row | {"split": tasks.SPLITS[i % 4]} for i, row in enumerate(rows(8))]
    task = tasks.from_jsonl(written(tmp_path / "a.jsonl", lines), tokenizer=single_bytes)
    assert [task.n_examples(split) for split in tasks.SPLITS] == [2, 2, 2, 2]
    assert {pair.prompts[0] for pair in task.pairs["validation"]} == {"1 (", "5 ("}


GOOD = {"prompts": ["(", "["], "answers": [")", "]"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this is not JSON"),
        ("[1]", "has the fields 'prompts' and 'answers' and may have 'split', got list"),
        ({"prompts": ["(", "["]}, r"has the fields .*, got \['prompts'\]"),
        (GOOD | {"answer": ")"}, r"got \['prompts', 'answers', 'answer'\]"),
        (GOOD | {"prompts": ["("]}, r"'prompts' is a list of two strings, got \['\('\]"),
        (GOOD | {"answers": [1, 2]}, "'answers' is a list of two strings"),
        (GOOD | {"split": "tests"}, "'split' is one of train, validation, test, held_out, got"),
        (GOOD | {"split": "test"}, "'split' stands in every line or in none"),
        (GOOD | {"prompts": ["(", "("]}, r"a pair with one prompt twice: '\('"),
        (GOOD | {"answers": [")", ")"]}, "one answer twice"),
        (GOOD | {"answers": [")", "])"]}, r"needs its answer '\]\)' to be one token.* makes 2"),
        (GOOD | {"prompts": ["", "("]}, "a prompt without any token"),
        (GOOD | {"prompts": ["\ud800", "("]}, r"a surrogate\) is no text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, single_bytes, line, message):
    path = written(tmp_path / "bad.jsonl", [*rows(2), "", line, *rows(2)])
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 4: .*{message}"):
        tasks.from_jsonl(path, tokenizer=single_bytes)


# Mining -------------------------------------------------------------------------------------------

FEW: Any = {"n_train": 60, "n_validation": 8, "n_test": 16}


@pytest.fixture(scope="module")
def mined(quote_corpus):
    return tasks.mine(quote_corpus, (" in", " ="), **FEW)


def test_mined_prompts_stand_in_the_corpus_before_their_answers(quote_corpus, mined):
    sides = {
        "train": quote_corpus.train, "validation": quote_corpus.train,
        "test": quote_corpus.validation,
    }  # fmt: skip
    texts = {split: quote_corpus.tokenizer.decode(side.tokens) for split, side in sides.items()}
    edge = len(quote_corpus.tokenizer.decode(quote_corpus.train.tokens[: edge_of(quote_corpus)]))
    for split in ("train", "validation", "test"):
        for pair in mined.pairs[split]:
            for prompt, answer in zip(pair.prompts, pair.answers, strict=True):
                places = [m.start() for m in re.finditer(re.escape(prompt + answer), texts[split])]
                assert places, prompt
                if split == "train":
                    assert min(places) < edge
                elif split == "validation":
                    assert max(places) >= edge
                assert all(p == 0 or texts[split][p - 1] in "\n>" for p in places[:1])


def edge_of(corpus):
    return corpus.train.n_tokens * 9 // 10


def test_mined_pairs_have_one_of_each_answer_and_no_prompt_twice(mined):
    prompts = [p for some in mined.pairs.values() for pair in some for p in pair.prompts]
    assert len(prompts) == len(set(prompts)) == 2 * (60 + 8 + 16)
    assert all(pair.answers == (" in", " =") for some in mined.pairs.values() for pair in some)
    assert not any("<|endoftext|>" in prompt for prompt in prompts)
    assert mined.name == "mined ' in' or ' ='"


def test_mined_contexts_have_at_most_so_many_tokens_and_follow_the_seed(quote_corpus, mined):
    assert mined.longest <= 64
    short = tasks.mine(quote_corpus, (" in", " ="), max_tokens=20, name="short", **FEW)
    assert short.longest <= 20
    assert short.name == "short"
    again = tasks.mine(quote_corpus, (" in", " ="), **FEW)
    other = tasks.mine(quote_corpus, (" in", " ="), seed=1, **FEW)
    assert again.pairs == mined.pairs
    assert other.pairs["train"] != mined.pairs["train"]


def test_mining_says_what_is_missing(quote_corpus, corpus):
    with pytest.raises(ValueError, match=r"must be one token .* and ' in the' is 2"):
        tasks.mine(quote_corpus, (" in", " in the"))
    with pytest.raises(ValueError, match="are the same token"):
        tasks.mine(quote_corpus, (" in", " in"))
    for n in (0, 2.5):
        with pytest.raises(ValueError, match=f"n_validation is a positive .*, got {n}"):
            tasks.mine(quote_corpus, (" in", " ="), n_validation=n)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="answers are two strings, got ' in'"):
        tasks.mine(quote_corpus, " in")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"usable contexts of ':' for the split train, and 9000 are"
    ):
        tasks.mine(corpus, (" =", ":"), n_train=9000)


# Controls -----------------------------------------------------------------------------------------


def test_shuffling_exchanges_the_answers_of_half_the_pairs(single_bytes):
    pairs = [Pair((f"{i} (", f"{i} ["), (")", "]")) for i in range(100)]
    task = tasks.from_pairs("closing", pairs, tokenizer=single_bytes)
    control = tasks.shuffled(task)
    assert control.name == "closing_shuffled"
    for split in ("train", "validation", "test"):
        prompts = {pair.prompts: pair.answers for pair in control.pairs[split]}
        assert set(prompts) == {pair.prompts for pair in task.pairs[split]}
        n_exchanged = sum(answers == ("]", ")") for answers in prompts.values())
        assert n_exchanged == task.n_examples(split) // 2
    assert tasks.shuffled(task).pairs == control.pairs != tasks.shuffled(task, seed=1).pairs
