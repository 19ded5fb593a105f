"""Sweeps: many models, tasks and targets, one figure (`tl-sparse sweep`).

1. `plans` lists the cells of a figure at a preset's size; a `Cell` is one training, of a model or
   of SAEs on one, or one pruning.
2. `run_cells` does what a `Store` does not have yet, here, in several processes or on several
   machines.
3. `summarise` makes the figure's numbers from what is done.

```python
from tl_sparse import sweeps

preset, store = sweeps.PRESETS["laptop"], sweeps.Store("sweep")
text = preset.text(store.text_folder)
sweeps.run_cells(sweeps.FIGURES["figure3"](preset, text), store, workers=2)
sweeps.summarise("figure3", preset, text, store).save("sweep")
```

A sweep that is killed goes on from the cells in the store; run it again.
"""

from tl_sparse.sweeps.cells import Cell, CircuitCell, ModelCell, SAECell
from tl_sparse.sweeps.comparing import Comparison, compare
from tl_sparse.sweeps.engine import Outcome, run_cells
from tl_sparse.sweeps.figures import Summary, summarise
from tl_sparse.sweeps.plans import FIGURES
from tl_sparse.sweeps.presets import PRESETS, Preset
from tl_sparse.sweeps.store import Store
from tl_sparse.sweeps.text import Text

__all__ = [
    "FIGURES",
    "PRESETS",
    "Cell",
    "CircuitCell",
    "Comparison",
    "ModelCell",
    "Outcome",
    "Preset",
    "SAECell",
    "Store",
    "Summary",
    "Text",
    "compare",
    "run_cells",
    "summarise",
]
