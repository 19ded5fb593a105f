"""Plotly figures of circuits, training runs, models and audits: `from tl_sparse import plots`.

Each `plot_*` returns a `plotly.graph_objects.Figure` and shows nothing: a notebook displays it as
the last line of a cell, `figure.write_html(path)` keeps it, `figure.update_layout(...)` changes
it. Several objects go into one figure as a mapping from name to object; without one, names are the
objects' own. Names come from data, hence Plotly's small HTML and its formulas are taken as letters.

Plotly is imported when a figure is made.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.auditing import AuditReport
from tl_sparse.circuit import Circuit, Site
from tl_sparse.curves import by_figure
from tl_sparse.data import Corpus
from tl_sparse.history import History
from tl_sparse.markup import PALETTE
from tl_sparse.pruning import Sweep
from tl_sparse.sites import SiteInfo, site_map
from tl_sparse.wording import visible

Curve = tuple[Sequence[float | int], Sequence[float | int]]
"""What lies across, and what lies up."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_COLUMNS = 4
"""Histograms that stand side by side."""


def plot_loss_against_edges(
    circuits: Circuit | Sweep | Iterable[Circuit | Sweep] | Mapping[str, Circuit | Sweep],
) -> Any:
    """Plot task loss against number of edges: the sizes that were tried, and the circuits.

    Of a circuit the line is stage two's (`edge_curve`: validation loss by edges asked for), and the
    large mark is the circuit itself after the clean-up; of a `pruning.Sweep` the line is its
    points. Edges are on a logarithmic axis: what has none isn't seen.
    """
    figure = _figure("edges", "task loss (nats)", log_x=True)
    targets: set[float] = set()
    for i, (name, each) in enumerate(_named(circuits, lambda one: one.task).items()):
        points = _tried(each)
        line = ([n for n, _ in points], [loss for _, loss in points])
        hover = "%{x:,} edges: %{y:.4g} nats"
        figure.add_trace(_line(name, line, i, hover=hover, mode="lines+markers"))
        if isinstance(each, Circuit):
            figure.add_trace(_circuit_mark(name, each, i))
            targets.add(each.target_loss)
    for target in sorted(t for t in targets if math.isfinite(t)):
        style = {"line_dash": "dot", "line_color": PALETTE[5], "line_width": 1}
        figure.add_hline(target, annotation_text=f"target {target:g}", **style)
    return figure


def _tried(each: Circuit | Sweep) -> list[tuple[int, float]]:
    if isinstance(each, Sweep):
        return [(point.n_edges, point.loss) for point in each.points]
    return sorted(each.edge_curve)


def _circuit_mark(name: str, circuit: Circuit, i: int) -> Any:
    import plotly.graph_objects as go

    whole = circuit.losses.get("model_validation", math.nan)
    said = f"{circuit.n_edges:,} edges, {circuit.n_nodes:,} nodes<br>validation loss %{{y:.4g}}"
    said += f"<br>test loss {circuit.losses.get('test', math.nan):.4g}"
    said += f"<br>whole model's validation loss {whole:.4g}"
    return go.Scatter(
        x=[circuit.n_edges],
        y=[circuit.losses.get("validation", math.nan)],
        name=f"{_label(name)}, circuit",
        mode="markers",
        marker={"color": _colour(i), "size": 13, "symbol": "diamond"},
        hovertemplate=said,
    )


def plot_training(histories: History | Iterable[History] | Mapping[str, History]) -> Any:
    """Plot validation loss, training loss and weight density over the tokens seen."""
    panels = {
        "validation_loss": "validation loss (nats per token)",
        "loss": "training loss (nats per token)",
        "weight_density": "weight density",
    }
    figure = _panels(tuple(panels.values()), columns=3)
    for i, (name, history) in enumerate(_named(histories, lambda one: "run").items()):
        for column, key in enumerate(panels, start=1):
            some = [record for record in history.records if key in record]
            curve = [record["tokens"] for record in some], [record[key] for record in some]
            trace = _line(name, curve, i, hover="%{x:,} tokens: %{y:.4g}")
            trace.update(legendgroup=str(i), showlegend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(title_text="tokens")
    figure.update_yaxes(type="log", col=3)
    return figure.update_layout(height=420)


def plot_density(model: HookedTransformer) -> Any:
    """Plot the density of each weight matrix and table: the share of its entries that aren't zero.

    A matrix that is all zero has no mark on the logarithmic axis; its name says so.
    """
    import plotly.graph_objects as go

    masked = set(getattr(model, "weight_masks", ()))
    rows = [
        (name, int((parameter != 0).sum()), parameter.numel(), tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2].startswith(("W_", "table"))
    ]
    figure = _figure("density", "", log_x=True)
    for i, (title, mine) in enumerate((("masked", True), ("not masked", False))):
        some = [row for row in rows if (row[0] in masked) == mine]
        if not some:
            continue
        density = [n / size for _, n, size, _ in some]
        figure.add_trace(
            go.Scatter(
                x=[d or None for d in density],
                y=[_matrix(name, n) for name, n, *_ in some],
                name=title,
                mode="markers+text",
                marker={"color": _colour(i), "size": 10, "symbol": ("circle", "square")[i]},
                text=[f"{d:.3g}" for d in density],
                textposition="middle right",
                customdata=[[n, size, " x ".join(map(str, s))] for _, n, size, s in some],
                hovertemplate="%{y} (%{customdata[2]})<br>%{customdata[0]:,} of "
                "%{customdata[1]:,} entries, density %{x:.4g}",
            )
        )
    order = [_matrix(name, n) for name, n, *_ in rows]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], automargin=True)
    figure.update_layout(height=140 + 22 * len(rows))
    return figure


