"""Controls: tasks that a model can't know, to see what pruning makes of them.

nonsense_quotes has the prompts of single_double_quote and answers without any sense:

    logger.info('waiting for        logger.info("waiting for
    ->  when                        ->  is

`shuffled` takes any task and exchanges the two answers in a half of its pairs; `nonsense` puts two
other tokens in the answers' place. `resampled` and `from_held_out` ask the same on other prompts,
to see whether the same circuit is found. What circuit is found for a task that a model can't know
was made by the search and was not in the model (Drori 2026; METHOD.md section 7).
"""

import random
from typing import Any

from tl_sparse.tasks import quotes
from tl_sparse.tasks.base import SPLITS, EncodedPair, Pair, PairTask, Split
from tl_sparse.tasks.templates import Answers, PairSpec

NONSENSE_QUOTES = PairSpec(
    name="nonsense_quotes",
    decides="a control: `when` inside single quotes, `is` inside double quotes",
    differ=quotes.SINGLE_DOUBLE_QUOTE.differ,
    answers=(Answers(" when", " is"), Answers(" will", " is"), Answers(" in", " is")),
    templates=quotes.TEMPLATES,
    held_out=quotes.HELD_OUT,
    together=quotes.SINGLE_DOUBLE_QUOTE.together,
)


def shuffled(task: PairTask, *, seed: int = 0) -> PairTask:
    """Exchange the two answers in one half of the pairs of each split, drawn from the seed.

    No rule is left that a model could follow: who answers the task as before is right in half of
    the pairs (one more where a split has an odd number of them).

    Examples:
        >>> shuffled(task).name  # doctest: +SKIP
        'var_swap_shuffled'
    """
    pairs: dict[Split, list[Pair]] = {}
    for split in SPLITS:
        some: Any = list(task.pairs[split])
        rng = random.Random(f"{task.name} shuffled {split} {seed}")
        for i in rng.sample(range(len(some)), len(some) // 2):
            some[i] = Pair(some[i].prompts, some[i].answers[::-1])
        pairs[split] = some
    return PairTask(f"{task.name}_shuffled", pairs, tokenizer=task.tokenizer)


def nonsense(task: PairTask, *, seed: int = 0) -> PairTask:
    """Give the same prompts with two other answers, drawn from the tokens of the training prompts.

    Where the task has two answers in all, each is replaced throughout; else those of side A and
    side B are.

    Raises:
        ValueError: If the prompts have no two tokens that are no answers.

    Examples:
        >>> nonsense(task).name  # doctest: +SKIP
        'var_swap_nonsense'
    """
    batch = task.batch("train")
    there = {
        token
        for row, last in zip(batch.tokens.tolist(), batch.last.tolist(), strict=True)
        for token in row[: last + 1]
    }
    others = sorted(there - set(task.answer_ids.values()))
    if len(others) < 2:
        raise ValueError(f"The prompts of {task.name} have no two tokens to answer nonsense with.")
    new = random.Random(f"{task.name} nonsense {seed}").sample(others, 2)
    by_answer = dict(zip(task.answer_ids.values(), new, strict=False))
    encoded: dict[Pair, EncodedPair] = {}
    pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for pair, old in zip(task.pairs[split], task.encoded(split), strict=True):
            tokens = (new[0], new[1])
            if len(task.answer_ids) == 2:
                tokens = (by_answer[old.answers[0]], by_answer[old.answers[1]])
            changed = Pair(pair.prompts, (f"<{tokens[0]}>", f"<{tokens[1]}>"))
            encoded[changed] = EncodedPair(old.prompts, tokens)
            pairs[split].append(changed)
    name = f"{task.name}_nonsense"
    return PairTask(name, pairs, tokenizer=task.tokenizer, encoded=encoded)


def resampled(task: PairTask, *, seed: int = 0) -> PairTask:
    """Draw the training and the validation pairs anew from their own, with repeats (a bootstrap).

    Examples:
        >>> resampled(task).name  # doctest: +SKIP
        'var_swap_resampled'
    """
    pairs = dict(task.pairs)
    for split in ("train", "validation"):
        rng = random.Random(f"{task.name} resampled {split} {seed}")
        pairs[split] = tuple(rng.choices(task.pairs[split], k=len(task.pairs[split])))
    return PairTask(
        f"{task.name}_resampled", pairs, tokenizer=task.tokenizer, encoded=_as_tokens(task)
    )


def from_held_out(task: PairTask) -> PairTask:
    """Train and validate on the held-out forms of a task; the test pairs stay.

    Raises:
        ValueError: If the task has fewer than two held-out pairs.

    Examples:
        >>> from_held_out(task).name  # doctest: +SKIP
        'var_swap_other_forms'
    """
    others = task.pairs["held_out"]
    if len(others) < 2:
        raise ValueError(f"The task {task.name} has {len(others)} held-out pairs; two are needed.")
    pairs: dict[Split, tuple[Pair, ...]] = {
        "train": tuple(pair for i, pair in enumerate(others) if i % 4),
        "validation": others[::4],
        "test": task.pairs["test"],
    }
    return PairTask(
        f"{task.name}_other_forms", pairs, tokenizer=task.tokenizer, encoded=_as_tokens(task)
    )


def _as_tokens(task: PairTask) -> dict[Pair, EncodedPair]:
    return {
        pair: found
        for split in SPLITS
        for pair, found in zip(task.pairs[split], task.encoded(split), strict=True)
    }
