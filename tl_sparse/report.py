"""`write_page`: one HTML page with what was compared, drawn and in words.

The page opens from disk without a network: no script, no font, no address in it. It shows the
comparison as a table, the circuits as drawings and in words, and the training curves, and says that
nothing in it was audited. Every text that comes from data is escaped, with characters that can't be
seen or that turn the line round written as their escapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_sparse.circuit import Circuit
from tl_sparse.curves import draw_curves
from tl_sparse.drawing import draw_circuit
from tl_sparse.files import write_text
from tl_sparse.history import History
from tl_sparse.interface import residual_links
from tl_sparse.wording import Explanation, escape

NOT_AUDITED = (
    "Not audited. A circuit that reaches the target loss may still compute the task in another way "
    "than the model does. Circuits are not believed until audited: `tl-sparse audit` tries to "
    "prove one wrong."
)


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
    note: str = ""
    """What a reader must know of this side first, e.g. that the model cannot do the task."""


def write_page(
    path: str | Path,
    *,
    title: str,
    arms: Sequence[Arm],
    rows: Sequence[Mapping[str, Any]] = (),
    lead: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the page that compares some models and their circuits, whole or not at all.

    `rows` is the table, one mapping from column to value for each row; `lead` are the
    caller's paragraphs for the top; `provenance` stands at the foot. The first arm is open.

    Raises:
        OSError: If the page can't be written.
    """
    write_text(path, page(title, arms, rows=rows, lead=lead, provenance=provenance or {}))


def page(
    title: str,
    arms: Sequence[Arm],
    *,
    rows: Sequence[Mapping[str, Any]],
    lead: Sequence[str],
    provenance: Mapping[str, Any],
) -> str:
    """Give the page as HTML text."""
    opened = next((arm for arm in arms if arm.circuit or arm.explanation), None)
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(words)}</p>" for words in lead),
        _WHAT,
        f'<p class="warning" role="note">{_strong_first(NOT_AUDITED)}</p>',
        _section("Comparison", _table(rows)) if rows else "",
        *(_arm(arm, is_open=arm is opened) for arm in arms),
        _training(arms),
        _section("Where this comes from", _numbers(provenance)) if provenance else "",
    ]
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, parts)))


def _arm(arm: Arm, *, is_open: bool) -> str:
    parts = []
    if arm.note:
        parts.append(f'<p class="warning" role="note">{escape(arm.note)}</p>')
    if arm.description:
        parts.append(f"<p>{escape(arm.description)}</p>")
    if arm.numbers:
        parts.append(_numbers(arm.numbers))
    if arm.circuit is not None:
        parts.append(_details("The circuit drawn", _figure(arm), is_open))
    if arm.explanation is not None:
        text = "\n".join(map(escape, str(arm.explanation).split("\n")))
        parts.append(_details("The circuit in words", f'<pre tabindex="0">{text}</pre>', is_open))
        parts.append(_details("Every step as a table", _steps(arm.explanation), False))
    return _section(arm.name, "\n".join(parts)) if parts else ""


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
    return more + _table([_step(row) for row in rows])


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
    return f'<figure><div class="wide" tabindex="0">{svg}</div>{_LEGEND}</figure>'


def _by_size(pair: tuple[str, float]) -> float:
    return -abs(pair[1])


def _training(arms: Sequence[Arm]) -> str:
    histories = {arm.name: arm.history for arm in arms if arm.history is not None}
    if not histories:
        return ""
    figures = []
    for column, label, is_log in (
        ("validation_loss", "validation loss (nats per token)", False),
        ("weight_density", "weight density", True),
    ):
        curves = {
            name: [(float(r["tokens"]), float(r[column])) for r in history.records if column in r]
            for name, history in histories.items()
        }
        figures.append(draw_curves(curves, x_label="tokens", y_label=label, log_y=is_log))
    return _section("Training", f'<div class="curves">{"".join(figures)}</div>')


# -- pieces of HTML -------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _details(title: str, body: str, is_open: bool) -> str:
    return f"<details{' open' if is_open else ''}><summary>{title}</summary>\n{body}</details>"


def _strong_first(text: str) -> str:
    first, _, rest = text.partition(". ")
    return f"<strong>{escape(first)}.</strong> {escape(rest)}"


