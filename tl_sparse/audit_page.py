"""An audit as HTML: every claim with its verdict, and under it each line with what it is held to.

`audit_section` is the part of a page or a notebook, `write_audit_page` a page of its own. The eight
claims stand in a list, a line each, that opens on the lines behind it: the value, its threshold,
its spread over draws, its value on other seeds, its control. Verdicts are told by a word and a
sign; the colour repeats them. Nothing sums them up.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_sparse.auditing import CLAIMS, AuditReport, Claim, Finding
from tl_sparse.auditing.findings import Effect
from tl_sparse.curves import by_figure, draw_curves
from tl_sparse.files import write_text
from tl_sparse.markup import details, document, fragment, numbers, shown, table
from tl_sparse.wording import escape

SIGNS = {"holds": "\N{CHECK MARK}", "fails": "\N{BALLOT X}", "not tested": "\N{WHITE CIRCLE}"}
"""The sign before the word of each verdict."""

MAX_EFFECTS = 200
"""Nodes, and edges, that are listed at most."""

_HOW_TO_READ = """<p>An audit tries to prove a circuit wrong. A claim holds if each of its lines is
on the right side of its threshold; a control is the same number where the claim is known not to
hold. That a claim holds means that it was tried and not disproved. Open a claim for its lines.</p>
"""

_MEASURES = """<p>Measured too, and no claim. CPR and CMD are those of MIB: over the share of edges,
the area under the gain that is kept, and the area between it and 1.</p>"""


def write_audit_page(path: str | Path, report: AuditReport) -> None:
    """Write a page with one audit, whole or not at all.

    Raises:
        OSError: If the page can't be written.
    """
    title = f"Audit of the circuit for {report.task}"
    write_text(path, document(title, f"<h1>{escape(title)}</h1>\n{audit_section(report)}"))


def audit_fragment(report: AuditReport) -> str:
    """Give the audit as HTML that carries its own style, as notebooks show it."""
    title = escape(f"Audit of the circuit for {report.task}")
    return fragment(f"<h3>{title}</h3>\n{audit_section(report)}")


def audit_section(report: AuditReport) -> str:
    """Give the audit as HTML for the body of a page: verdicts first, numbers where they open."""
    parts = [_HOW_TO_READ, *(_claim(report, claim, verdict) for claim, verdict in _each(report))]
    if report.measures:
        parts.append(f"{_MEASURES}\n{numbers(report.measures)}")
    if report.curves:
        parts.append(details("Curves behind the lines", _curves(report.curves)))
    for what, effects in (("node", report.nodes), ("edge", report.edges)):
        if effects:
            title = f"What each {what} is worth ({len(effects):,})"
            parts.append(details(title, _effects(effects)))
    if report.provenance:
        parts.append(details("How it was audited", numbers(_flat(report.provenance))))
    return f'<div class="audit">\n{"".join(parts)}</div>'


def _each(report: AuditReport) -> list[tuple[Claim, str]]:
    return list(report.verdicts().items())


def _claim(report: AuditReport, claim: Claim, verdict: str) -> str:
    findings = report.of(claim)
    n_failing = sum(finding.verdict == "fails" for finding in findings)
    count = ""
    if n_failing:
        lines, verb = (
            "line" if len(findings) == 1 else "lines",
            "fails" if n_failing == 1 else "fail",
        )
        count = f" ({n_failing} of {len(findings)} {lines} {verb})"
    summary = (
        f'<span class="verdict">{_said(verdict)}</span> <strong>{claim}</strong> '
        f'<span class="says">{escape(CLAIMS[claim])}{count}</span>'
    )
    kind = verdict.replace(" ", "-")
    return details(summary, _lines(findings) or _untested(claim), kind=kind) + "\n"


def _said(verdict: str) -> str:
    return f"{SIGNS[verdict]} {verdict}"


def _untested(claim: Claim) -> str:
    if claim in ("better than chance", "stable"):
        return (
            "<p>Not tested: this takes more prunings, on other seeds and on controls. "
            "<code>AuditConfig(n_control_seeds=2)</code> or <code>tl-sparse audit "
            "--control-seeds 2</code> asks for them.</p>"
        )
    return "<p>Not tested: nothing was measured that bears on it.</p>"


def _lines(findings: Sequence[Finding]) -> str:
    """Give a claim's lines as a table, without columns in which nothing stands."""
    rows = [_line(finding) for finding in findings]
    used = [name for row in rows for name, value in row.items() if value != ""]
    rows = [{name: value for name, value in row.items() if name in used} for row in rows]
    kinds = [finding.verdict.replace(" ", "-") for finding in findings]
    return table(rows, kinds) if rows else ""


def _line(finding: Finding) -> dict[str, Any]:
    control = ""
    if finding.control is not None:
        name = f" ({finding.control_name})" if finding.control_name else ""
        control = f"{_number(finding.control)}{name}"
    sign = "<=" if finding.at_most else ">="
    tested = finding.verdict != "not tested"
    return {
        "verdict": _said(finding.verdict),
        "line": finding.name,
        "value": float(finding.value),
        "threshold": f"{sign} {_number(finding.threshold)}" if tested else "",
        "spread": "" if finding.spread is None else _range(finding.spread),
        "on other seeds": ", ".join(map(_number, finding.over_seeds)),
        "control": control,
        "why this threshold": finding.why,
    }


def _range(spread: tuple[float, float]) -> str:
    return " to ".join(map(_number, spread))


def _number(value: float) -> str:
    return shown(float(value))


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw the curves; those named "x, y" on a figure for each x."""
    drawn = [
        draw_curves(some, x_label=x, y_label=next(iter(some)) if len(some) == 1 else "value")
        for x, some in by_figure(curves).items()
    ]
    return f'<div class="curves">{"".join(drawn)}</div>'


def _effects(effects: Sequence[Effect]) -> str:
    """Give the table of what parts are worth, the most needed first."""
    order = sorted(effects, key=lambda e: -e.ablation if math.isfinite(e.ablation) else math.inf)
    rows = [
        {"part": each.part, "ablation": float(each.ablation), "integrated": float(each.integrated)}
        for each in order[:MAX_EFFECTS]
    ]
    more = ""
    if len(order) > MAX_EFFECTS:
        more = f" The {MAX_EFFECTS} most needed are shown; all are in the JSON file."
    return (
        "<p>In nats; positive helps. Ablation: how far the circuit's loss rises without this part "
        "alone. Integrated: the part's share of the fall from the empty circuit's loss, by "
        f"integrated gradients.{more}</p>{table(rows)}"
    )


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Give nested mappings as one, with names such as "audit: seed"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}: ")
        else:
            found[f"{before}{name}"] = value
    return found
