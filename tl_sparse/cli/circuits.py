"""`tl-sparse prune` and `tl-sparse audit`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_sparse.cli.completing import ABLATIONS, one_of
from tl_sparse.cli.failing import if_stopped
from tl_sparse.cli.opening import (
    AsJson,
    CorpusCache,
    Device,
    ModelFolder,
    Quiet,
    TaskName,
    check_file,
    file_of,
    open_for_tasks,
    open_task,
    shipped,
    task_again,
    training_text,
)
from tl_sparse.cli.settings import ConfigFile, asked
from tl_sparse.cli.speaking import say, say_json, then
from tl_sparse.rules import checks_itself

if TYPE_CHECKING:
    from tl_sparse.circuit import Circuit
    from tl_sparse.config import PruningConfig
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.tasks import PairTask


@if_stopped("Stopped before there was a circuit; nothing was written.")
@checks_itself
def prune(
    ctx: typer.Context,
    model: ModelFolder,
    task: TaskName,
    out: Annotated[Path, typer.Option(help="The file that the circuit is written to.")] = Path(
        "circuit.json"
    ),
    target_loss: Annotated[
        float, typer.Option(help="Task loss, in nats, that the circuit must reach.")
    ] = 0.15,
    corpus_cache: CorpusCache = None,
    reference_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of text over which the nodes' means are measured.")
    ] = 2**18,
    ablation: Annotated[
        str,
        typer.Option(
            autocompletion=one_of(ABLATIONS),
            help="What is cut is set to: corpus_mean, task_mean, zero, or its value on other text, "
            "resample_corpus: larger circuits that hold up better; or on the pair, resample_pair.",
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
    device: Device = "cpu",
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the circuit of a task in a model, down to single weights, and write it to a file.

    First the mean of every node over the text that the model was trained on (if it is in the cache,
    else over the default Python text): what a node is set to when it is cut. Then the fewest nodes
    and edges whose loss on the task stays at the target. A model that answers fewer than 90 % of
    the test prompts right is refused: `tl-sparse tasks --model MODEL` shows what it can do.

    TASK may be a file of your own, a line a pair: {"prompts": ["The cat", "The cats"], "answers":
    [" is", " are"]}. `tl-sparse audit` finds it again.

    Ctrl-C keeps the smallest circuit so far; twice, it gives up.

    For example:

    - `tl-sparse prune demo/sparse single_double_quote --corpus-cache demo/corpus`
    - `tl-sparse prune my-model my_pairs.jsonl --target-loss 0.3 --out mine.json`
    """
    check_file(out, read=[Path(task)])
    loaded = open_for_tasks(model, device=device)
    found = open_task(task, loaded.tokenizer, max_tokens=loaded.cfg.n_ctx)
    from tl_sparse.pruning import TaskGateError

    settings = _pruning(target_loss, surroundings, seed, ablation)
    try:
        circuit = _found(
            loaded, found, settings, ablation, corpus_cache,
            n_tokens=reference_tokens, force=force, progress=not quiet,
        )  # fmt: skip
    except TaskGateError as error:
        raise ValueError(f"{error} (Here: --force.)") from error
    noted = {**circuit.provenance, "command": asked(ctx), **file_of(task)}
    circuit = replace(circuit, provenance=noted)
    circuit.save(out)
    if as_json:
        say_json(_in_numbers(circuit) | {"file": str(out)})
        return
    if circuit.provenance.get("interrupted"):
        say("Stopped: the smallest circuit so far, smaller ones may exist.")
    say(repr(circuit))
    say(f"Written to {out}.")
    if circuit.nodes:
        then(f"tl-sparse audit {model} {out}: can it be proved wrong?")
    else:
        then(
            "ask for a lower --target-loss, or something else: the last token alone (embedding, "
            "bigram table, what is held) reaches this one, so there is no circuit to read."
        )


def _pruning(target_loss: float, surroundings: int, seed: int, ablation: str) -> "PruningConfig":
    """Check the settings of a pruning, its ablation too."""
    from tl_sparse.config import PruningConfig
    from tl_sparse.pruning import ABLATIONS as known

    if ablation not in known:
        raise ValueError(f"There is no ablation {ablation!r}; there are: {', '.join(known)}.")
    return PruningConfig(target_loss=target_loss, n_surroundings=surroundings, seed=seed)


