"""`tl-sparse tasks`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_sparse.cli.speaking import console, errors, say


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task to see pairs of.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A model folder: which tasks it can do, and pairs for its tokenizer."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All tasks with examples, as in docs/tasks.md.")
    ] = False,
) -> None:
    """List the tasks that circuits can be found for, or show pairs of one.

    With --model and no name, the model is scored on all of them: which can it do well enough to
    prune for (its test accuracy reaches the gate)?
    Pairs depend on the tokenizer. Without --model it is a small one, trained on the spot. In the
    list, words in angle brackets stand for words of the prompt.
    """
    from tl_sparse import tasks as all_tasks
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.tasks import catalog

    try:
        specs = [all_tasks.spec(each) for each in all_tasks.names()]
        if name is None and not markdown and model is not None:
            _show_scores(HookedSparseTransformer.load(model))
            return
        if name is None and not markdown:
            for spec in specs:
                say(f"{spec.name:28}{spec.decides}: {catalog.answers_of(spec)}")
            return
        chosen = all_tasks.spec(name) if name is not None else None
        tokenizer = (
            HookedSparseTransformer.load(model).tokenizer if model else catalog.sample_tokenizer()
        )
        if chosen is None:
            say(catalog.page(specs, tokenizer=tokenizer))
        else:
            for line in catalog.shown(chosen, tokenizer=tokenizer):
                say(line)
    except ValueError as error:
        errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None


def _show_scores(model: Any) -> None:
    """Print how well a model does every task."""
    from rich.progress import track
    from rich.table import Table

    from tl_sparse.gate import task_scores
    from tl_sparse.tasks import names

    scores = list(
        track(task_scores(model), "tasks", total=len(names()), console=errors, transient=True)
    )
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
    say(f"{sum(score.passes for score in scores)} of {n_served} pass the gate")
