"""The command line, `tl-sparse demo | tasks | prune | audit | info | bench`, thin over the rest."""

import os

# Before torch is imported: small models wake their threads often. A little spinning saves time on
# idle cores, and long spinning, the default, costs a multiple of it when the cores are shared.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    help="Weight-sparse transformers and their circuits, for TransformerLens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
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


def _show_scores(model: Any) -> None:
    """Print how well a model does every task."""
    from rich.progress import track
    from rich.table import Table

    from tl_sparse.gate import task_scores
    from tl_sparse.tasks import names

    scores = list(
        track(task_scores(model), "tasks", total=len(names()), console=_errors, transient=True)
    )
    table = Table("task", "test loss", "accuracy", "gate", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for score in scores:
        if score.loss is None or score.accuracy is None:
            continue
        verdict = "passes" if score.passes else "fails"
        table.add_row(score.name, f"{score.loss:.3f}", f"{score.accuracy:.1%}", verdict)
    _console.print(table)
    for score in scores:
        if score.why_not:
            _say(f"{score.name}: not for this tokenizer; {score.why_not}")
    n_served = sum(not score.why_not for score in scores)
    _say(f"{sum(score.passes for score in scores)} of {n_served} pass the gate")


@app.command()
def prune(
    model: Annotated[
        Path, typer.Argument(help="A model folder, e.g. demo/sparse/checkpoint/model.")
    ],
    task: Annotated[str, typer.Argument(help="A task by name; `tl-sparse tasks` lists them.")],
    out: Annotated[Path, typer.Option(help="The file that the circuit is written to.")] = Path(
        "circuit.json"
    ),
    target_loss: Annotated[
        float, typer.Option(help="Task loss, in nats, that the circuit must reach.")
    ] = 0.15,
    corpus_cache: Annotated[
        Path | None,
        typer.Option(help="Where corpora stand, e.g. demo/corpus; default: the cache folder."),
    ] = None,
    reference_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of text over which the nodes' means are measured.")
    ] = 2**18,
    ablation: Annotated[
        str,
        typer.Option(
            help="What is cut is set to: corpus_mean, task_mean, zero, or its value on other text, "
            "resample_corpus: larger circuits that hold up better; or on the pair, resample_pair."
        ),
    ] = "corpus_mean",
    surroundings: Annotated[
        int,
        typer.Option(min=0, help="Judge beside so many random parts of the rest too, e.g. 5."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks and the pairs' order.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Go on if the model can't do the task.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Find the circuit of a task in a model, down to single weights, and write it to a file.

    First the mean of every node over the text that the model was trained on (if it is in the cache,
    else over the default Python text): what a node is set to when it is cut. Then the fewest nodes
    and edges whose loss on the task stays at the target. A model that answers fewer than 90 % of
    the test prompts right is refused: `tl-sparse tasks --model MODEL` shows what it can do.

    Ctrl-C keeps the smallest circuit so far; twice, it gives up.

    For example:  tl-sparse prune demo/sparse/checkpoint/model single_double_quote
    --corpus-cache demo/corpus
    """
    from tl_sparse import tasks as all_tasks
    from tl_sparse.config import PruningConfig
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.pruning import TaskGateError, named_references
    from tl_sparse.pruning import prune as prune_model

    try:
        config = PruningConfig(target_loss=target_loss, n_surroundings=surroundings, seed=seed)
        loaded = HookedSparseTransformer.load(model)
        if loaded.tokenizer is None:
            raise ValueError("The model has no tokenizer, and tasks are made for one.")
        found = all_tasks.get(task, tokenizer=loaded.tokenizer, max_tokens=loaded.cfg.n_ctx)
        corpus = _corpus_of(loaded, corpus_cache, progress=not quiet)
        refs = named_references(
            ablation, loaded, found, corpus, n_tokens=reference_tokens, progress=not quiet
        )
        circuit = prune_model(loaded, found, refs, config, force=force, progress=not quiet)
        circuit.save(out)
    except KeyboardInterrupt:
        _errors.print("Stopped before there was a circuit; nothing was written.")
        raise typer.Exit(130) from None
    except TaskGateError as error:
        _errors.print(f"Error: {error} (Here: --force.)", markup=False)
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        _errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
    if circuit.provenance.get("interrupted"):
        _say("Stopped: the smallest circuit so far, smaller ones may exist.")
    _say(repr(circuit))
    _say(f"Written to {out}.")


@app.command()
def audit(
    model: Annotated[
        Path, typer.Argument(help="A model folder, e.g. demo/sparse/checkpoint/model.")
    ],
    circuit: Annotated[Path, typer.Argument(help="A circuit of that model, as `prune` wrote it.")],
    out: Annotated[
        Path, typer.Option(help="The report's file; with .html a page, and the JSON beside it.")
    ] = Path("audit.json"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of the draws and edges, 32 examples.")
    ] = False,
    corpus_cache: Annotated[
        Path | None,
        typer.Option(help="Where corpora stand, e.g. demo/corpus; default: the cache folder."),
    ] = None,
    control_seeds: Annotated[
        int,
        typer.Option(min=0, help="Prune the task again, and four controls, on so many seeds."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random draws.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Try to prove a circuit wrong: each claim that one might make of it, and how it went.

    Is it enough for the task, whatever the rest is set to? Is it needed? Does it work beside any
    part of the rest? Do its nodes and edges do in the model what they do alone? Does it answer as
    the model does on other forms of prompt? Can anything go? Every line has its threshold, and its
    control where there is one. With --control-seeds also: does pruning find as much in nonsense and
    in random models, and the same again by another seed? (Seven prunings for each seed.)

    For example:  tl-sparse audit demo/sparse/checkpoint/model demo/sparse/circuit.json --quick
    --corpus-cache demo/corpus
    """
    from tl_sparse import tasks as all_tasks
    from tl_sparse.audit_page import write_audit_page
    from tl_sparse.auditing import audit as audit_circuit
    from tl_sparse.circuit import Circuit
    from tl_sparse.config import AuditConfig
    from tl_sparse.model import HookedSparseTransformer

    try:
        found = Circuit.load(circuit)
        loaded = HookedSparseTransformer.load(model)
        if loaded.tokenizer is None:
            raise ValueError("The model has no tokenizer, and tasks are made for one.")
        task = all_tasks.get(found.task, tokenizer=loaded.tokenizer, max_tokens=loaded.cfg.n_ctx)
        corpus = _corpus_of(loaded, corpus_cache, progress=not quiet)
        config = AuditConfig.quick() if quick else AuditConfig()
        config = replace(config, seed=seed, n_control_seeds=control_seeds)
        report = audit_circuit(loaded, found, task, corpus, config, progress=not quiet)
        is_page = out.suffix.lower() in (".html", ".htm")
        report.save(out.with_suffix(".json") if is_page else out)
        if is_page:
            write_audit_page(out, report)
    except KeyboardInterrupt:
        _errors.print("Stopped before the audit's end; nothing was written.")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        _errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
    _say(str(report))
    _say(f"Written to {out}.")


def _corpus_of(model: Any, folder: Path | None, *, progress: bool) -> Any:
    """Open the text that a model was trained on, or else the default text for its tokenizer."""
    from tl_sparse import data
    from tl_sparse.data.corpora import open_cached

    place = data.default_cache_dir() if folder is None else folder
    for name in reversed(model.trained_on):
        if corpus := open_cached(place / name, tokenizer=model.tokenizer):
            return corpus
    _errors.print(
        f"The text that the model was trained on is not known to be in {place}; means are taken "
        "over the default Python text.",
        markup=False,
    )
    return data.python_corpus(tokenizer=model.tokenizer, cache_dir=place, progress=progress)


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


@app.command()
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

    For example:  tl-sparse bench --only training,projection --sizes paper
    tl-sparse bench --only pruning,compiled --sizes small --demo demo
    """
    from tl_sparse.bench import BenchSettings, run_bench

    chosen: dict[str, Any] = {} if only is None else {"only": _names(only)}
    try:
        settings = BenchSettings(
            sizes=_names(sizes), demo=demo, repeats=repeats, seconds=seconds, threads=threads,
            device=device, out=out, **chosen,
        )  # fmt: skip
        report = run_bench(settings, progress=not quiet)
    except (ValueError, OSError) as error:
        _errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
    _say(report.markdown())
    _say(f"Written to {out} and {out.with_suffix('.md')}.")
    if report.interrupted:
        _errors.print("Stopped: what was measured until then is in the files.")
        raise typer.Exit(130)


def _names(joined: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in joined.split(",") if name.strip())
