"""Curves drawn as inline SVG: a pure function from data to text.

Like the drawing of a circuit it carries no script and no address, and is coloured by the CSS of the
page around it (classes `plot` and `c0` to `c5`).
"""

import math
from collections.abc import Mapping, Sequence

from tl_sparse.wording import escape


def draw_curves(
    curves: Mapping[str, Sequence[tuple[float | int, float | int]]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Draw named curves as a figure with axes and a legend.

    Left out are points that aren't finite, and those at 0 or below on a logarithmic axis.
    """

    def fits(value: float | int, logarithmic: bool) -> bool:
        return math.isfinite(value) and (value > 0 or not logarithmic)

    points = {
        name: [(float(x), float(y)) for x, y in some if fits(x, log_x) and fits(y, log_y)]
        for name, some in curves.items()
    }
    every = [p for some in points.values() for p in some]
    if not every:
        return f"<figure><p>There is no {escape(y_label)} to draw.</p></figure>"
    x_values, y_values = [x for x, _ in every], [y for _, y in every]
    low, high = min(x_values), max(x_values)
    if not log_x and (0 <= low <= high / 2 or 0 <= low == high):
        low = 0.0  # it is shown unless it is far away
    x_ticks = (_log_ticks if log_x else _ticks)(low, high)
    y_ticks = (_log_ticks if log_y else _ticks)(min(y_values), max(y_values))
    left, right, top, bottom = 56.0, 540.0, 30.0, 250.0

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = _height(x, x_ticks, log_x), _height(y, y_ticks, log_y)
        return left + across * (right - left), bottom - up * (bottom - top)

    parts = []
    for tick in x_ticks:
        x, _ = at(tick, y_ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}">{_short(tick)}</text>')
    for tick in y_ticks:
        _, y = at(x_ticks[0], tick)
        parts.append(f'<path class="grid" d="M{left},{y:.1f}H{right}"/>')
        parts.append(f'<text class="end" x="{left - 8}" y="{y + 4:.1f}">{_short(tick)}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 38}">{escape(x_label)}</text>')
    parts.append(f'<text class="start" x="4" y="16">{escape(y_label)}</text>')
    for i, (name, some) in enumerate(points.items()):
        places = [at(x, y) for x, y in some]
        line = "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = "".join(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6"><title>{escape(name)}: {_exact(x)} '
            f"{escape(x_label)}, {y:.4g}</title></circle>"
            for (px, py), (x, y) in zip(places, some, strict=True)
        )
        parts.append(f'<g class="c{i % 6}"><path d="M{line}"/>{dots}</g>' if places else "")
    legend = "".join(
        f'<li><svg class="plot key" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true">'
        f'<g class="c{i % 6}"><path d="M1,5H33"/></g></svg>{escape(name)}</li>'
        for i, name in enumerate(points)
    )
    return (
        f'<figure><svg class="plot" role="img" viewBox="0 0 560 296"><title>{escape(y_label)} '
        f"against {escape(x_label)}</title>{''.join(parts)}</svg>"
        f'<ul class="legend">{legend}</ul></figure>'
    )


def by_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> dict[str, dict[str, Sequence[tuple[float, float]]]]:
    """Sort an audit's curves by what lies across: those named "x, y" go together for each x.

    Examples:
        >>> by_figure({"edges, loss": [(1.0, 0.5)], "edges, accuracy": [(1.0, 0.9)]}).keys()
        dict_keys(['edges'])
    """
    figures: dict[str, dict[str, Sequence[tuple[float, float]]]] = {}
    for name, points in curves.items():
        x, comma, y = name.rpartition(", ")
        figures.setdefault(x if comma else "x", {})[y] = points
    return figures


def _height(value: float, ticks: Sequence[float], logarithmic: bool) -> float:
    """Give where a value lies between the first tick, 0, and the last, 1."""
    scale = math.log if logarithmic else float
    low, high = scale(ticks[0]), scale(ticks[-1])
    return (scale(value) - low) / ((high - low) or 1.0)


def _ticks(low: float, high: float) -> list[float]:
    """Give four to eight round numbers that enclose a range."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Give 1, 2, 5 and their tens that enclose a range of positive numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    below = max([t for t in every if t <= low * (1 + 1e-9)], default=every[0])
    above = min([t for t in every if t >= high * (1 - 1e-9) and t > below], default=every[-1])
    inside = [t for t in every if below <= t <= above]
    return inside if len(inside) <= 8 else [t for t in inside if t in (below, above) or _is_ten(t)]


def _is_ten(value: float) -> bool:
    return math.isclose(math.log10(value), round(math.log10(value)), abs_tol=1e-9)


def _exact(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _short(value: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
