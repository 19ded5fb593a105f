"""`tl-sparse prune` and `tl-sparse audit`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tl_sparse.cli.speaking import errors, say


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
        errors.print("Stopped before there was a circuit; nothing was written.")
        raise typer.Exit(130) from None
    except TaskGateError as error:
        errors.print(f"Error: {error} (Here: --force.)", markup=False)
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
    if circuit.provenance.get("interrupted"):
        say("Stopped: the smallest circuit so far, smaller ones may exist.")
    say(repr(circuit))
    say(f"Written to {out}.")


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
        errors.print("Stopped before the audit's end; nothing was written.")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
    say(str(report))
    say(f"Written to {out}.")


def _corpus_of(model: Any, folder: Path | None, *, progress: bool) -> Any:
    """Open the text that a model was trained on, or else the default text for its tokenizer."""
    from tl_sparse import data
    from tl_sparse.data.corpora import open_cached

    place = data.default_cache_dir() if folder is None else folder
    for name in reversed(model.trained_on):
        if corpus := open_cached(place / name, tokenizer=model.tokenizer):
            return corpus
    errors.print(
        f"The text that the model was trained on is not known to be in {place}; means are taken "
        "over the default Python text.",
        markup=False,
    )
    return data.python_corpus(tokenizer=model.tokenizer, cache_dir=place, progress=progress)
