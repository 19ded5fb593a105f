"""Superposition, measured: how many labelled concepts of Python each node of a model tracks.

```python
from tl_sparse import concepts

concepts.names()                                  # forty concepts: "string", "depth_2", "def_name"
concepts.labels("x = [1]", tokenizer)             # Bool[Tensor, "concept token"]
report = concepts.score(model, corpus)            # every node of every site
report = concepts.score(model, corpus, coders={"blocks.0.hook_resid_post": sae})  # SAE latents
print(report)                                     # each concept's best node
report.summary(), report.n_tracked                # by model, by node
concepts.draw_tracked({"sparse": report, "dense": other})
```

Read `catalog`, `labelling` (with `source`, `lexical` and `syntax`), `activations`, `counting`,
`scoring`, `report`, `run`, in that order.
"""

from tl_sparse.concepts.catalog import CONCEPTS, names
from tl_sparse.concepts.figures import (
    arms_table,
    best_nodes_table,
    draw_best,
    draw_tracked,
    thresholds_table,
)
from tl_sparse.concepts.labelling import labels, spans
from tl_sparse.concepts.report import ConceptReport, ConceptRow
from tl_sparse.concepts.run import score
from tl_sparse.concepts.scoring import PairScores
from tl_sparse.concepts.settings import ConceptConfig
from tl_sparse.concepts.source import NotPythonError

__all__ = [
    "CONCEPTS",
    "ConceptConfig",
    "ConceptReport",
    "ConceptRow",
    "NotPythonError",
    "PairScores",
    "arms_table",
    "best_nodes_table",
    "draw_best",
    "draw_tracked",
    "labels",
    "names",
    "score",
    "spans",
    "thresholds_table",
]
