"""A circuit drawn as inline SVG: a pure function from data to text.

`circuits` says what is drawn, boxes for nodes, tokens and answers, and links between them; `sheet`
places them and writes them down.
"""

from tl_sparse.drawing.circuits import draw_circuit
from tl_sparse.drawing.sheet import CIRCUIT_STYLE, Link

__all__ = ["CIRCUIT_STYLE", "Link", "draw_circuit"]
