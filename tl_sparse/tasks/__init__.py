"""Tasks by the paper's names: `tasks.names()`, `tasks.get(name, tokenizer=...)`."""

from collections.abc import Callable
from typing import Any

from tl_sparse.tasks import quotes
from tl_sparse.tasks.base import SPLITS, Pair, PairTask, Split, Task, TaskBatch

_TASKS: dict[str, Callable[..., PairTask]] = {quotes.NAME: quotes.make}


def names() -> tuple[str, ...]:
    """List the tasks that there are.

    Examples:
        >>> names()
        ('single_double_quote',)
    """
    return tuple(_TASKS)


def get(name: str, *, tokenizer: Any, **options: Any) -> PairTask:
    """Make a task by name for a tokenizer; options are those of the task's own `make`.

    Raises:
        ValueError: If there is no task of that name, or the tokenizer can't serve it.
    """
    if name not in _TASKS:
        raise ValueError(f"There is no task {name!r}; there are: {', '.join(_TASKS)}.")
    return _TASKS[name](tokenizer, **options)


__all__ = ["SPLITS", "Pair", "PairTask", "Split", "Task", "TaskBatch", "get", "names"]
