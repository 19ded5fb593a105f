"""A figure's numbers as JSON, a page in Markdown and one in HTML: whatever of it is done so far."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_sparse.curves import draw_curves
from tl_sparse.files import write_text
from tl_sparse.markup import document, fragment, markdown_table, section, table
from tl_sparse.sweeps.cells import Cell
from tl_sparse.sweeps.figures.arms import NOTE
from tl_sparse.sweeps.figures.contents import CONTENTS, TABLES, TITLES, Curves
from tl_sparse.sweeps.figures.finished import Finished
from tl_sparse.sweeps.plans import FIGURES
from tl_sparse.sweeps.presets import Preset
from tl_sparse.sweeps.store import Store
from tl_sparse.sweeps.text import Text
from tl_sparse.wording import escape

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """What a figure says so far."""

    figure: str
    about: dict[str, Any]
    """Preset, text, and how many of the cells are done."""
    tables: dict[str, list[dict[str, Any]]]
    curves: Curves
    axes: tuple[str, str]
    notes: tuple[str, ...] = ()
    """Sentences that what is shown can't do without."""

    def save(self, folder: str | Path) -> None:
        """Write `<figure>.json`, `.md` and `.html` into a folder, each whole or not at all.

        Raises:
            OSError: If they can't be written.
        """
        place = Path(folder)
        write_text(place / f"{self.figure}.json", json.dumps(self.to_dict(), indent=1) + "\n")
        write_text(place / f"{self.figure}.md", self.markdown())
        write_text(place / f"{self.figure}.html", self.html())

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain JSON values."""
        return {"about": self.about, "tables": self.tables, "curves": self.curves} | (
            {"notes": list(self.notes)} if self.notes else {}
        )

    def drawing(self) -> str:
        """Draw the curves as SVG."""
        x, y = self.axes
        return draw_curves(
            self.curves, x_label=x, y_label=y,
            log_x=x.startswith("nonzeros"), log_y=y.startswith(("edges", "share")),
        )  # fmt: skip

    def markdown(self, *, level: int = 2) -> str:
        """Write title, figure and tables in Markdown."""
        marks = "#" * level
        lines = [f"{marks} {TITLES[self.figure]}", "", self._progress(), ""]
        if any(self.curves.values()):
            lines += [self.drawing(), ""]
        for note in self.notes:
            lines += [note, ""]
        for name, rows in self.tables.items():
            if rows:
                lines += [f"{TABLES[name]}:", "", rows_in_markdown(rows), ""]
        return "\n".join(lines)

    def html(self) -> str:
        """Write a page that opens from disk."""
        title = TITLES[self.figure]
        return document(title, f"<h1>{title}</h1>\n{self._body()}")

    def _repr_html_(self) -> str:
        """Give what notebooks show: the figure and its tables."""
        return fragment(f"<h3>{TITLES[self.figure]}</h3>\n{self._body()}")

    def _body(self) -> str:
        body = [f"<p>{self._progress()}</p>"]
        if any(self.curves.values()):
            body.append(self.drawing())
        body += [f"<p>{escape(note)}</p>" for note in self.notes]
        for name, rows in self.tables.items():
            if rows:
                body.append(section(TABLES[name], table([_readable(row) for row in rows])))
        return "\n".join(body)

    def _progress(self) -> str:
        done, asked = self.about["done"], self.about["cells"]
        seeds = ", ".join(map(str, self.about["seeds"]))
        whole = "all" if done == asked else f"{done} of"
        return f"Preset {self.about['preset']}, seeds {seeds}: {whole} {asked} cells are done."


def summarise(figure: str, preset: Preset, text: Text, store: Store) -> Summary:
    """Make a figure's numbers from what is done.

    Raises:
        ValueError: If a cell's file can't be read.
    """
    done = Finished(FIGURES[figure](preset, text), store)
    return _summary(figure, preset, text, done)


def comparison(
    preset: Preset, text: Text, cells: Sequence[Cell], store: Store, *, figure: str = "compare"
) -> Summary:
    """Make the numbers of a figure from cells of one's own, in place of its plan's.

    That is by default a comparison of sparse models, their dense controls and SAEs on those.
    """
    return _summary(figure, preset, text, Finished(cells, store))


def _summary(figure: str, preset: Preset, text: Text, done: Finished) -> Summary:
    about = {
        "figure": figure, "preset": preset.name, "seeds": list(preset.seeds), "text": text.spec(),
        "cells": done.n_asked, "done": len(done.results),
    }  # fmt: skip
    shown = CONTENTS[figure](preset, text, done)
    notes = (NOTE,) if shown.tables.get("sae tasks") else ()
    return Summary(figure, about, shown.tables, shown.curves, shown.axes, notes)


def rows_in_markdown(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table, numbers and estimates for people."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    shown = [_readable(row) for row in rows]
    return markdown_table(columns, [[row.get(c, "-") for c in columns] for row in shown])


def _readable(row: Row) -> dict[str, str]:
    return {name: _written(value) for name, value in row.items()}


def _written(value: Any) -> str:
    """Write a number, an estimate with its interval, or a list of counts."""
    if value is None:
        return "-"
    if isinstance(value, list) and any(isinstance(v, float) for v in value):
        middle, *interval = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in value)
        return f"{middle} ({' to '.join(interval)})" if interval else middle
    if isinstance(value, list):
        return ", ".join("-" if v is None else str(v) for v in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
