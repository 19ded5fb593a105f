"""Tasks mined from a corpus: real contexts in which the next token is one of two.

1. Find the two answers among the corpus' tokens. Train pairs come from the first nine tenths of its
   training side, validation pairs from the last tenth, test pairs from its validation side: no two
   of them overlap.
2. The prompt is what stands before an answer, from the beginning of a line (or of the document) on,
   at most `max_tokens` long.
3. Leave out a prompt that occurred before, one that the tokenizer would cut otherwise than it did
   in the corpus, and one behind which the other answer could not be the next token.
4. Real contexts come singly, so pair one of each answer, of lengths as near as can be.

One pair, as an example (answers ` in` and ` is`):

        if name not                     if self.stream
    ->  in                          ->  is
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tl_sparse.data import Corpus
from tl_sparse.rules import POSITIVE_INTEGER, Rule, checks_itself
from tl_sparse.tasks.base import Pair, PairTask, Split, encode

BLOCK = 1 << 20
"""Tokens that are searched at a time."""

MIN_TOKENS = 8
"""A prompt has so many tokens or more."""

_TWO_TEXTS = Rule(
    "are two strings",
    lambda v: isinstance(v, tuple | list) and len(v) == 2 and all(isinstance(x, str) for x in v),
)


@checks_itself
def mine(
    corpus: Corpus,
    answers: tuple[str, str],
    *,
    name: str | None = None,
    max_tokens: int = 64,
    n_train: int = 1024,
    n_validation: int = 128,
    n_test: int = 256,
    seed: int = 0,
) -> PairTask:
    """Make a task of a corpus' own contexts of two answers, equally many of each.

    The two prompts of a pair have nothing to do with each other, and nothing says that a context
    decides between the answers. `name` is made of the answers if none is given.

    Raises:
        ValueError: If a number or the answers are none, an answer is not one token, or the corpus
            has too few contexts.
    """
    counts = {"n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    for what, value in (counts | {"max_tokens": max_tokens}).items():
        POSITIVE_INTEGER.check(what, value)
    _TWO_TEXTS.check("answers", answers)
    answers = (answers[0], answers[1])
    name = name or f"mined {answers[0]!r} or {answers[1]!r}"
    ids = [_one_token(answer, corpus.tokenizer) for answer in answers]
    if ids[0] == ids[1]:
        raise ValueError(f"The two answers of {name} are the same token.")
    edge = corpus.train.n_tokens * 9 // 10
    places: dict[Split, tuple[Any, int]] = {
        "train": (corpus.train.tokens[:edge], n_train),
        "validation": (corpus.train.tokens[edge:], n_validation),
        "test": (corpus.validation.tokens, n_test),
    }
    seen: set[str] = set()
    pairs: dict[Split, list[Pair]] = {}
    for split, (tokens, n) in places.items():
        miner = _Miner(tokens, corpus.tokenizer, max_tokens, seen, f"{name} {split} {seed}")
        answer_ids = dict(zip(answers, ids, strict=True))
        sides = [miner.contexts(answer, answer_ids, n) for answer in answers]
        if (found := min(map(len, sides))) < n:
            raise ValueError(
                f"The corpus has {found} usable contexts of {answers[len(sides[0]) > found]!r} for "
                f"the split {split}, and {n} are wanted. Ask for fewer pairs or take more text."
            )
        pairs[split] = [Pair((a, b), answers) for a, b in zip(*sides, strict=True)]
    return PairTask(name, pairs, tokenizer=corpus.tokenizer)


def _one_token(answer: str, tokenizer: Any) -> int:
    tokens = encode([answer], tokenizer)[0]
    if len(tokens) != 1:
        raise ValueError(
            f"An answer must be one token of the corpus' tokenizer, and {answer!r} is "
            f"{len(tokens)}: {[tokenizer.decode([token]) for token in tokens]}."
        )
    return tokens[0]


def line_ends(tokenizer: Any) -> list[int]:
    """List the tokens that end a line."""
    vocabulary = range(max(tokenizer.get_vocab().values()) + 1)
    return [token for token in vocabulary if tokenizer.decode([token]).endswith("\n")]


class _Miner:
    """Looks for contexts in one stretch of tokens."""

    def __init__(
        self, tokens: Any, tokenizer: Any, max_tokens: int, seen: set[str], seed: str
    ) -> None:
        self.tokens, self.tokenizer, self.max_tokens = tokens, tokenizer, max_tokens
        self.seen, self.rng = seen, random.Random(seed)
        self.eos = tokenizer.eos_token_id
        self.line_ends = np.array([*line_ends(tokenizer), self.eos])

    def contexts(self, answer: str, answer_ids: Mapping[str, int], n: int) -> list[str]:
        """Give up to `n` contexts of one of the answers, the short ones first."""
        found: dict[str, int] = {}
        for context in self._candidates(answer_ids[answer]):
            text = self.tokenizer.decode(context.tolist())
            if text not in self.seen and self._is_fair(text, context.tolist(), answer_ids):
                self.seen.add(text)
                found[text] = len(context)
                if len(found) == n:
                    break
        return sorted(found, key=lambda text: found[text])

    def _candidates(self, token: int) -> Iterator[np.ndarray]:
        """Go through the places of a token, in an order drawn from the seed."""
        blocks = list(range(0, len(self.tokens), BLOCK))
        self.rng.shuffle(blocks)
        for start in blocks:
            places = np.flatnonzero(np.asarray(self.tokens[start : start + BLOCK]) == token) + start
            order = list(range(len(places)))
            self.rng.shuffle(order)
            for i in order:
                context = self._before(int(places[i]))
                if len(context) >= MIN_TOKENS:
                    yield context

    def _before(self, place: int) -> np.ndarray:
        """Give the longest stretch before a place that begins a line, within one document."""
        # one token more than fits: a prompt begins behind the end of a line
        before = np.asarray(self.tokens[max(0, place - self.max_tokens - 1) : place])
        ends = np.flatnonzero(np.isin(before, self.line_ends))
        if (documents := np.flatnonzero(before == self.eos)).size:
            ends = ends[ends >= documents[-1]]
        return before[ends[0] + 1 :] if ends.size else before[:0]

    def _is_fair(self, text: str, tokens: list[int], answer_ids: Mapping[str, int]) -> bool:
        """Whether the text is cut as in the corpus, and either answer can be its next token."""
        found = encode([text, *(text + answer for answer in answer_ids)], self.tokenizer)
        wanted = [tokens, *([*tokens, token] for token in answer_ids.values())]
        return found == [tuple(each) for each in wanted]
