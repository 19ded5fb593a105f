"""The command line: `tl-sparse demo | tasks | info`, thin over the functions of the package."""

import os

# Before torch is imported: small models wake their threads often. A little spinning saves time on
# idle cores, and long spinning, the default, costs a multiple of it when the cores are shared.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    help="Weight-sparse transformers and their circuits, for TransformerLens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_console = Console(highlight=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def _say(line: str) -> None:
    _console.print(line, markup=False)


@app.callback()
def _main() -> None:
    """Weight-sparse transformers and their circuits, for TransformerLens."""


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the stages are kept; run again to go on from there.")
    ] = Path("demo"),
    full: Annotated[
        bool, typer.Option("--full", help="Add the dense model of equal loss (a narrower one).")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of models, data order and pruning.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Train two small transformers on Python and read how each closes a string.

    One has 2 % of its weights, the other all of them. Takes some ten minutes on two cores
    and leaves a page to look at, demo/index.html. Ctrl-C loses nothing: the same command goes on.
    """
    from tl_sparse.demo import DemoSettings, run_demo

    try:
        run_demo(folder, DemoSettings(seed=seed, full=full), progress=not quiet, say=_say)
    except KeyboardInterrupt:
        _errors.print(f"Stopped. What was done is kept in {folder}; the same command goes on.")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        _errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="A task to see pairs of.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model folder, to see the pairs for its tokenizer.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All tasks with examples, as in docs/tasks.md.")
    ] = False,
) -> None:
    """List the tasks that circuits can be found for, or show pairs of one.

    Pairs depend on the tokenizer. Without --model it is a small one, trained on the spot. In the
    list, words in angle brackets stand for words of the prompt.
    """
    from tl_sparse import tasks as all_tasks
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.tasks import catalog

    try:
        specs = [all_tasks.spec(each) for each in all_tasks.names()]
        if name is None and not markdown:
            for spec in specs:
                _say(f"{spec.name:28}{spec.decides}: {catalog.answers_of(spec)}")
            return
        chosen = all_tasks.spec(name) if name is not None else None
        tokenizer = (
            HookedSparseTransformer.load(model).tokenizer if model else catalog.sample_tokenizer()
        )
        if chosen is None:
            _say(catalog.page(specs, tokenizer=tokenizer))
        else:
            for line in catalog.shown(chosen, tokenizer=tokenizer):
                _say(line)
    except ValueError as error:
        _errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None


@app.command()
def info(
    folder: Annotated[
        Path, typer.Argument(help="A model folder, e.g. demo/sparse/checkpoint/model.")
    ],
) -> None:
    """Show what a saved model is made of: shapes, densities, dead neurons, bytes, its data."""
    from tl_sparse.checkpoints import stored_bytes
    from tl_sparse.model import HookedSparseTransformer

    try:
        model = HookedSparseTransformer.load(folder)
        _say(repr(model.summary()))
        _say(f"trained on: {', '.join(model.trained_on) or 'nothing that it knows of'}")
        _say(str(stored_bytes(folder)))
    except ValueError as error:
        _errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
