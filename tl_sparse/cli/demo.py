"""`tl-sparse demo`."""

from pathlib import Path
from typing import Annotated

import typer

from tl_sparse.cli.speaking import errors, say


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
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Train two small transformers on Python and read how each closes a string.

    One has 2 % of its weights, the other all of them. The circuit of each is pruned, and then a
    quick audit tries to prove it wrong. Takes 10 to 15 minutes on two cores and leaves a page to
    look at, demo/index.html. Ctrl-C loses nothing: the same command goes on.
    """
    from tl_sparse.demo import DemoSettings, run_demo

    settings = DemoSettings(seed=seed, full=full)
    if quick:
        folder, settings = folder / "quick", DemoSettings.quick(seed=seed)
    try:
        run_demo(folder, settings, progress=not quiet, say=say)
    except KeyboardInterrupt:
        errors.print(f"Stopped. What was done is kept in {folder}; the same command goes on.")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