def _matrix(name: str, n_nonzero: int) -> str:
    return _label(name if n_nonzero else f"{name} (all zero)")


@dataclass(frozen=True)
class Histogram:
    """How the activations of one site are spread, all nodes and positions together."""

    bounds: Float[Tensor, " _"]
    """Where bins begin and end: one more than there are bins."""
    shares: Float[Tensor, " _"]
    """For each bin, the share of all activations that lie in it and are not exactly 0."""
    zeros: float
    """The share of the activations that are exactly 0, as AbsTopK makes them."""


@torch.no_grad()
def activation_histograms(
    model: HookedTransformer,
    corpus: Corpus,
    sites: Sequence[Site | str] | None = None,
    *,
    n_tokens: int = 2**13,
    n_bins: int = 60,
    batch_size: int = 16,
) -> dict[Site, Histogram]:
    """Count the activations of some sites on validation text; by default of all prunable sites.

    The text is run twice: for the range of each site, then for its bins, which are of equal width.

    Raises:
        KeyError: If the model has no such site.
        ValueError: If a number is not positive, or an activation is NaN or infinite.
    """
    if min(n_tokens, n_bins, batch_size) < 1:
        given = f"{n_tokens}, {n_bins} and {batch_size}"
        raise ValueError(f"n_tokens, n_bins and batch_size are 1 or more, got {given}.")
    infos = _site_infos(model, sites)
    n_windows = max(1, min(n_tokens, corpus.validation.n_tokens) // model.cfg.n_ctx)
    windows = corpus.validation.windows(model.cfg.n_ctx, n_windows)
    counters = {info.hook_name: _Counter(info.site, n_bins) for info in infos}
    for step in (_Counter.measure, _Counter.count):
        hooks: list[Any] = [(name, partial(_see, step, one)) for name, one in counters.items()]
        with model.hooks(fwd_hooks=hooks), fast_attention(model):
            for batch in windows.split(batch_size):
                model(batch.to(next(model.parameters()).device), return_type=None)
    return {counter.site: counter.histogram() for counter in counters.values()}


def plot_activations(
    model: HookedTransformer,
    corpus: Corpus,
    sites: Sequence[Site | str] | None = None,
    *,
    n_tokens: int = 2**13,
    n_bins: int = 60,
) -> Any:
    """Plot histograms of the activations at some sites, such as "0.mlp_neuron", on validation text.

    Exact zeros have no bar: their share is in the title of each. Bars are shares of all activations
    on a logarithmic axis, so bars and zeros together are 1.

    Raises:
        KeyError: If the model has no such site.
        ValueError: If a number is not positive, or an activation is NaN or infinite.
    """
    import plotly.graph_objects as go

    found = activation_histograms(model, corpus, sites, n_tokens=n_tokens, n_bins=n_bins)
    titles = tuple(f"{site}: {some.zeros:.1%} zeros" for site, some in found.items())
    figure = _panels(titles, columns=_COLUMNS)
    for i, (site, some) in enumerate(found.items()):
        bars = go.Bar(
            x=((some.bounds[1:] + some.bounds[:-1]) / 2).tolist(),
            y=some.shares.tolist(),
            width=some.bounds.diff().tolist(),
            name=str(site),
            marker={"color": _colour(0), "line": {"width": 0}},
            hovertemplate="around %{x:.3g}: %{y:.3%} of the activations",
            showlegend=False,
        )
        figure.add_trace(bars, row=1 + i // _COLUMNS, col=1 + i % _COLUMNS)
    figure.update_yaxes(type="log", tickformat=".0e")
    figure.update_layout(bargap=0, height=120 + 230 * math.ceil(len(found) / _COLUMNS))
    return figure


def plot_audit(report: AuditReport) -> Any:
    """Plot the curves behind an audit's lines; the title has the verdicts' number.

    `report` itself, as the last line of a cell, shows every claim with its lines.
    """
    figures = by_figure(report.curves)
    names = list(dict.fromkeys(name for curves in figures.values() for name in curves))
    labels = [next(iter(some)) if len(some) == 1 else "value" for some in figures.values()]
    figure = _panels(tuple(map(_label, labels)) or ("no curves",), columns=2)
    for i, (x, curves) in enumerate(figures.items()):
        place = {"row": 1 + i // 2, "col": 1 + i % 2}
        for name, points in curves.items():
            curve, j = ([a for a, _ in points], [b for _, b in points]), names.index(name)
            trace = _line(name, curve, j, hover="%{x:.4g}: %{y:.4g}", mode="lines+markers")
            first = not any(trace.name == other.name for other in figure.data)
            figure.add_trace(trace.update(legendgroup=trace.name, showlegend=first), **place)
        figure.update_xaxes(title_text=_label(x), **place)
    verdicts = list(report.verdicts().values())
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("holds", "fails", "not tested"))
    figure.update_layout(
        title={"text": _label(f"Audit of the circuit for {report.task}: {counts}")},
        height=200 + 280 * math.ceil(max(1, len(figures)) / 2),
    )
    return figure


class _Counter:
    """Counts the activations of one site: their range first, then how many lie in each bin."""

    def __init__(self, site: Site, n_bins: int) -> None:
        self.site, self.bins = site, torch.zeros(n_bins, dtype=torch.float64)
        self.low, self.high = math.inf, -math.inf
        self.n = self.n_zeros = 0

    def measure(self, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            raise ValueError(f"The activations at {self.site} have NaN or infinite values.")
        self.low = min(self.low, values.min().item())
        self.high = max(self.high, values.max().item())

    def count(self, values: Tensor) -> None:
        live, (low, high) = values[values != 0], self.range()
        self.n, self.n_zeros = self.n + len(values), self.n_zeros + len(values) - len(live)
        self.bins += torch.histc(live, len(self.bins), low, high).cpu().double()

    def range(self) -> tuple[float, float]:
        pad = 0.5 if self.low == self.high else 0.0
        return self.low - pad, self.high + pad

    def histogram(self) -> Histogram:
        bounds = torch.linspace(*self.range(), len(self.bins) + 1)
        return Histogram(bounds, (self.bins / self.n).float(), self.n_zeros / self.n)


def _see(step: Any, counter: _Counter, activation: Tensor, hook: Any) -> None:
    step(counter, activation.detach().flatten().float())


def _site_infos(model: HookedTransformer, sites: Sequence[Site | str] | None) -> list[SiteInfo]:
    if sites is None:
        return list(site_map(model).sites)
    known = site_map(model, final=True)
    return [known[Site.parse(site) if isinstance(site, str) else site] for site in sites]


def _named(some: Any, own_name: Any) -> dict[str, Any]:
    """Name what is to be drawn: as the mapping does, or by its own name, numbered if it recurs."""
    if isinstance(some, Mapping):
        return dict(some)
    each = [some] if isinstance(some, Circuit | Sweep | History) else list(some)
    names = [own_name(one) for one in each]
    return {
        name if names.count(name) == 1 else f"{name} {1 + names[:i].count(name)}": one
        for i, (name, one) in enumerate(zip(names, each, strict=True))
    }


def _label(text: str) -> str:
    """Write any text so that Plotly shows its letters: no tags, links, entities or formulas."""
    return html.escape(visible(text), quote=False).replace("$", "&#36;")


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _line(name: str, curve: Curve, i: int, *, hover: str, mode: str = "lines") -> Any:
    import plotly.graph_objects as go

    line = {"color": _colour(i), "dash": _DASHES[i % len(_DASHES)]}
    return go.Scatter(
        x=list(curve[0]), y=list(curve[1]), name=_label(name), mode=mode, line=line,
        hovertemplate=hover,
    )  # fmt: skip


def _figure(x: str, y: str, *, log_x: bool = False) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure(layout={"template": "plotly_white"})
    figure.update_xaxes(title_text=x, type="log" if log_x else "linear")
    return figure.update_yaxes(title_text=y)


def _panels(titles: Sequence[str], *, columns: int) -> Any:
    from plotly.subplots import make_subplots

    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=list(titles))
    under = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
    return figure.update_layout(template="plotly_white", legend=under, margin_b=100)
