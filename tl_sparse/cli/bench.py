"""`tl-sparse bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_sparse.cli.speaking import errors, names, say


def bench(
    only: Annotated[
        str | None,
        typer.Option(
            help="What to measure, joined by commas: training, memory, inference, linear, "
            "projection, abstopk, pruning, audit, compiled. Default: all."
        ),
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Joined by commas: tiny, small, paper, large, wide.")
    ] = "small,paper,large",
    demo: Annotated[
        Path | None,
        typer.Option(
            help="A finished demo's folder: pruning and compiled are measured on its model too."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds of each measurement, at most.")] = 20,
    seconds: Annotated[
        float, typer.Option(help="Budget of each measurement; three rounds are run in any case.")
    ] = 30.0,
    threads: Annotated[
        int | None, typer.Option(help="Threads on the CPU; default: torch's.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if there is one.")] = "auto",
    out: Annotated[
        Path, typer.Option(help="The file of all raw times; the table goes beside it, as .md.")
    ] = Path("bench.json"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Measure speed and memory beside a plain PyTorch model, in one run, as ratios to it.

    All that is compared runs in turn, a b c a b c ..., so that a busy machine slows all alike. The
    files are written anew after each measurement; Ctrl-C keeps what there is.

    With --demo, answers by the model and by its compiled circuit, and the whole of `prune`, are
    measured on what a finished `tl-sparse demo` has trained and found, beside the random models.

    For example:

    - `tl-sparse bench --only training,projection --sizes paper`
    - `tl-sparse bench --only pruning,compiled --sizes small --demo demo`
    """
    from tl_sparse.bench import BenchSettings, run_bench

    chosen: dict[str, Any] = {} if only is None else {"only": names(only)}
    try:
        settings = BenchSettings(
            sizes=names(sizes), demo=demo, repeats=repeats, seconds=seconds, threads=threads,
            device=device, out=out, **chosen,
        )  # fmt: skip
        report = run_bench(settings, progress=not quiet)
    except (ValueError, OSError) as error:
        errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
    say(report.markdown())
    say(f"Written to {out} and {out.with_suffix('.md')}.")
    if report.interrupted:
        errors.print("Stopped: what was measured until then is in the files.")
        raise typer.Exit(130)
