"""Tasks by the paper's names: `tasks.names()`, `tasks.get(name, tokenizer=...)`.

```python
from tl_sparse import tasks

tasks.names()                                                # the paper's twenty, then our own
task = tasks.get("bracket_counting", tokenizer=tokenizer)    # for any tokenizer, or why not
task.examples(4)                                             # pairs, as text
task.batch("test")                                           # pairs, as tokens

tasks.from_jsonl("pairs.jsonl", tokenizer=tokenizer)         # pairs of your own
tasks.mine(corpus, (" is", " in"))                           # real contexts of two tokens
tasks.shuffled(task), tasks.nonsense(task)                   # controls that nobody can solve
tasks.longer(task, corpus, n_ctx=128)                        # the test prompts behind real lines
tasks.mined_like(task, corpus)                               # real contexts of a task's answers
tasks.adversarial("bracket_counting", tokenizer=tokenizer)   # prompts that mislead, by family
tasks.SequenceTask("mirror", examples)                       # an answer at every position
```
"""

from difflib import get_close_matches
from typing import Any

from tl_sparse.tasks import (
    brackets,
    branches,
    copying,
    files,
    functions,
    loops,
    quotes,
    sets,
    strings,
    swaps,
    variants,
)
from tl_sparse.tasks.base import SPLITS, Pair, PairTask, Split, Task, TaskBatch
from tl_sparse.tasks.controls import NONSENSE_QUOTES, from_held_out, nonsense, resampled, shuffled
from tl_sparse.tasks.mining import mine
from tl_sparse.tasks.sequences import SequenceExample, SequenceTask
from tl_sparse.tasks.templates import PairSpec, make
from tl_sparse.tasks.user import from_jsonl, from_pairs
from tl_sparse.tasks.variants import longer, mined_like

_PAPER = (
    quotes.SINGLE_DOUBLE_QUOTE, brackets.BRACKET_COUNTING, sets.SET_OR_STRING,
    sets.SET_OR_STRING_FIXEDVARNAME, functions.FINAL_KWARG, functions.CLASS_INIT, files.WITH_AS,
    files.WITH_OPEN, brackets.BRACKET_BRACE, loops.FOR_WHILE, branches.ELSE_ELIF,
    strings.FSTRING_BRACE, branches.IF_TERNARY, swaps.VAR_SWAP, loops.INDENT_FOR,
    functions.LAMBDA_FUNC, branches.IF_EQUALS, loops.ENUMERATE_RANGE, branches.VAR_IF,
    branches.WHILE_RETURN_TRUE,
)  # fmt: skip
_OTHERS = (copying.INDUCTION, copying.IOI, copying.IOI_TEXT, NONSENSE_QUOTES)
_SPECS = {spec.name: spec for spec in (*_PAPER, *_OTHERS)}

PAPER_TASKS: tuple[str, ...] = tuple(spec.name for spec in _PAPER)
"""The twenty tasks of Gao et al. 2025, Table 1, in its order."""


def names() -> tuple[str, ...]:
    """List the tasks that there are: the paper's, then others.

    Examples:
        >>> names()[:3]
        ('single_double_quote', 'bracket_counting', 'set_or_string')
    """
    return tuple(_SPECS)


def get(name: str, *, tokenizer: Any, **options: Any) -> PairTask:
    """Make a task by name for a tokenizer; options are those of `templates.make`.

    Raises:
        ValueError: If there is no task of that name, or the tokenizer can't serve it.
    """
    return make(spec(name), tokenizer, **options)


def adversarial(name: str, *, tokenizer: Any, **options: Any) -> dict[str, PairTask]:
    """Make a task's prompts that are known to mislead a model, by what misleads it.

    They stand in the split `held_out`. Options are those of `variants.misleading`; most tasks have
    no such prompts.

    Raises:
        ValueError: If there is no task of that name.
    """
    return variants.misleading(spec(name), tokenizer, **options)


def spec(name: str) -> PairSpec:
    """Give the description of a task: what it decides, its answers, its templates.

    Raises:
        ValueError: If there is no task of that name.

    Examples:
        >>> spec("for_while").decides
        'go on with `in` behind `for`, end the line behind `while`'
    """
    if name not in _SPECS:
        near = get_close_matches(name, _SPECS, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise ValueError(f"There is no task {name!r}. {meant}There are: {', '.join(_SPECS)}.")
    return _SPECS[name]


__all__ = [
    "PAPER_TASKS",
    "SPLITS",
    "Pair",
    "PairSpec",
    "PairTask",
    "SequenceExample",
    "SequenceTask",
    "Split",
    "Task",
    "TaskBatch",
    "adversarial",
    "from_held_out",
    "from_jsonl",
    "from_pairs",
    "get",
    "longer",
    "mine",
    "mined_like",
    "names",
    "nonsense",
    "resampled",
    "shuffled",
    "spec",
]
