"""Pieces of the HTML pages: tables, lists, sections, and the document around them.

A document opens from disk without a network: no script, no font, no address in it. A fragment
carries the same style inside itself, for notebooks. Texts that come from data are escaped here;
where an argument is HTML already its description says so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tl_sparse.wording import escape


def document(title: str, body: str) -> str:
    """Give a whole page; the body is HTML."""
    return whole_page(title, f"<main>\n{body}\n</main>")


def whole_page(
    title: str, body: str, *, style: str = "", kind: str = "", script_hash: str = ""
) -> str:
    """Give a page all of whose body, HTML, is the caller's.

    `style` is CSS beside the pages' own, `kind` a CSS class of the body, and `script_hash`, as
    "sha256-...", names the one script that the browser may run; without it, none.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    policy += f"; script-src '{script_hash}'" if script_hash else ""
    named = f' class="{kind}"' if kind else ""
    return _PAGE.format(
        title=escape(title), policy=policy, style=STYLE + style, named=named, body=body
    )


def fragment(body: str) -> str:
    """Give HTML, style included, that leaves the page around it as it is; the body is HTML."""
    # Nested rules (CSS nesting) hold inside the fragment alone.
    style = f".tl-sparse{{{LIGHT}{_BOX}{_RULES}}}@media(prefers-color-scheme:dark){{"
    return f'<div class="tl-sparse"><style>{style}.tl-sparse{{{DARK}}}}}</style>\n{body}</div>'


def section(title: str, body: str) -> str:
    """Give a part of a page under its title; the body is HTML."""
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def details(summary: str, body: str, *, is_open: bool = False, kind: str = "") -> str:
    """Give what opens on a click; summary and body are HTML, `kind` is a CSS class."""
    style = f' class="{kind}"' if kind else ""
    opened = " open" if is_open else ""
    return f"<details{style}{opened}><summary>{summary}</summary>\n{body}</details>"


def warning(text: str, *, strong_first: bool = False) -> str:
    """Give a text that stands out, its first sentence in bold if asked for."""
    words = _strong_first(text) if strong_first else escape(text)
    return f'<p class="warning" role="note">{words}</p>'


def _strong_first(text: str) -> str:
    first, _, rest = text.partition(". ")
    return f"<strong>{escape(first)}.</strong> {escape(rest)}"


def numbers(some: Mapping[str, Any]) -> str:
    """Give names with their values."""
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{shown(value)}</dd></div>"
        for name, value in some.items()
    )
    return f"<dl>{rows}</dl>"


def table(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str] = ()) -> str:
    """Give rows as a table, numbers to the right; `kinds` are CSS classes, one for each row."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    style = {c: " class=number" * any(_is_number(row.get(c)) for row in rows) for c in columns}
    head = "".join(f'<th scope="col"{style[c]}>{escape(str(c))}</th>' for c in columns)
    marks = [f' class="{kind}"' for kind in kinds] or [""] * len(rows)
    body = "".join(
        f"<tr{mark}>" + "".join(f"<td{style[c]}>{shown(row.get(c))}</td>" for c in columns)
        + "</tr>\n" for row, mark in zip(rows, marks, strict=True)
    )  # fmt: skip
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write cells as a table in Markdown."""
    lines = [columns, *rows]
    written = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([written[0], "|" + "---|" * len(columns), *written[1:]])


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # a caller's own rounding, as "3.20" or "98.5%"
        return value.strip("+-%").replace(",", "").replace(".", "", 1).isdecimal()
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Write a value for a reader, escaped; "-" is none, or a number that is not finite."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return escape(str(value))


PALETTE = ("#1565b8", "#b84f00", "#00795c", "#a3357f", "#6b5b00", "#565d66")
"""The colours of curves on white, told apart by colour-blind readers too: blue, orange, ..."""

_PLAIN = """
color-scheme:light dark;--paper:#fff;--ink:#16191d;--soft:#565d66;--line:#8b929b;
--band:#f2f4f7;--positive:#1565b8;--negative:#b84f00;--warn:#fff4e0;--warn-line:#b84f00;
"""

LIGHT = _PLAIN + "".join(f"--c{i}:{colour};" for i, colour in enumerate(PALETTE))
"""The colours on a light ground, as CSS variables."""

DARK = """
--paper:#14171b;--ink:#e8eaed;--soft:#a9b1bb;--line:#737b86;
--band:#1e2329;--positive:#6db3ff;--negative:#ff9d4d;--warn:#33260f;--warn-line:#ff9d4d;
--c0:#6db3ff;--c1:#ff9d4d;--c2:#3fd0a4;--c3:#f08fd0;--c4:#e0d060;--c5:#a9b1bb;
"""
"""The colours on a dark ground."""

_RULES = """
*{box-sizing:border-box}
h1{font-size:1.75rem;line-height:1.2;margin:.2em 0 .6em}
h2{font-size:1.3rem;margin:2.2em 0 .6em;border-bottom:1px solid var(--line);padding-bottom:.25em}
h3{font-size:1.1rem;margin:1.6em 0 .5em}
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
.audit details{border-bottom:1px solid var(--band)}
.audit summary{font-weight:400;padding:.45em 0}
.audit .verdict{display:inline-block;min-width:7.4em;font-weight:600;white-space:nowrap}
.audit .says{color:var(--soft)}
.audit td:nth-child(2){min-width:13rem}
.audit td:last-child:nth-child(n+5){min-width:18rem}
.audit td:first-child,.audit td:nth-child(4){white-space:nowrap}
.holds>summary .verdict,tr.holds>td:first-child{color:var(--positive)}
.fails>summary .verdict,tr.fails>td:first-child{color:var(--negative);font-weight:700}
.not-tested>summary .verdict{color:var(--soft)}
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

_BODY = """
body{margin:0 auto;max-width:1240px;padding:1.5rem clamp(.8rem,3vw,2rem) 4rem;
background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
"""

_BOX = """
background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;padding:.8em 1em;
overflow-wrap:anywhere;
"""

STYLE = f":root{{{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}{_BODY}{_RULES}"
"""The CSS of a page: light and dark, without an address in it."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body{named}>
{body}
</body>
</html>
"""