def _numbers(numbers: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{_value(value)}</dd></div>"
        for name, value in numbers.items()
    )
    return f"<dl>{rows}</dl>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    style = {c: " class=number" * any(_is_number(row.get(c)) for row in rows) for c in columns}
    head = "".join(f'<th scope="col"{style[c]}>{escape(str(c))}</th>' for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{style[c]}>{_value(row.get(c))}</td>" for c in columns) + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # a caller's own rounding, as "3.20" or "98.5%"
        return value.strip("+-%").replace(",", "").replace(".", "", 1).isdecimal()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return escape(str(value))


_WHAT = """<p>What you see: a task, and for each model the circuit that does it, as far as one was
found. A circuit is the set of single channels (nodes) and single nonzero weights between them
(edges) that is enough for the task; all else is held at a constant. The fewer edges, the more of it
can be read. Follow a drawing from the left, where tokens come in, to the right, where the answers'
logits are.</p>"""

_LEGEND = """<figcaption><ul class="legend">
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="positive" stroke-width="3" d="M1,5H33"/></svg>positive weight (the wider, the larger)</li>
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="negative" stroke-width="3" d="M1,5H33"/></svg>negative weight</li>
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="residual" d="M1,5H33"/></svg>same channel of the residual stream, no weight</li>
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="look" d="M1,5H33"/></svg>q and k choose the positions that v is taken from</li>
<li>Hn: attention head n</li></ul></figcaption>"""

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#16191d;--soft:#565d66;--line:#8b929b;
--band:#f2f4f7;--positive:#1565b8;--negative:#b84f00;--warn:#fff4e0;--warn-line:#b84f00;
--c0:#1565b8;--c1:#b84f00;--c2:#00795c;--c3:#a3357f;--c4:#6b5b00;--c5:#565d66}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e8eaed;--soft:#a9b1bb;--line:#737b86;
--band:#1e2329;--positive:#6db3ff;--negative:#ff9d4d;--warn:#33260f;--warn-line:#ff9d4d;
--c0:#6db3ff;--c1:#ff9d4d;--c2:#3fd0a4;--c3:#f08fd0;--c4:#e0d060;--c5:#a9b1bb}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:1.5rem clamp(.8rem,3vw,2rem) 4rem;
background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.2;margin:.2em 0 .6em}
h2{font-size:1.3rem;margin:2.2em 0 .6em;border-bottom:1px solid var(--line);padding-bottom:.25em}
p{max-width:75ch}
.warning{background:var(--warn);border-left:4px solid var(--warn-line);padding:.6em .9em}
.wide{overflow-x:auto}
.wide>svg{display:block;max-width:100%;height:auto}
table{border-collapse:collapse;font-size:.92rem}
th,td{text-align:left;padding:.35em .6em;border-bottom:1px solid var(--band);
vertical-align:top;overflow-wrap:normal}
th{color:var(--soft);font-weight:600;border-color:var(--line)}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.5rem 1.5rem}
dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-variant-numeric:tabular-nums}
figure{margin:1em 0}
pre{background:var(--band);padding:1em;overflow-x:auto;font:13.5px/1.5 ui-monospace,monospace;
border-radius:8px;max-height:40rem;overflow-y:auto}
pre,td,svg text{direction:ltr;unicode-bidi:bidi-override}
summary{cursor:pointer;font-weight:600;padding:.4em 0}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3em 1.4em;padding:0;margin:.6em 0;
font-size:.88rem;color:var(--soft)}
.legend svg{margin-right:.5em;vertical-align:middle}
.curves{display:grid;gap:1rem 2rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.plot{width:100%;height:auto;font:13px system-ui,sans-serif}
.plot.key{width:34px}
.plot text{fill:var(--soft);text-anchor:middle}
.plot text.start{text-anchor:start;fill:var(--ink)}
.plot text.end{text-anchor:end}
.plot path{fill:none;stroke-width:2.2;stroke-linejoin:round}
.plot path.grid{stroke:var(--line);stroke-width:.6;opacity:.55}
""" + "".join(
    f".c{i} path{{stroke:var(--c{i});stroke-dasharray:{dash}}}.c{i} circle{{fill:var(--c{i})}}\n"
    for i, dash in enumerate(("none", "7 4", "2 4", "9 3 2 3", "12 4", "4 2"))
)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
