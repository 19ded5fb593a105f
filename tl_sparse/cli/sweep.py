"""`tl-sparse sweep`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_sparse.cli.completing import FIGURES, SWEEP_PRESETS, TASKS, one_of, some_of
from tl_sparse.cli.failing import if_stopped
from tl_sparse.cli.opening import AsJson, Quiet, check_folder
from tl_sparse.cli.settings import ConfigFile, asked
from tl_sparse.cli.speaking import names, note, say, say_json, then
from tl_sparse.rules import checks_itself

if TYPE_CHECKING:
    from tl_sparse.sweeps import Outcome, Preset


@if_stopped("Stopped. The same command goes on from {folder}.")
@checks_itself
def sweep(
    ctx: typer.Context,
    figures: Annotated[
        str,
        typer.Argument(
            help="What to make, joined by commas: figure2, figure3, activation, optimizer, "
            "methods, capability, concepts.",
            autocompletion=some_of(FIGURES),
        ),
    ],
    preset: Annotated[
        str,
        typer.Option(
            help="How large: tiny, laptop, gpu or paper; --estimate says what it is.",
            autocompletion=one_of(SWEEP_PRESETS),
        ),
    ] = "laptop",
    folder: Annotated[
        Path, typer.Option(help="Where cells, models and text are kept; run again to go on.")
    ] = Path("sweep"),
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
    workers: Annotated[
        int, typer.Option(min=0, help="Processes on this machine; 0 does one cell after the other.")
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Address of a Dask scheduler, tcp://host:8786; its workers see FOLDER too."
        ),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Begin no cell after so long; go on another time.")
    ] = None,
    sae: Annotated[
        bool, typer.Option(help="In figure2 and concepts, also SAEs on the dense models.")
    ] = True,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Make the text, say what there is to do, and stop.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train many models, prune many tasks, and draw the paper's figures with ours.

    A sweep is a list of cells: one training, or one task pruned on one model. Each finished cell is
    a small JSON file in FOLDER/cells, and whatever stops a sweep, the same command goes on from
    them. Numbers, table and page are written to FOLDER as figure3.json, .md and .html.

    For example:

    - `tl-sparse sweep figure3 --preset tiny --folder look`
    - `tl-sparse sweep figure2,figure3 --workers 2 --hours 2`
    """
    from tl_sparse.sweeps import FIGURES as known
    from tl_sparse.sweeps import Store, run_cells, summarise

    wanted = [_known(name, known, "figure") for name in names(figures)]
    if not wanted:
        raise ValueError(f"Name a figure: {', '.join(known)}.")
    chosen = chosen_preset(preset, seeds=seeds, only_tasks=only_tasks, sae=sae)
    store = Store(folder)
    check_folder(folder)
    text = chosen.text(store.text_folder, progress=not quiet)
    by_key = {c.key: c for name in wanted for c in known[name](chosen, text)}
    cells = list(by_key.values())
    if estimate:
        todo = store.pending(cells)
        again = sum(store.result(cell) is not None for cell in todo)
        if as_json:
            counts = {"cells": len(cells), "to_do": len(todo), "trained_again": again}
            say_json(counts | {"hours_of_preset": chosen.hours})
            return
        say(f"{len(cells)} cells, {len(todo)} of them to do.")
        if again:
            say(f"Finished, but trained again since their weights are not in {folder}: {again}.")
        say(f"The whole preset is estimated at {chosen.hours:g} hours on its machine.")
        return
    outcome = run_cells(
        cells, store, workers=workers, scheduler=scheduler, hours=hours, progress=not quiet
    )
    for name in wanted:
        summary = summarise(name, chosen, text, store)
        summary = replace(summary, about=summary.about | {"command": asked(ctx)})
        summary.save(folder)
        if as_json:
            say_json(summary.to_dict())
        else:
            say(summary.markdown())
    pages = ", ".join(str(folder / f"{name}.html") for name in wanted)
    finish(outcome, f"look at {pages}", as_json=as_json)


def finish(outcome: "Outcome", next_step: str, *, as_json: bool) -> None:
    """Say what failed and what is left, and end with the exit code for it."""
    for why in dict.fromkeys(outcome.failed.values()):
        label, *others = (label for label, reason in outcome.failed.items() if reason == why)
        note(f"Failed: {label}{f' and {len(others)} more' if others else ''}: {why}")
    if outcome.n_left:
        note(f"{outcome.n_left} cells are left; the same command goes on.")
    then(next_step, unless=as_json or not outcome.complete)
    raise typer.Exit(1 if outcome.failed else 0)


def chosen_preset(
    name: str,
    *,
    seeds: str | None = None,
    only_tasks: str | None = None,
    targets: str | None = None,
    sae: bool = True,
) -> "Preset":
    """Give a preset, with whatever was asked for in place of its own.

    Raises:
        ValueError: If a name or number is none.
    """
    from tl_sparse.sweeps import PRESETS

    changes: dict[str, Any] = {}
    if seeds is not None:
        changes["seeds"] = tuple(_seed(seed) for seed in _some("seeds", seeds))
    if only_tasks is not None:
        changes["tasks"] = tuple(_task(task) for task in _some("tasks", only_tasks))
    if targets is not None:
        changes["targets"] = tuple(_target(target) for target in _some("targets", targets))
    if not sae:
        changes["saes"] = None
    return replace(PRESETS[_known(name, PRESETS, "preset")], **changes)


def _some(option: str, joined: str) -> tuple[str, ...]:
    if not (found := names(joined)):
        raise ValueError(
            f"--{option} is one or more of them joined by commas, got {joined!r}. "
            "Leave it out for the preset's."
        )
    return tuple(dict.fromkeys(found))


def _known(name: str, known: object, what: str) -> str:
    assert isinstance(known, dict)
    if name not in known:
        raise ValueError(f"A {what} is one of {', '.join(known)}; got {name!r}.")
    return name


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"seeds are whole numbers joined by commas, got {text!r}. Try 0,1,2.")
    return int(text)


def _target(text: str) -> float:
    try:
        target = float(text)
    except ValueError:
        target = 0.0
    if not 0 < target < float("inf"):
        raise ValueError(
            f"targets are losses in nats joined by commas, got {text!r}. Try 0.5,0.15."
        )
    return target


def _task(name: str) -> str:
    from tl_sparse.tasks import spec

    return spec(name).name
