"""The command line, `tl-sparse demo | train | tasks | prune | audit | compare | sweep | ...`.

Each command is thin over the functions of the same name, in a module of its own. What they need is
imported when they run, so that `--help` and completion are quick. `failing` puts errors into words,
`settings` reads settings files, `opening` opens what commands work on, `speaking` prints.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

# Before torch is imported: small models wake their threads often. A little spinning saves time on
# idle cores, and long spinning, the default, costs a multiple of it when the cores are shared.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Progress bars: twice a second on a terminal, twice a minute in a file, and no short ones there.
os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "30")
os.environ.setdefault("TQDM_MAXINTERVAL", "10" if sys.stderr.isatty() else "30")
os.environ.setdefault("TQDM_DELAY", "0" if sys.stderr.isatty() else "10")

import typer

from tl_sparse.cli.bench import bench
from tl_sparse.cli.circuits import audit, prune
from tl_sparse.cli.compare import compare
from tl_sparse.cli.demo import demo
from tl_sparse.cli.failing import Commands
from tl_sparse.cli.info import info
from tl_sparse.cli.sweep import sweep
from tl_sparse.cli.tasks import tasks
from tl_sparse.cli.train import train
from tl_sparse.cli.view import view
from tl_sparse.rules import checks_itself

app = typer.Typer(
    cls=Commands,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(value: bool) -> bool:
    if value:
        try:
            typer.echo(f"tl-sparse {version('tl-sparse')}")
        except PackageNotFoundError:  # run from a folder, not installed
            typer.echo("tl-sparse, not installed")
        raise typer.Exit
    return value


@app.callback(invoke_without_command=True)
@checks_itself
def _main(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Weight-sparse transformers and their circuits, for TransformerLens.

    In order: `demo` shows all of it; `train` a model, see with `tasks` what it can do, `prune` it
    to the circuit of a task, try with `audit` to prove the circuit wrong, and look at it with
    `view`.

    For example: `tl-sparse train --text my.txt --out my-model --preset tiny`
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


COMMANDS = (demo, train, tasks, prune, audit, view, compare, sweep, info, bench)
"""In the order of the help."""

for _command in COMMANDS:
    app.command()(_command)

__all__ = ["COMMANDS", "app"]
