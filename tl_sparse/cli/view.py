"""`tl-sparse view`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_sparse.cli.failing import if_stopped
from tl_sparse.cli.opening import (
    CorpusCache,
    Device,
    Quiet,
    check_file,
    open_for_tasks,
    open_task,
    shipped,
    task_again,
    training_text,
)
from tl_sparse.cli.settings import ConfigFile
from tl_sparse.cli.speaking import say
from tl_sparse.rules import checks_itself


@if_stopped("Stopped before the page was there; nothing was written.")
@checks_itself
def view(
    model: Annotated[
        Path, typer.Argument(help="A model folder, or a page that this command has made.")
    ],
    circuit: Annotated[
        Path | None, typer.Argument(help="A circuit of that model, as `prune` wrote it.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="Its audit, as `audit` wrote it (JSON): verdicts in sight.")
    ] = None,
    other: Annotated[
        Path | None, typer.Option(help="A second circuit, to stand beside the first.")
    ] = None,
    other_model: Annotated[
        Path | None, typer.Option(help="The second one's model, if it is another.")
    ] = None,
    other_audit: Annotated[Path | None, typer.Option(help="The second one's audit.")] = None,
    out: Annotated[Path, typer.Option(help="The page, one file that needs nothing else.")] = Path(
        "circuit.html"
    ),
    corpus_cache: CorpusCache = None,
    task_file: Annotated[
        Path | None, typer.Option(help="The file of pairs, if the circuit's own is gone.")
    ] = None,
    text: Annotated[
        bool, typer.Option(help="Show where in text each node is highest and lowest.")
    ] = True,
    serve: Annotated[
        bool, typer.Option(help="Serve the page on this machine and open it in a browser.")
    ] = True,
    port: Annotated[int, typer.Option(help="On this port; 0 takes a free one.")] = 0,
    device: Device = "cpu",
    config: ConfigFile = None,
    quiet: Quiet = False,
) -> None:
    """Look at a circuit: make its page, serve it on this machine, open it.

    The page has the whole circuit from tokens to logits. A click on a node or a weight shows what
    it is worth, what it reads and writes, and what it does on prompts and text; the audit's
    verdicts, the loss at every size and where heads look stand beside. Labels that you type are
    kept in your browser, in the page that "save page" gives, and in the circuit that "export JSON"
    gives. The file needs no network and no server: send it to somebody.

    For example:

    - `tl-sparse view demo/sparse/checkpoint/model demo/sparse/circuit.json --audit
      demo/sparse/audit.json --corpus-cache demo/corpus`
    - `tl-sparse view circuit.html`
    - `tl-sparse view python-tiny python-tiny/circuits/sparse/single_double_quote.json --audit
      python-tiny/audits/sparse/single_double_quote.json` (these come with the package)
    """
    from tl_sparse import viewer

    if circuit is None:
        _check_page(model)
        out = model
    else:
        check_file(out, read=[circuit, audit, other, other_audit, task_file])
        about = {"cache": corpus_cache, "task": task_file, "text": text, "device": device}
        about["progress"] = not quiet
        first, second = "", ""
        if other is not None:
            first, second = _apart((model, circuit), (other_model or model, other))
        pages = [_scene(model, circuit, audit, which=first, **about)]
        if other is not None:
            pages.append(_scene(other_model or model, other, other_audit, which=second, **about))
        viewer.write_viewer(out, *pages)
        say(f"Written to {out}.")
    if serve:
        viewer.serve(out, port=port, say=say)


def _apart(one: tuple[Path, Path], two: tuple[Path, Path]) -> tuple[str, str]:
    """Tell two circuits apart by the first part in which their models' paths, or theirs, differ."""
    for mine, theirs in zip(one, two, strict=True):
        parts = zip(mine.absolute().parts, theirs.absolute().parts, strict=False)
        if differ := next(((a, b) for a, b in parts if a != b), None):
            return differ
    return "first", "second"


def _check_page(page: Path) -> None:
    """Check that a page of ours is there; a circuit or a model alone is none."""
    if page.is_dir():
        raise ValueError(
            f"{page} is a folder. Give a model folder and a circuit, or a page that was made: "
            "`tl-sparse view MODEL CIRCUIT`, `tl-sparse view PAGE.html`."
        )
    if page.is_file():
        with page.open(encoding="utf-8", errors="replace") as file:
            if not file.read(15).lower().startswith("<!doctype html"):
                raise ValueError(
                    f"{page} is no page. A circuit is looked at with its model: "
                    "`tl-sparse view MODEL CIRCUIT`."
                )


def _scene(
    folder: Path,
    path: Path,
    audit: Path | None,
    *,
    which: str,
    cache: Path | None,
    task: Path | None,
    text: bool,
    device: str,
    progress: bool,
) -> Any:
    from tl_sparse import viewer
    from tl_sparse.auditing import AuditReport
    from tl_sparse.circuit import Circuit

    circuit = Circuit.load(shipped(path))
    report = None if audit is None else AuditReport.load(shipped(audit))
    model = open_for_tasks(folder, device=device)
    name = task_again(circuit.provenance, circuit.task, task)
    found = open_task(name, model.tokenizer, max_tokens=model.cfg.n_ctx)
    needed = text or circuit.ablation == "resample_corpus"
    corpus = training_text(model, cache, progress=progress) if needed else None
    title = f"{circuit.task}, {which}" if which else circuit.task
    return viewer.scene(model, circuit, found, corpus, report, title=title, progress=progress)
