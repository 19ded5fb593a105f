"""Other prompts for a task that there is: longer ones, real ones, and such as mislead.

`longer` puts real lines before both prompts of a pair:

    import os                       import os
    width = 40                      width = 40
    values = [5, 31, 7              values = [[5, 31, 7

`mined_like` takes whatever stands in a corpus before one of the task's two answers, and
`misleading` draws what a `PairSpec` names as adversarial. They ask how a circuit goes on where the
task's own templates end, and not all of them decide between the answers: compare with what the
whole model says.
"""

import random
from dataclasses import replace
from typing import Any

import numpy as np

from tl_sparse.data import Corpus
from tl_sparse.tasks.base import EncodedPair, Pair, PairTask, Split, encode
from tl_sparse.tasks.mining import BLOCK, line_ends, mine
from tl_sparse.tasks.templates import PairSpec, make

MIN_MORE = 16
"""Tokens that a longer prompt has more, at least."""

MIN_PAIRS = 8
"""With fewer pairs nothing can be said."""

MAX_DRAWS = 100
"""Places in the corpus that are tried for each pair."""


def longer(task: PairTask, corpus: Corpus, *, n_ctx: int, seed: int = 0) -> PairTask:
    """Put lines of a corpus before the test prompts, the same before both of a pair.

    They are whole lines of one document of the validation side, at least 16 tokens and at most half
    of the room that is left in `n_ctx` tokens; pairs without that much room are left out. The other
    splits stay as they are.

    Raises:
        ValueError: If the corpus has another tokenizer, or fewer than 8 pairs can be made longer.
    """
    found = list(zip(task.pairs["test"], task.encoded("test"), strict=True))
    if encode([found[0][0].prompts[0]], corpus.tokenizer)[0] != found[0][1].prompts[0]:
        raise ValueError(
            f"The corpus' tokenizer cuts {found[0][0].prompts[0]!r} otherwise than the task "
            f"{task.name} does. Give the corpus that the model was trained on."
        )
    lines = _Lines(corpus, random.Random(f"{task.name} longer {seed}"))
    pairs: dict[Split, list[Pair]] = {
        split: [*task.pairs[split]] for split in ("train", "validation", "held_out")
    }
    known = {pair: old for s in pairs for pair, old in zip(pairs[s], task.encoded(s), strict=True)}
    pairs["test"] = []
    for pair, old in found:
        room = n_ctx - max(map(len, old.prompts))
        if (before := lines.draw(room // 2)) is None:
            continue
        text: Any = corpus.tokenizer.decode(list(before))
        new = Pair((text + pair.prompts[0], text + pair.prompts[1]), pair.answers)
        tokens = (before + old.prompts[0], before + old.prompts[1])
        known[new] = EncodedPair(tokens, old.answers)
        pairs["test"].append(new)
    if len(pairs["test"]) < MIN_PAIRS:
        raise ValueError(
            f"Only {len(pairs['test'])} of the {len(found)} test pairs of {task.name} can have "
            f"{MIN_MORE} tokens or more put before them in {n_ctx}, and {MIN_PAIRS} are needed."
        )
    return PairTask(f"{task.name}, longer", pairs, tokenizer=task.tokenizer, encoded=known)


class _Lines:
    """Draws stretches of whole lines from the first tokens of a corpus' validation side."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self.rng = rng
        self.tokens = np.asarray(corpus.validation.tokens[:BLOCK])
        is_document_end = self.tokens == corpus.tokenizer.eos_token_id
        is_line_end = np.isin(self.tokens, line_ends(corpus.tokenizer)) & ~is_document_end
        self.line_ends = np.flatnonzero(is_line_end)
        self.document_ends = np.append(np.flatnonzero(is_document_end), len(self.tokens))
        self.starts = np.append(0, np.flatnonzero(is_line_end | is_document_end) + 1)

    def draw(self, max_tokens: int) -> tuple[int, ...] | None:
        """Give as many lines as fit, or None where there are too few tokens or too few fit."""
        for _ in range(MAX_DRAWS if max_tokens >= MIN_MORE else 0):
            start = int(self.rng.choice(self.starts))
            document_end = self.document_ends[np.searchsorted(self.document_ends, start)]
            stop = min(start + max_tokens, int(document_end))
            n_ends = int(np.searchsorted(self.line_ends, stop))
            end = int(self.line_ends[n_ends - 1]) + 1 if n_ends else 0
            if end - start >= MIN_MORE:
                return tuple(self.tokens[start:end].tolist())
        return None


def mined_like(task: PairTask, corpus: Corpus, *, n_ctx: int = 64, n_pairs: int = 128) -> PairTask:
    """Mine real contexts of a task's two answers, at most 64 tokens long; see `mine`.

    Where the corpus has fewer than `n_pairs` test pairs, a quarter of them is asked for. Train and
    validation have one pair each.

    Raises:
        ValueError: If the task has other than two answers, one of them is not the same single token
            for the corpus' tokenizer, or the corpus has too few contexts.
    """
    if len(task.answer_ids) != 2:
        raise ValueError(
            f"Contexts are mined for two answers, and {task.name} has {len(task.answer_ids)}."
        )
    a, b = task.answer_ids
    options: dict[str, Any] = {"max_tokens": min(64, n_ctx), "n_train": 1, "n_validation": 1}
    try:
        found = mine(corpus, (a, b), n_test=n_pairs, **options)
    except ValueError:  # too few; any other reason comes up again
        found = mine(corpus, (a, b), n_test=max(1, n_pairs // 4), **options)
    if found.answer_ids != task.answer_ids:
        raise ValueError(f"The corpus' tokenizer has other tokens for the answers of {task.name}.")
    return found


def misleading(
    spec: PairSpec,
    tokenizer: Any,
    *,
    max_tokens: int | None = None,
    n_pairs: int = 128,
    seed: int = 0,
) -> dict[str, PairTask]:
    """Make the adversarial prompts of a task, by what misleads; in the split `held_out`.

    The answers are the task's own, and so are the words, so that the form alone is new. What the
    tokenizer can't serve in `max_tokens` is left out.
    """
    made: dict[str, PairTask] = {}
    few = {"n_train": 1, "n_validation": 1, "n_test": 1, "n_held_out": n_pairs}
    for family, templates in spec.adversarial.items():
        other = replace(spec, name=f"{spec.name}, {family}", held_out=templates)
        try:
            made[family] = make(other, tokenizer, max_tokens=max_tokens, seed=seed, **few)
        except ValueError:
            continue
    return made
