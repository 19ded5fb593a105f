"""`tl-sparse bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_sparse.cli.completing import BENCH_KINDS, BENCH_SIZES, some_of
from tl_sparse.cli.opening import AsJson, Quiet, check_file
from tl_sparse.cli.settings import ConfigFile
from tl_sparse.cli.speaking import names, note, say, say_json, then


def bench(
    only: Annotated[
        str | None,
        typer.Option(
            help="What to measure, joined by commas: training, memory, inference, linear, "
            "projection, abstopk, pruning, audit, compiled. Default: all.",
            autocompletion=some_of(BENCH_KINDS),
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            help="Joined by commas: tiny, small, paper, large, wide.",
            autocompletion=some_of(BENCH_SIZES),
        ),
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
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
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
    settings = BenchSettings(
        sizes=names(sizes), demo=demo, repeats=repeats, seconds=seconds, threads=threads,
        device=device, out=out, **chosen,
    )  # fmt: skip
    check_file(out)
    report = run_bench(settings, progress=not quiet)
    if as_json:
        say_json(report.to_dict())
    else:
        say(report.markdown())
        say(f"Written to {out} and {out.with_suffix('.md')}.")
    if report.interrupted:
        note("Stopped: what was measured until then is in the files.")
        raise typer.Exit(130)
    then("docs/results/speed.md has the same table of other machines.", unless=as_json)
