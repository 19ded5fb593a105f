"""From a description of a task to its pairs, for any tokenizer.

1. A `Template` draws the two prompts of a pair from `Words`: same context, same words, and one
   decisive difference.
2. A `PairSpec` names the templates of a task, those held out, and its answers in order of
   preference. Tokenizers differ, so the first `Answers` are taken that this one has as the single
   next token behind at least a quarter of the prompts.
3. `make` draws pairs until each split has enough, and leaves out those that the tokenizer cuts
   otherwise. Where a task can have two prompts of one length, pairs of unequal length are left out
   too.

Train and validation come from the templates and the words of the pool `train`, test from the same
templates and the words of the pool `test`, held-out pairs from other templates.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tl_sparse.tasks.base import NEEDED, EncodedPair, Pair, PairTask, Split, encode, encode_pairs
from tl_sparse.tasks.words import MIN_SINGLE, SUFFIXES, Pool, Words

N_PROBES = 64
MIN_SERVED, MIN_EQUAL = 1 / 4, 1 / 8
"""Answers are taken, and equal lengths asked for, where so many of the probes allow it."""

MAX_DRAWS = 100
"""Draws per wanted pair after which a split counts as out of reach."""


@dataclass(frozen=True)
class Sides:
    """The two prompts of a pair, and what the names in angle brackets of `Answers` stand for."""

    prompts: tuple[str, str]
    fills: Mapping[str, str] = field(default_factory=dict)


Template = Callable[[Words], Sides]
"""A form of sentence: draws the two sides of a pair."""


@dataclass(frozen=True)
class Answers:
    """What should follow side A and side B, and what is put behind both prompts before."""

    a: str
    b: str
    tail: str = ""

    def pair(self, sides: Sides) -> Pair:
        """Make the pair."""
        first, second = sides.prompts
        tail = _fill(self.tail, sides.fills)
        answers = _fill(self.a, sides.fills), _fill(self.b, sides.fills)
        return Pair((first + tail, second + tail), answers)

    def __str__(self) -> str:
        """Both, as Python writes them."""
        behind = f" behind {self.tail!r}" if self.tail else ""
        return f"{self.a!r} / {self.b!r}{behind}"


def _fill(text: str, fills: Mapping[str, str]) -> str:
    for name, value in fills.items():
        text = text.replace(f"<{name}>", value)
    return text


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """A task as data."""

    name: str
    decides: str
    """What the task asks, in one line."""
    differ: str
    """Where the two prompts of a pair differ."""
    answers: tuple[Answers, ...]
    """In order of preference; the first that the tokenizer serves is taken."""
    templates: tuple[Template, ...]
    held_out: tuple[Template, ...]
    aligned: bool = True
    """Whether pairs of equal length are asked for where the tokenizer allows them."""
    copies: Mapping[Pool, Sequence[str]] | None = None
    """Words that an answer may have to repeat, and that then have to be single tokens."""
    together: tuple[str, ...] = ()
    """Texts in which the prompts differ and that must be single tokens."""
    adversarial: Mapping[str, tuple[Template, ...]] = field(default_factory=dict)
    """Forms of sentence that are known to mislead a model, by what misleads it; in no split."""


def make(
    spec: PairSpec,
    tokenizer: Any,
    *,
    n_train: int = 1024,
    n_validation: int = 128,
    n_test: int = 256,
    n_held_out: int = 256,
    max_tokens: int | None = None,
    seed: int = 0,
) -> PairTask:
    """Make a task for a tokenizer, with so many pairs in each split.

    `max_tokens` is the most that a prompt may have (None: no limit); the same seed and tokenizer
    give the same pairs.

    Raises:
        ValueError: If the tokenizer has no single token for the answers or for what decides, the
            error naming what was tried, or if so many pairs can't be drawn.
    """
    counts: dict[Split, int] = {
        "train": n_train, "validation": n_validation, "test": n_test, "held_out": n_held_out,
    }  # fmt: skip
    if any(counts[split] < 1 for split in NEEDED) or n_held_out < 0:
        raise ValueError(
            f"Each split needs a pair or more, and only held_out may have none; got {counts}."
        )
    press = _Press(spec, tokenizer, max_tokens)
    rng = random.Random(f"{spec.name} {seed}")
    seen: set[str] = set()
    pairs: dict[Split, list[Pair]] = {
        "train": press.draw(rng, "train", counts["train"], seen),
        "validation": press.draw(rng, "train", counts["validation"], seen),
        "test": press.draw(rng, "test", counts["test"], seen),
    }
    rng = random.Random(f"{spec.name} held out {seed}")
    pairs["held_out"] = press.draw(rng, "train", n_held_out, seen, templates=spec.held_out)
    return PairTask(spec.name, pairs, tokenizer=tokenizer, encoded=press.encoded)


class _Press:
    """Draws pairs of one task for one tokenizer."""

    def __init__(self, spec: PairSpec, tokenizer: Any, max_tokens: int | None) -> None:
        self.spec, self.tokenizer, self.max_tokens = spec, tokenizer, max_tokens
        self.encoded: dict[Pair, EncodedPair] = {}
        self.left_out = ""
        self.single = _single_tokens(spec, tokenizer)
        for text in spec.together:
            if len(encode([text], tokenizer)[0]) != 1:
                raise ValueError(
                    f"The task {spec.name} needs {text} to be one token, and this tokenizer splits "
                    "it. Train a tokenizer on Python text (tl_sparse.data.train_tokenizer)."
                )
        self.answers, probes = self._choose()
        n_equal = sum(len(p.prompts[0]) == len(p.prompts[1]) for p in probes)
        self.equal = spec.aligned and n_equal >= MIN_EQUAL * len(probes)

    def _choose(self) -> tuple[Answers, list[EncodedPair]]:
        """Take the first answers that this tokenizer serves."""
        why = ""
        for answers in self.spec.answers:
            rng = random.Random(f"{self.spec.name} probes")
            if (words := self._words(rng, "train", answers)) is None:
                why = f"finds fewer than {MIN_SINGLE} of the words to repeat as single tokens."
                continue
            pairs = [answers.pair(rng.choice(self.spec.templates)(words)) for _ in range(N_PROBES)]
            encoded = encode_pairs(pairs, self.tokenizer)
            served = [found for found in encoded if isinstance(found, EncodedPair)]
            if len(served) >= MIN_SERVED * N_PROBES:
                return answers, served
            why = next(found for found in encoded if isinstance(found, str))
        tried = "; ".join(map(str, self.spec.answers))
        raise ValueError(
            f"The task {self.spec.name} can't be made for this tokenizer. Tried, in this order, "
            f"the answers {tried}. The last failed: the task {why}"
        )

    def _words(self, rng: random.Random, pool: Pool, answers: Answers) -> Words | None:
        """Give words, or None if the tokenizer has too few single tokens to ask for."""
        lead = "" if answers.tail.endswith(" ") else " "
        asked_for = "<" in answers.a + answers.b
        copied = {
            side: [word for word in words if lead + word in self.single or not asked_for]
            for side, words in (self.spec.copies or {}).items()
        }
        if any(len(words) < MIN_SINGLE for words in copied.values()):
            return None
        suffixes = [suffix for suffix in SUFFIXES[pool] if suffix in self.single]
        return Words(rng, pool, copied=copied.get(pool, ()), suffixes=suffixes)

    def draw(
        self,
        rng: random.Random,
        pool: Pool,
        n: int,
        seen: set[str],
        *,
        templates: Sequence[Template] | None = None,
    ) -> list[Pair]:
        """Draw pairs with prompts that are not in `seen`, and put those in."""
        templates = self.spec.templates if templates is None else templates
        words = self._words(rng, pool, self.answers)
        assert words is not None, "answers that were chosen have their names"
        pairs: list[Pair] = []
        n_left = MAX_DRAWS * n
        while len(pairs) < n:
            n_left -= (n_now := n - len(pairs))
            if n_left < 0:
                raise ValueError(
                    f"The task {self.spec.name} found only {len(pairs)} of {n} different pairs "
                    f"that this tokenizer cuts cleanly{self._limit()}. Ask for fewer."
                    f"{self.left_out and f' The last left out: the task {self.left_out}'}"
                )
            some = [self.answers.pair(_one(templates, rng)(words)) for _ in range(n_now)]
            for pair in self._usable(some):
                if seen.isdisjoint(pair.prompts):
                    seen.update(pair.prompts)
                    pairs.append(pair)
        return pairs

    def _limit(self) -> str:
        return f" into at most {self.max_tokens} tokens" if self.max_tokens is not None else ""

    def _usable(self, pairs: Sequence[Pair]) -> Iterator[Pair]:
        for pair, found in zip(pairs, encode_pairs(pairs, self.tokenizer), strict=True):
            if isinstance(found, str):
                self.left_out = found
                continue
            lengths = [len(prompt) for prompt in found.prompts]
            if self.max_tokens is not None and max(lengths) > self.max_tokens:
                self.left_out = f"has a prompt of {max(lengths)} tokens."
            elif self.equal and lengths[0] != lengths[1]:
                self.left_out = "has a pair of {} and {} tokens.".format(*lengths)
            else:
                self.encoded[pair] = found
                yield pair


def _one(templates: Sequence[Template], rng: random.Random) -> Template:
    return templates[0] if len(templates) == 1 else rng.choice(templates)


def _single_tokens(spec: PairSpec, tokenizer: Any) -> frozenset[str]:
    """Give which words to copy, with and without a space before, and endings are one token."""
    words = [word for words in (spec.copies or {}).values() for word in words]
    endings = [suffix for some in SUFFIXES.values() for suffix in some]
    texts = [*words, *(f" {word}" for word in words), *endings]
    tokens = encode(texts, tokenizer)
    return frozenset(text for text, found in zip(texts, tokens, strict=True) if len(found) == 1)
