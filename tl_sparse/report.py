"""`write_page`: one HTML page with what was compared, drawn and in words.

The page opens from disk without a network: no script, no font, and no address in it but of files
beside it. It shows the comparison as a table, the audits, the circuits as drawings and in words,
and the training curves, and says which circuits were not audited. Every text that comes from data
is escaped, with characters that can't be seen or that turn the line round written as their escapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tl_sparse.audit_page import audit_section
from tl_sparse.auditing import AuditReport
from tl_sparse.circuit import Circuit
from tl_sparse.displays import LEGEND, NOT_AUDITED, training_curves
from tl_sparse.drawing import draw_circuit
from tl_sparse.files import write_text
from tl_sparse.history import History
from tl_sparse.interface import residual_links
from tl_sparse.markup import details, document, numbers, section, table, warning
from tl_sparse.wording import Explanation, escape


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of the comparison: a model and what was found in it."""

    name: str
    description: str = ""
    """The model in words: shape, density, number of weights."""
    circuit: Circuit | None = field(default=None, repr=False)
    explanation: Explanation | None = field(default=None, repr=False)
    history: History | None = field(default=None, repr=False)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was measured, by name."""
    audit: AuditReport | None = None
    """How it went to try to prove the circuit wrong."""
    note: str = ""
    """What a reader must know of this side first, e.g. that the model cannot do the task."""


def write_page(
    path: str | Path,
    *,
    title: str,
    arms: Sequence[Arm],
    rows: Sequence[Mapping[str, Any]] = (),
    lead: Sequence[str] = (),
    see: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the page that compares some models and their circuits, whole or not at all.

    `rows` is the table, one mapping from column to value for each row; `lead` are the
    caller's paragraphs for the top, `see` links to files that stand beside the page, name to words;
    `provenance` stands at the foot. The first arm is open.

    Raises:
        OSError: If the page can't be written.
    """
    text = page(title, arms, rows=rows, lead=lead, see=see or {}, provenance=provenance or {})
    write_text(path, text)


def page(
    title: str,
    arms: Sequence[Arm],
    *,
    rows: Sequence[Mapping[str, Any]],
    lead: Sequence[str],
    see: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> str:
    """Give the page as HTML text."""
    opened = next((arm for arm in arms if arm.circuit or arm.explanation), None)
    none_audited = not any(arm.audit for arm in arms)
    histories = {arm.name: arm.history for arm in arms if arm.history is not None}
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(words)}</p>" for words in lead),
        *map(_link, see, see.values()),
        _WHAT,
        warning(NOT_AUDITED, strong_first=True) if none_audited else "",
        section("Comparison", table(rows)) if rows else "",
        *(_arm(arm, is_open=arm is opened, warn=not none_audited) for arm in arms),
        section("Training", training_curves(histories)) if histories else "",
        section("Where this comes from", numbers(provenance)) if provenance else "",
    ]
    return document(title, "\n".join(filter(None, parts)))


def _link(file: str, words: str) -> str:
    return f'<p><a href="./{quote(file)}">{escape(words)}</a></p>'


def _arm(arm: Arm, *, is_open: bool, warn: bool) -> str:
    """Give an arm's section; `warn` says of a circuit without an audit that it has none."""
    parts = []
    if arm.note:
        parts.append(warning(arm.note))
    if arm.description:
        parts.append(f"<p>{escape(arm.description)}</p>")
    if arm.numbers:
        parts.append(numbers(arm.numbers))
    if arm.audit is not None:
        parts.append(f"<h3>Audit</h3>\n{audit_section(arm.audit)}")
    elif warn and arm.circuit is not None and arm.circuit.nodes:
        parts.append(warning(NOT_AUDITED, strong_first=True))
    if arm.audit is not None and (arm.circuit or arm.explanation):
        parts.append("<h3>Circuit</h3>")
    if arm.circuit is not None:
        parts.append(details("The circuit drawn", _figure(arm), is_open=is_open))
    if arm.explanation is not None:
        text = "\n".join(map(escape, str(arm.explanation).split("\n")))
        parts.append(
            details("The circuit in words", f'<pre tabindex="0">{text}</pre>', is_open=is_open)
        )
        parts.append(details("Every step as a table", _steps(arm.explanation)))
    return section(arm.name, "\n".join(parts)) if parts else ""


def _steps(explanation: Explanation, max_rows: int = 200) -> str:
    """Give the table of steps; of a long one the largest edges."""
    rows, more = explanation.rows(), ""
    if len(rows) > max_rows:
        edges = sorted(
            (row for row in rows if row["kind"] == "edge"), key=lambda r: -abs(r["weight"])
        )
        shown = edges[:max_rows]
        n_more = f"{len(rows) - len(shown):,}"
        more = f"<p>The {len(shown):,} largest edges; {n_more} more steps are in the data.</p>"
        rows = shown
    return more + table([_step(row) for row in rows])


def _step(row: Mapping[str, Any]) -> dict[str, Any]:
    """Name a row of `Explanation.rows` for a reader."""
    weight = "same channel" if row["weight"] is None else f"{row['weight']:+.4g}"
    return {
        "kind": row["kind"],
        "token or site": row["source"],
        "channel": row["source_channel"],
        "weight": weight,
        "next site": row["target"],
        "next channel": row["target_channel"],
    }


def _figure(arm: Arm) -> str:
    circuit, explanation = arm.circuit, arm.explanation
    assert circuit is not None
    if explanation is None:
        svg = draw_circuit(circuit, residual=residual_links(circuit))
    else:
        tokens = {}
        reads = [n for n in explanation.nodes if n.site in ("attn_in", "mlp_in")]
        reads = [n for n in reads if n.highest or n.lowest]
        n_lines = 4 if len(reads) <= 24 else 1
        for node in reads:
            some = dict(node.task_tokens) | dict(sorted(node.highest + node.lowest, key=_by_size))
            tokens[node.channel] = [pair for pair in some.items() if pair[1]][:n_lines]
        by_name = {str(node): node for node in circuit.nodes}
        logits = [(by_name[n.node], *pair) for n in explanation.nodes for pair in n.logits]
        svg = draw_circuit(
            circuit,
            residual=residual_links(circuit),
            tokens=tokens,
            logits=logits,
            d_head=explanation.d_head,
            d_model=explanation.d_model,
        )
    return f'<figure><div class="wide" tabindex="0">{svg}</div>{LEGEND}</figure>'


def _by_size(pair: tuple[str, float]) -> float:
    return -abs(pair[1])


_WHAT = """<p>What you see: a task, and for each model the circuit that does it, as far as one was
found. A circuit is the set of single channels (nodes) and single nonzero weights between them
(edges) that is enough for the task; all else is held at a constant. The fewer edges, the more of it
can be read. Follow a drawing from the left, where tokens come in, to the right, where the answers'
logits are.</p>"""
