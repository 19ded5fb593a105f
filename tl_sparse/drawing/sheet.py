"""A sheet of boxes and links: places them in columns and writes them down as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tl_sparse.wording import escape

_COLUMNS = {"attn_in": "attention reads", "qk": "q and k", "v": "v", "attn_out": "attention writes",
            "mlp_in": "MLP reads", "mlp_neuron": "neurons", "mlp_out": "MLP writes",
            "final_in": "final reads", "tokens": "tokens", "logits": "answer logits"}  # fmt: skip
COLUMN_ORDER = tuple(_COLUMNS)
"""Kinds of columns, in their order within a layer."""

_LETTER, _LINE, _SPACE = 6.6, 15.0, 92.0
"""Width of a letter and height of a line of the labels, and space between columns, in pixels."""
_MAX_LABELS = 40
"""Weights are printed beside their lines up to this number of them."""

Point = tuple[float, float]
Column = tuple[int, int, str]
"""Layer, place in the layer, name; the tokens come first and the logits last."""


class Link(NamedTuple):
    """A line between two boxes."""

    source: str
    target: str
    weight: float | None
    """None for the residual identity and for attention's choice of position."""
    kind: str
    """"edge", "logit", "residual", "token" or "look"."""


CIRCUIT_STYLE = """
.circuit{font:12px ui-sans-serif,system-ui,sans-serif}
.circuit path{fill:none;stroke:var(--line,#999)}
.circuit path.logit{opacity:.6}.circuit path:hover{opacity:1;stroke:var(--ink,#000)}
.circuit path.positive{stroke:var(--positive,#16b)}
.circuit path.negative{stroke:var(--negative,#b50)}
.circuit path.residual,.circuit path.token{stroke-width:1;stroke-dasharray:5 4}
.circuit path.look{stroke-width:1.6;stroke-dasharray:1.6 3.4;stroke-linecap:round}
.circuit rect{fill:var(--paper,#fff);stroke:var(--soft,#666)}
.circuit rect.band{fill:var(--band,#f3f4f6);stroke:none}
.circuit text{fill:var(--ink,#000);text-anchor:middle}
.circuit text.layer{font-weight:600;fill:var(--ink,#000)}
.circuit text.stage{font-size:11px;fill:var(--soft,#666)}
.circuit text.start,.circuit text.words{text-anchor:start}
.circuit text.token{font:11.5px ui-monospace,monospace;white-space:pre}
.circuit text.weight{font-size:11px;font-weight:600;paint-order:stroke;stroke:var(--band,#f3f4f6);\
stroke-width:5px;stroke-linejoin:round}
.circuit text.positive{fill:var(--positive,#16b)}.circuit text.negative{fill:var(--negative,#b50)}
"""


@dataclass
class Box:
    """A box with lines of text, or the invisible place of a link that passes a column."""

    name: str
    column: Column
    lines: tuple[str, ...]
    kind: str
    title: str
    x: float = 0.0
    y: float = 0.0
    links: list[str] = field(default_factory=list)

    @property
    def width(self) -> float:
        """Pixels."""
        return max((len(line) for line in self.lines), default=0) * _LETTER + 16

    @property
    def height(self) -> float:
        """Pixels."""
        return len(self.lines) * _LINE + 7 if self.lines else 8.0


