"""`tl-sparse demo`."""

from pathlib import Path
from typing import Annotated

import typer

from tl_sparse.cli.failing import if_stopped
from tl_sparse.cli.opening import AsJson, Quiet, check_folder
from tl_sparse.cli.settings import ConfigFile
from tl_sparse.cli.speaking import note, say, say_json, then


@if_stopped("Stopped. What was done is kept in {folder}; the same command goes on.")
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the stages are kept; run again to go on from there.")
    ] = Path("demo"),
    full: Annotated[
        bool, typer.Option("--full", help="Add the dense model of equal loss (a narrower one).")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only see that all works: tiny models, in FOLDER/quick."),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of models, data order, pruning, audit.")
    ] = 0,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train two small transformers on Python and read how each closes a string.

    One has 2 % of its weights, the other all of them. The circuit of each is pruned, and then a
    quick audit tries to prove it wrong. Takes 10 to 15 minutes on two cores and leaves a page to
    look at, demo/index.html. Ctrl-C loses nothing: the same command goes on.

    For example: `tl-sparse demo --folder demo`
    """
    check_folder(folder)
    from tl_sparse.checkpoints import read_json
    from tl_sparse.demo import DemoSettings, run_demo

    settings = DemoSettings(seed=seed, full=full)
    if quick:
        folder, settings = folder / "quick", DemoSettings.quick(seed=seed)
    run_demo(folder, settings, progress=not quiet, say=note if as_json else say)
    if as_json:
        say_json(read_json(folder / "summary.json"))
    then(
        f"look at {folder / 'index.html'}; tl-sparse tasks --model {folder / 'sparse'} says what "
        "else the model can do.",
        unless=as_json,
    )
