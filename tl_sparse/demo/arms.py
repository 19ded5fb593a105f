"""The arms of the demo: what each is, its line of the table, and the closing words."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_sparse.auditing import CLAIMS, AuditReport
from tl_sparse.circuit import Circuit
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.explain import explain
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.tasks import PairTask


@dataclass(frozen=True)
class ArmSpec:
    """One model of the comparison, before it is trained."""

    name: str
    title: str
    width: int
    sparsity: SparsityConfig
    training: TrainingConfig


@dataclass
class ArmResult:
    """One model of the comparison, trained and pruned."""

    spec: ArmSpec
    model: HookedSparseTransformer
    history: History
    circuit: Circuit | None = None
    note: str = ""
    accuracy: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    audit: AuditReport | None = None

    def row(self) -> dict[str, Any]:
        """Give this arm's line of the table."""
        circuit = self.circuit
        return {
            "arm": self.spec.title,
            "validation loss": self.history.validation_loss,
            "task loss, whole model": self.losses.get("model_test"),
            "accuracy": self.losses.get("model_test_accuracy"),
            "circuit's target": None if circuit is None else circuit.target_loss,
            "task loss, circuit": self.losses.get("test"),
            "nodes": None if circuit is None else circuit.n_nodes,
            "edges": None if circuit is None else circuit.n_edges,
            "audit": "" if self.audit is None else counted(self.audit),
            "note": self.note,
        }


def counted(report: AuditReport) -> str:
    """Say how many of the claims that were tested hold."""
    tested = [verdict for verdict in report.verdicts().values() if verdict != "not tested"]
    return f"{tested.count('holds')} of {len(tested)} claims hold"


def table(results: list[ArmResult]) -> list[dict[str, str]]:
    """Give the table's rows for people, without columns that have nothing in them."""
    rows = [_readable(result.row()) for result in results]
    return [{k: v for k, v in row.items() if any(other[k] for other in rows)} for row in rows]


def _readable(row: dict[str, Any]) -> dict[str, str]:
    """Round a row's numbers for people."""

    def text(name: str, value: Any) -> str:
        if value is None:
            return "-"
        if name == "accuracy":
            return f"{value:.1%}"
        return (
            f"{value:,}"
            if isinstance(value, int)
            else (f"{value:.3f}" if isinstance(value, float) else str(value))
        )

    return {name: text(name, value) for name, value in row.items()}


def closing_lines(folder: Path, results: list[ArmResult], task: PairTask) -> Iterator[str]:
    """Give the table, the sparse circuit in words, and where the page is."""
    rows = table(results)
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    yield ""
    yield "  ".join(name.ljust(widths[name]) for name in widths)
    for row in rows:
        yield "  ".join(row[name].ljust(widths[name]) for name in widths)
    sparse = results[0]
    if sparse.circuit is not None:
        yield ""
        yield f"How the sparse model does {task.name}, {sparse.circuit.n_edges} edges:"
        yield str(explain(sparse.circuit, sparse.model, task))
    for result in results[1:]:
        if sparse.circuit is not None and result.circuit is not None and sparse.circuit.n_edges:
            ratio = result.circuit.n_edges / sparse.circuit.n_edges
            times = f"{ratio:.0f}" if ratio >= 2 else f"{ratio:.2g}"
            yield f"{result.spec.title}: {times} times as many edges as the sparse model."
    yield from _audit_lines(results)
    yield f"Open {folder / 'index.html'} in a browser."


def _audit_lines(results: list[ArmResult]) -> Iterator[str]:
    """Say which claims about the sparse circuit fail, or that no circuit was audited."""
    if not any(result.audit for result in results):
        yield (
            "These circuits are not audited: pruning can find what a model does not do. `tl-sparse "
            "audit` tries to prove one wrong."
        )
    report = results[0].audit
    if report is None:
        return
    verdicts = report.verdicts()
    failing = [f"  {claim}: {CLAIMS[claim]}" for claim in CLAIMS if verdicts[claim] == "fails"]
    untested = [claim for claim, verdict in verdicts.items() if verdict == "not tested"]
    yield ""
    yield f"The audit of the sparse circuit: {counted(report)}." + (
        " These fail:" if failing else ""
    )
    yield from failing
    if untested:
        yield f"Not tested: {', '.join(untested)}."
