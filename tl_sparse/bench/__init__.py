"""`tl-sparse bench`: what training, pruning, auditing and their parts cost, side by side.

1. A *measurement* is a few *candidates* for the same work: `Candidate.prepare` sets one up and
   gives what is then run. The first candidate is the baseline.
2. All candidates of a measurement are run in turn, a b c a b c ..., so that a noisy machine hits
   all of them alike (`timing.measure`).
3. In each round every candidate's time is divided by the baseline's of the same round. Reported are
   the median of these ratios and their quartiles, beside the times themselves.

`training`, `memory`, `linear`, `kernels` and `circuits` say what is measured, at the sizes of
`sizes`, `demo` what is measured on a finished demo; `report` writes JSON with every raw number and
a table in Markdown; `run` goes through them all. On paper only: `cost` counts bytes and FLOPs of a
training run, `gpus` says what GPUs would take for them.
"""

from tl_sparse.bench.report import BenchReport
from tl_sparse.bench.run import KINDS, run_bench
from tl_sparse.bench.settings import BenchSettings
from tl_sparse.bench.sizes import SIZES, Size
from tl_sparse.bench.timing import Candidate, Measurement, Result, measure

__all__ = [
    "KINDS",
    "SIZES",
    "BenchReport",
    "BenchSettings",
    "Candidate",
    "Measurement",
    "Result",
    "Size",
    "measure",
    "run_bench",
]
