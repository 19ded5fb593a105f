"""Figures of a sweep: from finished cells to tables, curves and pages.

1. `finished` gathers what is done, and sets each sparse model beside its dense match; `means` has
   the means and intervals.
2. `tables` has those of models and circuits; tables of their own have `arms` (SAEs as a third
   arm), `frontier` (width and nonzeros), `capabilities` (bits per byte) and `superposition`
   (concepts).
3. `contents` says which tables and curves a figure shows, `summary` writes them as JSON, Markdown
   and HTML.
"""

from tl_sparse.sweeps.figures.summary import Summary, comparison, rows_in_markdown, summarise

__all__ = ["Summary", "comparison", "rows_in_markdown", "summarise"]
