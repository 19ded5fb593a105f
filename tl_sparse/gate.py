"""Which tasks can a model do? A circuit of a task that its model can't do means little.

`task_scores` makes each task for the model's tokenizer, runs its test pairs and compares the
accuracy with the gate that `prune` has. A tokenizer that can't serve a task is told of with the
reason in short.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformer_lens import HookedTransformer

from tl_sparse import tasks
from tl_sparse.config import PruningConfig
from tl_sparse.pruning import evaluate
from tl_sparse.pruning.others import check_lengths


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """How well a model does one task, on the test pairs."""

    name: str
    loss: float | None = None
    """In nats; ln 2 = 0.69 is chance. None if the tokenizer can't serve the task."""
    accuracy: float | None = None
    """Fraction of the prompts whose right answer beats the other one; 1/2 is chance."""
    passes: bool = False
    """Whether the accuracy reaches the gate."""
    why_not: str = ""
    """Why the tokenizer can't serve the task."""


def task_scores(
    model: HookedTransformer,
    names: Sequence[str] | None = None,
    *,
    min_accuracy: float = PruningConfig.min_accuracy,
    n_examples: int | None = None,
) -> Iterator[TaskScore]:
    """Score a model on tasks by name, one by one; by default on all that there are.

    `n_examples` takes so many test pairs of each, spread evenly, instead of all.

    Raises:
        ValueError: If the model has no tokenizer, or there is no task of a name.
    """
    if model.tokenizer is None:
        raise ValueError("The model has no tokenizer, and tasks are made for one.")
    for spec in [tasks.spec(name) for name in names or tasks.names()]:
        try:
            task = tasks.get(spec.name, tokenizer=model.tokenizer, max_tokens=model.cfg.n_ctx)
        except ValueError as error:
            yield TaskScore(name=spec.name, why_not=_in_short(str(error)))
            continue
        yield task_score(model, task, min_accuracy=min_accuracy, n_examples=n_examples)


def task_score(
    model: HookedTransformer,
    task: tasks.PairTask,
    *,
    min_accuracy: float = PruningConfig.min_accuracy,
    n_examples: int | None = None,
) -> TaskScore:
    """Score a model on one task, which may be your own, on all of its test pairs or some.

    Raises:
        ValueError: If a prompt is longer than the model can read.
    """
    check_lengths(model, task)
    loss, accuracy = evaluate(model, task, "test", n_examples=n_examples)
    passes = accuracy >= min_accuracy
    return TaskScore(name=task.name, loss=loss, accuracy=accuracy, passes=passes)


def _in_short(message: str) -> str:
    """Give the sentence of an error that says what the tokenizer lacks."""
    _, _, reason = message.rpartition("The last failed: the task ")
    return reason.split(". ")[0].rstrip(".")
