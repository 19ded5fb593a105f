"""Controls: tasks that a model can't know, to see what pruning makes of them.

nonsense_quotes has the prompts of single_double_quote and answers without any sense:

    logger.info('waiting for        logger.info("waiting for
    ->  when                        ->  is

`shuffled` takes any task and exchanges the two answers in a half of its pairs. What circuit is
found for such a task was made by the search and was not in the model (Drori 2026; METHOD.md
section 7).
"""

import random
from typing import Any

from tl_sparse.tasks import quotes
from tl_sparse.tasks.base import SPLITS, Pair, PairTask, Split
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
