"""All tasks with examples: what `docs/tasks.md` and `tl-sparse tasks` show.

The examples need a tokenizer. `sample_tokenizer` trains a small one on generated Python, the same
every time, so that the list is a function of the code (a test compares it with the page).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tl_sparse.data import generate_programs, train_tokenizer
from tl_sparse.tasks.base import SPLITS, Pair, PairTask
from tl_sparse.tasks.templates import PairSpec, make

SIZES = {"n_train": 64, "n_validation": 8, "n_test": 16, "n_held_out": 16}
"""Pairs that are drawn to show some of them."""


def sample_tokenizer() -> Any:
    """Train the tokenizer of the examples: 2,048 tokens of generated Python."""
    return train_tokenizer(generate_programs(1500, seed=3), vocab_size=2048)


def page(specs: Sequence[PairSpec], *, tokenizer: Any) -> str:
    """Write the sections of the tasks, in Markdown."""
    parts = [[f"### {spec.name}", "", *_section(spec, tokenizer), ""] for spec in specs]
    return "\n".join(line for part in parts for line in part)


def _section(spec: PairSpec, tokenizer: Any) -> Iterator[str]:
    yield f"{spec.decides[0].upper()}{spec.decides[1:]}."
    yield ""
    try:
        task = make(spec, tokenizer, **SIZES)
    except ValueError:
        yield f"- answers: {_code(str(spec.answers[0]))}"
        yield f"- the prompts differ in: {spec.differ}"
        yield "- not served by the tokenizer of these examples"
        return
    yield f"- answers: {_code(answers_of(spec, task))}"
    yield f"- the prompts differ in: {spec.differ}"
    yield f"- equal lengths: {'yes' if task.equal_lengths else 'no'}"
    yield ""
    yield from ["```text", *drawn(task.examples(4)[2]), "```", ""]
    yield "Held out:"
    yield ""
    yield from ["```text", *drawn(task.examples(4, split="held_out")[1]), "```"]


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def answers_of(spec: PairSpec, task: PairTask | None = None) -> str:
    """Give the answers of a task in short: those of a served one, or the first of its list."""
    if task is not None and len(task.answer_ids) <= 2:
        return " / ".join(map(repr, task.examples(1)[0].answers))
    if task is not None and not spec.copies:
        return " or ".join(
            sorted({" / ".join(map(repr, pair.answers)) for pair in task.pairs["train"]})
        )
    return str(spec.answers[0])


def drawn(pair: Pair) -> Iterator[str]:
    """Give the lines of a pair as a reader sees them: side A and its answer, then side B's."""
    for side, prompt, answer in zip("AB", pair.prompts, pair.answers, strict=True):
        for i, line in enumerate(prompt.split("\n")):
            yield f"{side if i == 0 else ' '}  {line}".rstrip()
        yield f"   -> {answer!r}"


def shown(spec: PairSpec, *, tokenizer: Any, n: int = 2) -> Iterator[str]:
    """Give the lines that `tl-sparse tasks NAME` prints: the task, and `n` pairs of each split.

    Raises:
        ValueError: If the tokenizer can't serve the task.
    """
    task = make(spec, tokenizer, **SIZES)
    yield f"{spec.name}: {spec.decides}"
    yield f"answers: {answers_of(spec, task)}"
    yield f"the prompts differ in: {spec.differ}"
    yield f"equal lengths: {'yes' if task.equal_lengths else 'no'}"
    for split in SPLITS:
        yield f"\n{split}"
        for pair in task.examples(n, split=split):
            yield from drawn(pair)
