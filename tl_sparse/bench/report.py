"""The report of a benchmark: JSON with every raw value, and a table in Markdown."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_sparse.bench.sizes import SIZES
from tl_sparse.bench.timing import Result, Row
from tl_sparse.files import write_text

FORMAT = "tl_sparse.bench/1"

TITLES = {
    "training": "Training step",
    "memory": "Peak memory of a training step",
    "inference": "Forward pass without gradients",
    "linear": "Linear layers of one block",
    "projection": "Projection of one matrix onto its k largest entries",
    "abstopk": "AbsTopK, forward and backward",
    "pruning": "Pruning",
    "audit": "Quick audit of a made-up circuit",
    "compiled": "Answers to a batch of prompts",
}


@dataclass
class BenchReport:
    """What was measured, and on what."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    interrupted: bool = False
    """Whether Ctrl-C ended it early."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain JSON values."""
        return {
            "format": FORMAT,
            "interrupted": self.interrupted,
            "machine": self.machine,
            "settings": self.settings,
            "measurements": [result.to_dict() for result in self.results],
        }

    def save(self, path: Path) -> None:
        """Write the JSON file, and the table beside it with the suffix .md."""
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")
        write_text(path.with_suffix(".md"), self.markdown())

    def markdown(self) -> str:
        """Write the tables, one for each kind."""
        lines = ["# Benchmark", "", *self._header()]
        for kind in dict.fromkeys(result.measurement.kind for result in self.results):
            some = [result for result in self.results if result.measurement.kind == kind]
            unit = some[0].measurement.unit
            what = "time" if unit == "s" else unit
            lines += ["", f"## {TITLES.get(kind, kind)}", ""]
            lines += [f"| size | case | candidate | ratio | {what} | rounds |"]
            lines += ["|---|---|---|---:|---:|---:|"]
            for result in some:
                lines += _rows(result)
        return "\n".join(lines) + "\n"

    def _header(self) -> list[str]:
        m = self.machine
        hardware = " and ".join(filter(None, (m["gpu"], m["cpu"])))
        lines = [
            "Median (first to third quartile). The ratio is that of a candidate's value to the "
            "baseline's in the same round; the candidates of a measurement ran in turn. Lower is "
            "better.",
            "",
            f"- device {m['device']}: {hardware}, {m['n_cores']} cores, {m['threads']} threads, "
            f"{m['memory_gb']} GB; load before: {m['load_before']}",
            "- " + ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
            f"- commit {m['commit'] or 'unknown'}",
        ]
        names = dict.fromkeys(result.measurement.size for result in self.results)
        lines += [f"- {name}: {SIZES[name]}" for name in names if name in SIZES]
        if "demo" in names:
            lines.append(f"- demo: the sparse model, task and circuit of {self.settings['demo']}")
        if self.interrupted:
            lines.append("- stopped by Ctrl-C: what was done until then")
        return lines


def _rows(result: Result) -> list[str]:
    one = result.measurement
    rows = result.rows()
    if not rows:
        return [f"| {one.size} | {one.case} | {result.note or 'nothing'} | | | 0 |"]
    return [_row(result, row) for row in rows]


def _row(result: Result, row: Row) -> str:
    one = result.measurement
    low, middle, high = row.value
    show = seconds if one.unit == "s" else "{:,.1f}".format
    spread = f" ({show(low)} to {show(high)})" if row.n_rounds > 1 else ""
    if row.name == result.baseline:
        ratio = "1 (baseline)"
    elif row.ratio is None:
        ratio = "-"
    else:
        ratio = f"{row.ratio[1]:.3g}"
        if row.n_rounds > 1:
            ratio += f" ({row.ratio[0]:.3g} to {row.ratio[2]:.3g})"
    rounds = f"{row.n_rounds}{', ' + result.note if result.note else ''}"
    return f"| {one.size} | {one.case} | {row.name} | {ratio} | {show(middle)}{spread} | {rounds} |"


def seconds(value: float) -> str:
    """Give a time with its unit.

    Examples:
        >>> seconds(2.34567), seconds(0.0123), seconds(4.5e-05)
        ('2.35 s', '12.3 ms', '45 us')
    """
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"
