"""`tl-sparse tasks`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_sparse.cli.completing import TASKS, one_of
from tl_sparse.cli.opening import AsJson, check_task, is_file_of_pairs, open_for_tasks, open_task
from tl_sparse.cli.speaking import console, errors, say, say_json, then

if TYPE_CHECKING:
    from tl_sparse.gate import TaskScore
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.tasks import PairTask

TRAIN_MORE = "train longer or wider, tl-sparse train --tokens N --width N, or ask something easier"


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A task to see pairs of, or a .jsonl file of your own.",
            autocompletion=one_of(TASKS),
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A model's folder: which tasks it can do, and pairs for its tokenizer."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All tasks with examples, as in docs/tasks.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the tasks that circuits can be found for, or show pairs of one.

    With --model and no name, the model is scored on all of them: which can it do well enough to
    prune for (its test accuracy reaches the gate)? With both, on that one.
    Pairs depend on the tokenizer. Without --model it is a small one, trained on the spot. In the
    list, words in angle brackets stand for words of the prompt.

    For example:

    - `tl-sparse tasks for_while`
    - `tl-sparse tasks --model demo/sparse`
    - `tl-sparse tasks my_pairs.jsonl --model demo/sparse`
    """
    if name is not None:
        _show_one(name, model, as_json=as_json)
    elif markdown:
        _show_page(model)
    elif model is not None:
        _show_scores(model, as_json=as_json)
    else:
        _show_list(as_json=as_json)


def _show_list(*, as_json: bool) -> None:
    from tl_sparse import tasks as all_tasks
    from tl_sparse.tasks import catalog

    specs = [all_tasks.spec(each) for each in all_tasks.names()]
    rows = [{"name": s.name, "decides": s.decides, "answers": catalog.answers_of(s)} for s in specs]
    if as_json:
        say_json(rows)
        return
    for row in rows:
        say(f"{row['name']:28}{row['decides']}: {row['answers']}")
    then("tl-sparse tasks NAME shows pairs; --model FOLDER says which of them a model can do.")


def _show_page(model: Path | None) -> None:
    from tl_sparse import tasks as all_tasks
    from tl_sparse.tasks import catalog

    tokenizer = open_for_tasks(model).tokenizer if model else catalog.sample_tokenizer()
    say(catalog.page([all_tasks.spec(each) for each in all_tasks.names()], tokenizer=tokenizer))


def _show_one(name: str, folder: Path | None, *, as_json: bool) -> None:
    """Show pairs of a task, and how a model does it."""
    from tl_sparse import tasks as all_tasks
    from tl_sparse.gate import task_score
    from tl_sparse.tasks import catalog

    check_task(name)
    spec = None if is_file_of_pairs(name) else all_tasks.spec(name)
    model = open_for_tasks(folder) if folder else None
    tokenizer = model.tokenizer if model else catalog.sample_tokenizer()
    score, n_prompts = None, 0
    if spec is None or as_json or model is not None:
        task = open_task(name, tokenizer, max_tokens=model.cfg.n_ctx if model else None)
        n_prompts = 2 * task.n_examples("test")
        score = task_score(model, task) if model else None
        if as_json:
            say_json(_in_numbers(task, score))
            return
        if spec is None:
            _show_pairs(task)
    if spec is not None:
        for line in catalog.shown(spec, tokenizer=tokenizer):
            say(line)
    if score is not None:
        say(f"\nthe model: {_in_words(score)} ({n_prompts} test prompts)")
    if score is not None and not score.passes:
        then(TRAIN_MORE)
    else:
        then(f"tl-sparse prune {folder or 'MODEL'} {name}")


def _show_pairs(task: "PairTask") -> None:
    from tl_sparse.tasks import SPLITS
    from tl_sparse.tasks.catalog import drawn

    say(repr(task))
    for split in SPLITS:
        for pair in task.examples(2, split=split):
            for line in (f"\n{split}", *drawn(pair)):
                say(line)


def _in_numbers(task: "PairTask", score: "TaskScore | None") -> dict[str, Any]:
    """Give a task, some pairs of each split, and how a model does it."""
    from tl_sparse.tasks import SPLITS

    return {
        "name": task.name,
        "n_pairs": {split: task.n_examples(split) for split in SPLITS},
        "examples": {s: [asdict(pair) for pair in task.examples(4, split=s)] for s in SPLITS},
        "score": asdict(score) if score is not None else None,
    }


def _in_words(score: "TaskScore") -> str:
    verdict = "passes" if score.passes else "fails"
    return f"test loss {score.loss:.3f}, {score.accuracy:.1%} right; {verdict} the gate"


def _show_scores(folder: Path, *, as_json: bool) -> None:
    """Print how well a model does every task."""
    scores = _scores(open_for_tasks(folder))
    if as_json:
        say_json([asdict(score) for score in scores])
        return
    from rich.table import Table

    table = Table("task", "test loss", "accuracy", "gate", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for score in scores:
        if score.loss is None or score.accuracy is None:
            continue
        verdict = "passes" if score.passes else "fails"
        table.add_row(score.name, f"{score.loss:.3f}", f"{score.accuracy:.1%}", verdict)
    console.print(table)
    for score in scores:
        if score.why_not:
            say(f"{score.name}: not for this tokenizer; {score.why_not}")
    n_served = sum(not score.why_not for score in scores)
    passing = [score for score in scores if score.passes and score.loss is not None]
    say(f"{len(passing)} of {n_served} pass the gate")
    if passing:
        best = min(passing, key=lambda score: score.loss or 0.0)
        then(f"tl-sparse prune {folder} {best.name}")
    else:
        then(TRAIN_MORE)


def _scores(model: "HookedSparseTransformer") -> "list[TaskScore]":
    from rich.progress import track

    from tl_sparse.gate import task_scores
    from tl_sparse.tasks import names

    every: Any = task_scores(model)
    shown = {"console": errors, "transient": True, "disable": not errors.is_terminal}
    return list(track(every, "tasks", total=len(names()), **shown))
