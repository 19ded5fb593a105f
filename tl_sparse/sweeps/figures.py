"""A figure's numbers as JSON, a page in Markdown and one in HTML: whatever of it is done so far."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_sparse.curves import draw_curves
from tl_sparse.files import write_text
from tl_sparse.markup import document, fragment, markdown_table, section, table
from tl_sparse.sweeps.arms import (
    NOTE,
    SAE_ARM,
    arm_rows,
    sae_rows,
    sae_task_rows,
    three_arm_rows,
)
from tl_sparse.sweeps.capabilities import bits_curves, bits_rows, cost_rows
from tl_sparse.sweeps.cells import Cell, Text
from tl_sparse.sweeps.means import geometric_mean
from tl_sparse.sweeps.plans import ABLATIONS, FIGURES, ablated_model, is_dense
from tl_sparse.sweeps.presets import Preset
from tl_sparse.sweeps.results import (
    Finished,
    by_recipe,
    mean,
    method_rows,
    model_rows,
    stage_rows,
    task_rows,
    verdict_rows,
)
from tl_sparse.sweeps.store import Store
from tl_sparse.wording import escape

Row = Mapping[str, Any]
Curves = dict[str, list[tuple[float, float]]]

TITLES = {
    "compare": "A sparse model and its dense control",
    "figure2": "Edges against target loss, sparse and dense",
    "figure3": "Validation loss against edges, over width and nonzeros",
    "activation": "The density of activations",
    "optimizer": "The optimiser without one of its parts",
    "methods": "Learned masks against attribution",
    "capability": "What sparsity costs in prediction",
}

TABLES = {
    "targets": "At each target loss, on the tasks that both arms compared have a circuit for",
    "stages": "The same at the target of 0.15, after each stage of the pruner",
    "arms": "The arms at the target of 0.15: circuits with edges, as geometric means over tasks",
    "saes": "The SAEs, scored on validation text",
    "sae tasks": "Circuits of latents at the target of 0.15, each seed's",
    "models": "The models, and their circuits at the target of 0.15",
    "tasks": "Edges at the target of 0.15, each seed's",
    "audit": "Claims of the audit that hold",
    "optimizer": "Validation loss, nats a token",
    "methods": "Edges between the nodes that attribution keeps, as a multiple of learned masks'",
    "bits": "Bits per byte of the validation text, means over seeds",
    "cost": "What fewer nonzero weights cost the sparse model at equal width",
}


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
            log_x=x.startswith("nonzeros"), log_y=y.startswith("edges"),
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


def comparison(preset: Preset, text: Text, cells: Sequence[Cell], store: Store) -> Summary:
    """Make the numbers of a comparison of sparse models, their dense control and SAEs on it."""
    done = Finished(cells, store)
    tables = _arms(done, preset.targets) | {"tasks": task_rows(done), "audit": verdict_rows(done)}
    axes = ("target loss (nats)", "edges (geometric mean over tasks)")
    return Summary(
        "compare", _about("compare", preset, text, done), tables,
        _over_targets(tables["targets"]), axes, _notes(tables),
    )  # fmt: skip


def _arms(done: Finished, targets: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """Make the tables of the arms, those of SAEs being empty where there are none."""
    return {
        "targets": three_arm_rows(done, targets),
        "stages": stage_rows(done),
        "arms": arm_rows(done),
        "saes": sae_rows(done),
        "sae tasks": sae_task_rows(done),
        "models": model_rows(done),
    }


def _notes(tables: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    return (NOTE,) if tables.get("sae tasks") else ()


def _about(figure: str, preset: Preset, text: Text, done: Finished) -> dict[str, Any]:
    return {
        "figure": figure, "preset": preset.name, "seeds": list(preset.seeds), "text": text.spec(),
        "cells": done.n_asked, "done": len(done.results),
    }  # fmt: skip


def summarise(figure: str, preset: Preset, text: Text, store: Store) -> Summary:
    """Make a figure's numbers from what is done.

    Raises:
        ValueError: If a cell's file can't be read.
    """
    done = Finished(FIGURES[figure](preset, text), store)
    about = _about(figure, preset, text, done)
    tables: dict[str, list[dict[str, Any]]] = {}
    curves: Curves = {}
    axes = ("validation loss (nats a token)", "edges (geometric mean over tasks)")
    if figure == "figure2":
        tables = _arms(done, preset.targets) | {"audit": verdict_rows(done)}
        curves, axes = _over_targets(tables["targets"]), ("target loss (nats)", axes[1])
    elif figure in ("figure3", "activation"):
        tables = {"models": model_rows(done), "audit": verdict_rows(done)}
        curves = _frontier(done) if figure == "figure3" else _over_activation(tables["models"])
        axes = axes if figure == "figure3" else ("activation density", axes[1])
    elif figure == "optimizer":
        tables = {"optimizer": optimizer_rows(preset, text, done)}
    elif figure == "capability":
        tables = {"bits": bits_rows(preset, text, done), "cost": cost_rows(done)}
        curves, axes = bits_curves(done), ("nonzeros in blocks", "bits per byte")
    else:
        tables = {"methods": method_rows(done)}
    return Summary(figure, about, tables, curves, axes, _notes(tables))


def optimizer_rows(preset: Preset, text: Text, done: Finished) -> list[dict[str, Any]]:
    """Give a row for each change of the optimiser: mean loss, and the difference it makes."""
    rows, base = [], {}
    for name, changes in ABLATIONS.items():
        cells = {s: ablated_model(preset, text, seed=s, changes=changes) for s in preset.seeds}
        found = {s: done.results[c.key] for s, c in cells.items() if c.key in done.results}
        losses = {s: r["validation_loss"] for s, r in found.items() if not r.get("diverged")}
        base = base or losses
        both = losses.keys() & base.keys()
        rows.append(
            {
                "change": name,
                "seeds": len(found),
                "diverged": len(found) - len(losses),
                "validation loss": round(mean([*losses.values()]), 4) if losses else None,
                "difference": round(mean([losses[s] - base[s] for s in both]), 4) if both else None,
            }
        )
    return rows


def _over_targets(rows: Sequence[Row]) -> Curves:
    arms = {"sparse": "sparse edges", "dense, nearest in loss": "dense edges"}
    if any(row.get("SAE edges") for row in rows):
        arms[SAE_ARM] = "SAE edges"
    return {
        arm: [(row["target loss"], row[column][0]) for row in rows if row.get(column)]
        for arm, column in arms.items()
    }


def _over_activation(rows: Sequence[Row]) -> Curves:
    some = [row for row in rows if row["arm"] == "sparse" and row["edges"]]
    points = sorted((row["activation density"], row["edges"][0]) for row in some)
    return {"sparse": points}


def _frontier(done: Finished) -> Curves:
    """Join models of one number of nonzeros over widths; on tasks that every model has."""
    models = [*done.models.values()]
    per_model = {m.key: done.edges(m) for m in models}
    some = [set(edges) for edges in per_model.values() if edges]
    common = set.intersection(*some) if some else set()
    curves: Curves = {}
    for seeds in by_recipe(models).values():
        counts = [n for m in seeds for t, n in per_model[m.key].items() if t in common]
        if not counts:
            continue
        result = done.results[seeds[0].key]
        nonzeros = result["n_nonzero_blocks"]
        name = "dense" if is_dense(seeds[0]) else f"sparse, {round(nonzeros, -2):,} nonzeros"
        loss = mean([done.loss(m) for m in seeds])
        curves.setdefault(name, []).append((loss, geometric_mean(counts)))
    return {name: sorted(points) for name, points in sorted(curves.items())}


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
        middle, low, high = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in value)
        return f"{middle} ({low} to {high})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
