"""The command line, `tl-sparse COMMAND`.

Each command is thin over the functions of the same name, in a module of its own. What they need is
imported when they run, so that `--help` is quick.
"""

import os

# Before torch is imported: small models wake their threads often. A little spinning saves time on
# idle cores, and long spinning, the default, costs a multiple of it when the cores are shared.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from tl_sparse.cli.bench import bench
from tl_sparse.cli.circuits import audit, prune
from tl_sparse.cli.compare import compare
from tl_sparse.cli.demo import demo
from tl_sparse.cli.info import info
from tl_sparse.cli.sweep import sweep
from tl_sparse.cli.tasks import tasks
from tl_sparse.cli.view import view

app = typer.Typer(
    help="Weight-sparse transformers and their circuits, for TransformerLens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _main() -> None:
    """Weight-sparse transformers and their circuits, for TransformerLens."""


for _command in (demo, tasks, prune, audit, view, compare, sweep, info, bench):
    app.command()(_command)

__all__ = ["app"]