class Sheet:
    """Places boxes and links, and writes them down."""

    def __init__(self, boxes: dict[str, Box], links: list[Link]) -> None:
        self.boxes, self.links = dict(boxes), links
        used = sorted({box.column for box in boxes.values()})
        self.columns: list[list[Box]] = [
            [box for box in boxes.values() if box.column == column] for column in used
        ]
        self.names = used
        self.place = {box.name: i for i, some in enumerate(self.columns) for box in some}
        self.is_crowded = sum(link.weight is not None for link in links) > _MAX_LABELS
        self.paths = [self._through(link) for link in links]
        largest = max(map(len, self.columns))
        self.gap = 38.0 if largest <= 8 else 14.0 if largest <= 40 else 5.0
        self._order()
        self._place_columns()
        self._place_boxes()

    def _through(self, link: Link) -> list[str]:
        """Give a link an invisible box in each column that it passes; some of them share."""
        first, last = self.place[link.source], self.place[link.target]
        path = [link.source]
        for i in range(first + 1, last):
            lane = link.source if link.weight is None else link
            if link.kind == "logit" and self.is_crowded:
                lane = link.target
            name = f"{lane}>{i}"
            if name not in self.boxes:
                self.boxes[name] = Box(name, self.names[i], (), "bend", "")
                self.columns[i].append(self.boxes[name])
            path.append(name)
        path.append(link.target)
        for a, b in pairwise(path):
            if b not in self.boxes[a].links:
                self.boxes[a].links.append(b)
                self.boxes[b].links.append(a)
        self.place |= {name: first + i for i, name in enumerate(path)}
        return path

    def _order(self) -> None:
        rank = {
            box.name: i / max(len(some) - 1, 1)
            for some in self.columns
            for i, box in enumerate(some)
        }
        for sweep in range(12):
            back = sweep % 2
            for i in reversed(range(len(self.columns))) if back else range(len(self.columns)):
                side = i + 1 if back else i - 1
                mean = {}
                for box in self.columns[i]:
                    near = [rank[n] for n in box.links if self.place[n] == side]
                    mean[box.name] = sum(near) / len(near) if near else rank[box.name]
                self.columns[i].sort(key=lambda box: mean[box.name])
                size = max(len(self.columns[i]) - 1, 1)
                rank |= {box.name: k / size for k, box in enumerate(self.columns[i])}

    def _place_columns(self) -> None:
        x = 16.0
        self.spans: list[tuple[float, float]] = []
        for name, some in zip(self.names, self.columns, strict=True):
            header = len(_COLUMNS[name[2]]) * 6.2
            width = max([header, *(box.width for box in some if box.lines)])
            for box in some:
                box.x = x + width / 2
            self.spans.append((x, x + width))
            x += width + _SPACE
        self.width = x - _SPACE + 16

    def _place_boxes(self) -> None:
        gap = self.gap
        for some in self.columns:
            y = 0.0
            for box in some:
                box.y, y = y + box.height / 2, y + box.height + gap
            for box in some:
                box.y -= y / 2
        for sweep in range(16):
            for some in self.columns[:: -1 if sweep % 2 else 1]:
                wanted = [
                    sum(self.boxes[n].y for n in box.links) / len(box.links) if box.links else box.y
                    for box in some
                ]
                heights = [box.height + gap for box in some]
                for box, y in zip(some, _spread(wanted, heights), strict=True):
                    box.y = y
        every = list(self.boxes.values())
        top = min(box.y - box.height / 2 for box in every)
        for box in every:
            box.y += 66 - top
        self.height = max(box.y + box.height / 2 for box in every) + 20

    def svg(self, title: str, words: str) -> str:
        """Write the sheet down, with a title and words at its foot."""
        weights = {kind: [abs(link.weight or 0) for link in self.links if link.kind == kind]
                   for kind in ("edge", "logit")}  # fmt: skip
        largest = {kind: max(some, default=0) or 1.0 for kind, some in weights.items()}
        lines, labels = [], []
        taken = [self._frame(box) for box in self.boxes.values() if box.lines]
        order = {"token": 0, "residual": 0, "look": 1, "logit": 2, "edge": 3}
        for link, path in sorted(
            zip(self.links, self.paths, strict=True), key=lambda pair: order[pair[0].kind]
        ):
            lines.append(self._line(link, path, largest.get(link.kind, 1.0)))
            if link.weight is not None and not self.is_crowded:
                labels.append(self._weight(link.weight, path, taken))
        head = "".join(self._headers())
        boxes = "".join(_box_svg(box) for box in self.boxes.values() if box.lines)
        note = f'<text class="words" x="16" y="{self.height:.0f}">{escape(words)}</text>' * bool(
            words
        )
        height = self.height + 16
        return (
            f'<svg class="circuit" role="img" viewBox="0 0 {self.width:.0f} {height:.0f}" '
            f'width="{self.width:.0f}" style="min-width:{0.72 * self.width:.0f}px">'
            f"<title>{escape(title)}</title><style>{CIRCUIT_STYLE}</style>{head}{''.join(lines)}{boxes}{''.join(labels)}{note}</svg>"
        )

    def _headers(self) -> list[str]:
        parts = []
        layers = sorted({name[0] for name in self.names if name[2] not in ("tokens", "logits")})
        for layer in layers:
            spans = [s for s, n in zip(self.spans, self.names, strict=True) if n[0] == layer]
            left, right = spans[0][0] - 12, spans[-1][1] + 12
            label = (
                "" if self.names[-1][2] == "final_in" and layer == layers[-1] else f"layer {layer}"
            )
            parts.append(
                f'<rect class="band" x="{left:.0f}" y="4" width="{right - left:.0f}" '
                f'height="{self.height:.0f}" rx="10"/>'
                f'<text class="layer" x="{(left + right) / 2:.0f}" y="24">{label}</text>'
            )
        for (left, right), name in zip(self.spans, self.names, strict=True):
            middle = (left + right) / 2
            parts.append(f'<text class="stage" x="{middle:.0f}" y="44">{_COLUMNS[name[2]]}</text>')
        return parts

    def _segments(self, path: list[str]) -> list[tuple[Point, Point]]:
        """Give the curves of a path, from the right of one column to the left of the next."""
        ends = []
        for a, b in pairwise(path):
            one, two = self.boxes[a], self.boxes[b]
            x = one.x + one.width / 2 if one.lines else self.spans[self.place[a]][1]
            to = two.x - two.width / 2 if two.lines else self.spans[self.place[b]][0]
            ends.append(((x, one.y), (to, two.y)))
        return ends

    def _line(self, link: Link, path: list[str], largest: float) -> str:
        ends = self._segments(path)
        d = f"M{ends[0][0][0]:.1f},{ends[0][0][1]:.1f}"
        for (x, y), (to_x, to_y) in ends:
            bend = (to_x - x) / 2
            d += f"L{x:.1f},{y:.1f}C{x + bend:.1f},{y:.1f} "
            d += f"{to_x - bend:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}"
        sign, width, words = "", "", {"look": "choose the positions that v is taken from"}
        said = words.get(link.kind, "the same channel of the residual stream")
        if link.weight is not None:
            sign = " positive" if link.weight >= 0 else " negative"
            width = f' stroke-width="{0.8 + 4.2 * abs(link.weight) / largest:.2f}"'
            said = f"weight {link.weight:+.4g}"
        title = f"{self.boxes[link.source].title} to {self.boxes[link.target].title}: {said}"
        ends_of = f'data-source="{escape(link.source)}" data-target="{escape(link.target)}"'
        return (
            f'<path class="{link.kind}{sign}" {ends_of} d="{d}"{width}>'
            f"<title>{escape(title)}</title></path>"
        )

    def _weight(
        self, weight: float, path: list[str], taken: list[tuple[float, float, float, float]]
    ) -> str:
        """Put a weight beside its line, where nothing else stands if there is such a place."""
        text = signed(weight)
        ends = self._segments(path)
        half, best = len(text) * 3.2, None
        for (x, y), (to_x, to_y) in (ends[-1], ends[0]):
            for t in (0.5, 0.4, 0.6, 0.3, 0.7, 0.25, 0.75):
                at_x = x + (to_x - x) * (1.5 * t * (1 - t) + t**3)
                at_y = y + (to_y - y) * t * t * (3 - 2 * t)
                frame = (at_x - half, at_y - 7, at_x + half, at_y + 7)
                hits = sum(_overlap(frame, other) for other in taken)
                if best is None or hits < best[0]:
                    best = (hits, at_x, at_y, frame)
        assert best is not None
        taken.append(best[3])
        sign = "positive" if weight >= 0 else "negative"
        return f'<text class="weight {sign}" x="{best[1]:.1f}" y="{best[2] + 4:.1f}">{text}</text>'

    def _frame(self, box: Box) -> tuple[float, float, float, float]:
        half, high = box.width / 2, box.height / 2
        return (box.x - half, box.y - high, box.x + half, box.y + high)


