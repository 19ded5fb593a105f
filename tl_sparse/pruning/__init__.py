"""`prune`: find the nodes that a task needs, and the single weights between them.

In the order of a call:

- `others`: what is out, by name: means, zero, or the other prompts that values are taken from,
- `trial`: how a selection of nodes and edges is run and judged,
- `surroundings`: random parts of the rest, beside which a selection can be asked to work too,
- `learning`: masks learned with a straight-through step, first on nodes, then on edges,
- `scores`: attribution, magnitude and chance in the masks' place, as baselines,
- `sizes`: the smallest of the nested selections on the way that reaches the target,
- `cleanup`: what the target does not need goes, one by one, in pairs, and by exchange,
- `prune`: the stages in a row, and the circuit that comes of them,
- `calibration`: the test loss after a fit of scale and shifts, reported beside,
- `search`: many prunings with other settings, and the smallest circuit of them,
- `sweep`: a method's whole curve, edges against loss, without a target.
"""

from tl_sparse.pruning.calibration import Calibration, calibrate
from tl_sparse.pruning.cleanup import CleanUp
from tl_sparse.pruning.others import ABLATIONS, named_references, other_tokens, task_references
from tl_sparse.pruning.prune import TaskGateError, UnreachableTargetError, prune
from tl_sparse.pruning.search import search
from tl_sparse.pruning.sweep import Sweep, sweep
from tl_sparse.pruning.trial import Trial, evaluate

__all__ = [
    "ABLATIONS",
    "Calibration",
    "CleanUp",
    "Sweep",
    "TaskGateError",
    "Trial",
    "UnreachableTargetError",
    "calibrate",
    "evaluate",
    "named_references",
    "other_tokens",
    "prune",
    "search",
    "sweep",
    "task_references",
]
