"""`tl-sparse compare`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tl_sparse.cli.completing import SWEEP_PRESETS, TASKS, one_of, some_of
from tl_sparse.cli.failing import if_stopped
from tl_sparse.cli.opening import AsJson, Quiet, check_folder
from tl_sparse.cli.settings import ConfigFile, asked
from tl_sparse.cli.speaking import say, say_json
from tl_sparse.cli.sweep import chosen_preset, finish
from tl_sparse.rules import checks_itself


@if_stopped("Stopped. The same command goes on from {folder}.")
@checks_itself
def compare(
    ctx: typer.Context,
    preset: Annotated[
        str,
        typer.Option(
            help="How large: tiny, laptop, gpu or paper.", autocompletion=one_of(SWEEP_PRESETS)
        ),
    ] = "laptop",
    folder: Annotated[
        Path, typer.Option(help="Where cells, models and text are kept; run again to go on.")
    ] = Path("compare"),
    seeds: Annotated[
        str | None, typer.Option(help="Joined by commas, in place of the preset's.")
    ] = None,
    only_tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Joined by commas, in place of the preset's.",
            autocompletion=some_of(TASKS),
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Target losses in nats, joined by commas, in place of the preset's; 0.15, at "
            "which circuits are audited, is always one."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="The largest gap in validation loss that counts as equal.")
    ] = 0.03,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes on this machine; 0 does one cell after the other.")
    ] = 0,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, tcp://host:8786.")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="Begin no training and no pruning after so long; go on another time."),
    ] = None,
    sae: Annotated[
        bool, typer.Option(help="Also SAEs on the dense model, pruned like the two.")
    ] = True,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare a sparse model with a dense one of equal loss, over many tasks.

    Trains the sparse model, finds the width at which a dense one has its validation loss, prunes
    every task on both at every target, and audits the circuits. Then it trains SAEs on the dense
    one, and prunes and audits among their latents. Numbers, table and page are written to FOLDER as
    compare.json, .md and .html; whatever stops it, the same command goes on.

    For example:

    - `tl-sparse compare --preset tiny --folder look`
    - `tl-sparse compare --tasks single_double_quote,for_while --seeds 0 --targets 0.15 --workers 2`
    """
    from tl_sparse.sweeps import compare as run

    chosen = chosen_preset(preset, seeds=seeds, only_tasks=only_tasks, targets=targets, sae=sae)
    check_folder(folder)
    found = run(
        folder, chosen, tolerance=tolerance, workers=workers, scheduler=scheduler,
        hours=hours, progress=not quiet,
    )  # fmt: skip
    summary = replace(found.summary, about=found.summary.about | {"command": asked(ctx)})
    summary.save(folder)
    if as_json:
        say_json(summary.to_dict())
    else:
        say(summary.markdown())
    finish(found.outcome, f"look at {folder / 'compare.html'}", as_json=as_json)