def _box_svg(box: Box) -> str:
    left, top = box.x - box.width / 2, box.y - box.height / 2
    radius = 3 if box.kind in ("token", "logit") else box.height / 2
    rect = (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="{radius:.1f}"/>'
    )
    style = "token" if box.kind in ("token", "logit") else box.kind
    lines = "".join(
        f'<text class="{style}" x="{box.x:.1f}" y="{top + 14.5 + i * _LINE:.1f}">'
        f"{escape(line)}</text>"
        for i, line in enumerate(box.lines)
    )
    title = f"<title>{escape(box.title)}</title>"
    return f'<g data-box="{escape(box.name)}">{title}{rect}{lines}</g>'


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Give the places nearest to those wanted, in order and without overlap (least squares)."""
    offsets, y = [], 0.0
    for i, height in enumerate(heights):
        y += (heights[i - 1] + height) / 2 if i else 0.0
        offsets.append(y)
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        mean, n = want - offset, 1
        while pools and pools[-1][0] > mean:
            other, m = pools.pop()
            mean, n = (mean * n + other * m) / (n + m), n + m
        pools.append((mean, n))
    means = [mean for mean, n in pools for _ in range(n)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def signed(value: float) -> str:
    """Write a weight with its sign."""
    text = f"{value:+.2f}" if abs(value) >= 0.095 else f"{value:+.1g}"
    return text.replace("-", "\N{MINUS SIGN}")