def _found(
    model: "HookedSparseTransformer",
    task: "PairTask",
    settings: "PruningConfig",
    ablation: str,
    corpus_cache: Path | None,
    *,
    n_tokens: int,
    force: bool,
    progress: bool,
) -> "Circuit":
    """Prune; the gate comes first, since reading text and measuring means takes a while."""
    from tl_sparse.pruning import named_references, prune
    from tl_sparse.pruning.prune import check_gate

    check_gate(model, task, settings, force=force)
    corpus = None
    if ablation in ("corpus_mean", "resample_corpus"):
        corpus = training_text(model, corpus_cache, progress=progress)
    refs = named_references(ablation, model, task, corpus, n_tokens=n_tokens, progress=progress)
    return prune(model, task, refs, settings, force=force, progress=progress)


def _in_numbers(circuit: "Circuit") -> dict[str, Any]:
    """Give what a script wants to know of a circuit."""
    return {
        "task": circuit.task,
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "losses": dict(circuit.losses),
        "target_loss": circuit.target_loss,
        "ablation": circuit.ablation,
        "forced": circuit.forced,
        "interrupted": bool(circuit.provenance.get("interrupted")),
        "model_hash": circuit.model_hash,
        "settings": circuit.provenance["command"]["prune"],
    }


@if_stopped("Stopped before the audit's end; nothing was written.")
@checks_itself
def audit(
    ctx: typer.Context,
    model: ModelFolder,
    circuit: Annotated[Path, typer.Argument(help="A circuit of that model, as `prune` wrote it.")],
    out: Annotated[
        Path,
        typer.Option(help="The report's file; with .html a page, and the JSON beside it as .json."),
    ] = Path("audit.json"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of the draws and edges, 32 examples.")
    ] = False,
    corpus_cache: CorpusCache = None,
    task_file: Annotated[
        Path | None,
        typer.Option(help="The file of your own pairs, if it is not where it was when pruning."),
    ] = None,
    control_seeds: Annotated[
        int,
        typer.Option(min=0, help="Prune the task again, and four controls, on so many seeds."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random draws.")] = 0,
    device: Device = "cpu",
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Try to prove a circuit wrong: each claim that one might make of it, and how it went.

    Is it enough for the task, whatever the rest is set to? Is it needed? Does it work beside any
    part of the rest? Do its nodes and edges do in the model what they do alone? Does it answer as
    the model does on other forms of prompt? Can anything go? Every line has its threshold, and its
    control where there is one. With --control-seeds also: does pruning find as much in nonsense and
    in random models, and the same again by another seed? (Seven prunings for each seed.)

    For example:

    - `tl-sparse audit demo/sparse demo/sparse/circuit.json --quick --corpus-cache demo/corpus`
    - `tl-sparse audit my-model circuit.json --control-seeds 2 --out audit.html`
    """
    is_page = out.suffix.lower() in (".html", ".htm")
    numbers = out.with_suffix(".json") if is_page else out
    from tl_sparse.circuit import Circuit

    found = Circuit.load(shipped(circuit))
    task = task_again(found.provenance, found.task, task_file)
    for path in (out, numbers):
        check_file(path, read=[circuit, Path(task)])
    loaded = open_for_tasks(model, device=device)
    from tl_sparse.audit_page import write_audit_page
    from tl_sparse.auditing import audit as audit_circuit
    from tl_sparse.circuit_checks import check_circuit
    from tl_sparse.config import AuditConfig

    check_circuit(found, loaded, resampling=True, latents=True)
    pairs = open_task(task, loaded.tokenizer, max_tokens=loaded.cfg.n_ctx)
    corpus = training_text(loaded, corpus_cache, progress=not quiet)
    settings = AuditConfig.quick() if quick else AuditConfig()
    settings = replace(settings, seed=seed, n_control_seeds=control_seeds)
    report = audit_circuit(loaded, found, pairs, corpus, settings, progress=not quiet)
    noted = {**report.provenance, "command": asked(ctx), **file_of(task)}
    report = replace(report, provenance=noted)
    report.save(numbers)
    if is_page:
        write_audit_page(out, report)
    if as_json:
        say_json(report.to_dict())
        return
    say(str(report))
    say(f"Written to {out}.")
    more = "" if control_seeds else "--control-seeds 2 tests the last two claims; "
    then(f"{more}--out audit.html writes a page with every line.", unless=is_page)
