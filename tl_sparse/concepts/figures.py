"""Several arms on one plot and in one table: nodes by concepts tracked, concepts by best node."""

from collections.abc import Mapping, Sequence
from typing import Any

from tl_sparse.concepts.report import ConceptReport
from tl_sparse.curves import draw_curves
from tl_sparse.markup import markdown_table


def draw_tracked(reports: Mapping[str, ConceptReport], threshold: float | None = None) -> str:
    """Draw the share of nodes that track at least so many concepts, one curve an arm, as SVG.

    `threshold` is another one than the reports' own; it needs their `pairs`.
    """
    curves = {name: report.at_least(threshold) for name, report in reports.items()}
    return draw_curves(
        curves, x_label="concepts tracked, at least", y_label="share of nodes", log_y=True
    )


def draw_best(reports: Mapping[str, ConceptReport]) -> str:
    """Draw the held-out F1 of each concept's best node, best first, one curve an arm, as SVG.

    Each arm's concepts are in its own order. Dots say the rank and F1; the table has the names.
    """
    curves = {
        name: list(enumerate(sorted((row.f1 for row in report.concepts), reverse=True), start=1))
        for name, report in reports.items()
    }
    return draw_curves(curves, x_label="concept, by rank", y_label="F1 of its best node")


def arms_table(reports: Mapping[str, ConceptReport]) -> str:
    """Give the arms' summaries as a Markdown table, one column an arm."""
    summaries = {name: report.summary() for name, report in reports.items()}
    measures = list(next(iter(summaries.values())))
    rows = [[m, *(_cell(summary[m]) for summary in summaries.values())] for m in measures]
    return markdown_table(["", *summaries], rows)


def best_nodes_table(reports: Mapping[str, ConceptReport]) -> str:
    """Give each concept with its best node in every arm as a Markdown table.

    A cell is: F1 (precision / recall) node. The last column is the highest F1 that an arm's best
    node has on shifted labels.
    """
    by_name = {
        arm: {row.concept: row for row in report.concepts} for arm, report in reports.items()
    }
    concepts = list(dict.fromkeys(row.concept for r in reports.values() for row in r.concepts))
    rows = []
    for concept in concepts:
        found = {arm: rows_of_arm.get(concept) for arm, rows_of_arm in by_name.items()}
        known = [row for row in found.values() if row is not None]
        cells = [
            "-" if row is None
            else f"**{row.f1:.2f}** ({row.precision:.2f} / {row.recall:.2f}) `{row.node}`"
            for row in found.values()
        ]  # fmt: skip
        lucky = max(row.chance_f1 for row in known)
        rows.append([f"`{concept}`", _cell(known[0].n_positive), f"{known[0].always_f1:.2f}",
                     *cells, f"{lucky:.2f}"])  # fmt: skip
    return markdown_table(["concept", "tokens", "always", *reports, "shifted"], rows)


def thresholds_table(reports: Mapping[str, ConceptReport], thresholds: Sequence[float]) -> str:
    """Give how many nodes track concepts at several thresholds, as a Markdown table.

    A cell is: share of nodes that track any (the same on shifted labels), concepts per such node.
    """
    rows = []
    for threshold in thresholds:
        cells = []
        for report in reports.values():
            some = [n for n in report.tracked_at(threshold) if n]
            lucky = sum(n > 0 for n in report.tracked_at(threshold, by_chance=True))
            per_node = f"{sum(some) / len(some):.2f}" if some else "-"
            shares = f"{len(some) / report.n_nodes:.1%} ({lucky / report.n_nodes:.1%})"
            cells.append(f"{shares}, {per_node}")
        rows.append([f"{threshold:g}", *cells])
    return markdown_table(["gain at least", *reports], rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
