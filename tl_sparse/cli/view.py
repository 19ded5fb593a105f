"""`tl-sparse view`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_sparse.cli.circuits import _corpus_of
from tl_sparse.cli.speaking import errors, say


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
    corpus_cache: Annotated[
        Path | None,
        typer.Option(help="Where corpora stand, e.g. demo/corpus; default: the cache folder."),
    ] = None,
    text: Annotated[
        bool, typer.Option(help="Show where in text each node is highest and lowest.")
    ] = True,
    serve: Annotated[
        bool, typer.Option(help="Serve the page on this machine and open it in a browser.")
    ] = True,
    port: Annotated[int, typer.Option(help="On this port; 0 takes a free one.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
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
    """
    from tl_sparse import viewer

    try:
        if circuit is None:
            _refuse_folder(model)
            out = model
        else:
            about = {"corpus_cache": corpus_cache, "text": text, "progress": not quiet}
            pages = [_scene(model, circuit, audit, **about)]
            if other is not None:
                pages.append(_scene(other_model or model, other, other_audit, **about))
            viewer.write_viewer(out, *pages)
            say(f"Written to {out}.")
        if serve:
            viewer.serve(out, port=port, say=say)
    except KeyboardInterrupt:
        errors.print("Stopped before the page was there; nothing was written.")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None


def _refuse_folder(page: Path) -> None:
    if page.is_dir():
        raise ValueError(
            f"{page} is a folder. Give a model folder and a circuit, or a page that was made: "
            "`tl-sparse view MODEL CIRCUIT`, `tl-sparse view PAGE.html`."
        )


def _scene(
    folder: Path,
    path: Path,
    audit: Path | None,
    *,
    corpus_cache: Path | None,
    text: bool,
    progress: bool,
) -> Any:
    from tl_sparse import tasks, viewer
    from tl_sparse.auditing import AuditReport
    from tl_sparse.circuit import Circuit
    from tl_sparse.model import HookedSparseTransformer

    circuit = Circuit.load(path)
    report = None if audit is None else AuditReport.load(audit)
    model = HookedSparseTransformer.load(folder)
    if model.tokenizer is None:
        raise ValueError("The model has no tokenizer, and tasks are made for one.")
    task = tasks.get(circuit.task, tokenizer=model.tokenizer, max_tokens=model.cfg.n_ctx)
    needed = text or circuit.ablation == "resample_corpus"
    corpus = _corpus_of(model, corpus_cache, progress=progress) if needed else None
    return viewer.scene(model, circuit, task, corpus, report, progress=progress)
