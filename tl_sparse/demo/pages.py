"""What the demo writes at its end: the table, the page, and the circuits to click through."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tl_sparse import viewer
from tl_sparse.checkpoints import read_json, versions
from tl_sparse.data import Corpus
from tl_sparse.demo.arms import ArmResult, table
from tl_sparse.explain import explain
from tl_sparse.files import write_text
from tl_sparse.report import Arm, write_page
from tl_sparse.tasks import PairTask

VIEWER = "circuit.html"
N_WINDOWS = 128


def write_viewer_page(
    folder: Path,
    results: Sequence[ArmResult],
    task: PairTask,
    corpus: Corpus | None,
    *,
    max_edges: int,
    progress: bool = True,
) -> dict[str, str]:
    """Write the viewer's page of the first two circuits, if it is not there, and say of what it is.

    Circuits of more than `max_edges` edges are left out: measuring each weight takes minutes.
    What is given is kept in `summary.json`: the page is made anew when a circuit or audit changes.
    Where there is no circuit to show there is no page.
    """
    shown = [r for r in results if r.circuit is not None and 0 < r.circuit.n_edges <= max_edges][:2]
    viewed = {result.spec.name: _hash(result) for result in shown}
    page, summary = folder / VIEWER, folder / "summary.json"
    before = read_json(summary).get("viewed") if summary.is_file() else None
    if not shown:
        page.unlink(missing_ok=True)
    elif before != viewed or not page.is_file():
        scenes = [
            viewer.scene(
                result.model, result.circuit, task, corpus, result.audit, title=result.spec.title,
                n_windows=N_WINDOWS, progress=progress,
            )
            for result in shown
            if result.circuit is not None
        ]  # fmt: skip
        viewer.write_viewer(page, *scenes)
    return viewed


def _hash(result: ArmResult) -> str:
    """Give a hash of a circuit and its audit."""
    assert result.circuit is not None
    audited = "" if result.audit is None else json.dumps(result.audit.to_dict(), sort_keys=True)
    return hashlib.sha256((result.circuit.to_json() + audited).encode()).hexdigest()[:16]


def write_results(
    folder: Path,
    results: Sequence[ArmResult],
    *,
    seed: int,
    note: str,
    task: PairTask,
    corpus: Corpus,
    viewed: dict[str, str],
) -> None:
    """Write circuits, `summary.json` and `index.html`, which links to the viewer's page."""
    audited = {result.spec.name: result.audit for result in results if result.audit}
    summary = {
        "rows": [result.row() for result in results],
        "verdicts": {name: report.verdicts() for name, report in audited.items()},
        "seed": seed,
        "corpus": corpus.hash,
        "versions": versions(),
        "viewed": viewed,
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    for result in results:
        if result.circuit is not None:
            result.circuit.save(folder / result.spec.name / "circuit.json")
    write_page(
        folder / "index.html",
        title="How two transformers close a string",
        arms=[_arm(result, task) for result in results],
        rows=table(list(results)),
        lead=[note] if note else (),
        see={VIEWER: "The circuits to click through"} if viewed else {},
    )


def _arm(result: ArmResult, task: PairTask) -> Arm:
    circuit = result.circuit
    return Arm(
        name=result.spec.title,
        circuit=circuit,
        explanation=None if circuit is None else explain(circuit, result.model, task),
        history=result.history,
        audit=result.audit,
        description=repr(result.model),
        note=result.note,
    )
