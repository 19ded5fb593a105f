"""The SAE arm: a dense model whose nodes are the latents of SAEs.

In the order of a run:

- `training`: SAEs for the residual reads and writes and the neurons, by SAELens' trainers,
- `scores`: the standard measures of each, and the loss with all of them at once,
- `sweep`: over widths, L0 and architectures, and the choice by that loss at equal L0,
- `splice`: the SAEs in the model, each with its error as one more node.

What comes of `splice` is a model like another to `references`, `prune`, `audit` and `only_circuit`.
"""

from tl_sparse.sae_arm.scores import ArmScores, SiteScores, score_saes, scores_table
from tl_sparse.sae_arm.splice import SplicedTransformer, edges_of_errors, splice
from tl_sparse.sae_arm.sweep import SweepCell, choose, sweep_saes, sweep_table
from tl_sparse.sae_arm.training import SAESettings, load_saes, missing_sites, train_saes

__all__ = [
    "ArmScores",
    "SAESettings",
    "SiteScores",
    "SplicedTransformer",
    "SweepCell",
    "choose",
    "edges_of_errors",
    "load_saes",
    "missing_sites",
    "score_saes",
    "scores_table",
    "splice",
    "sweep_saes",
    "sweep_table",
    "train_saes",
]
