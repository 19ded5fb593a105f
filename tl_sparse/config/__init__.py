"""Every knob there is, as frozen dataclasses that are checked once.

In the order of the flow: what is sparse in a model (`SparsityConfig`), how it is trained
(`TrainingConfig`), how a task's circuit is found in it (`PruningConfig`) and how settings of the
pruning are searched (`SearchConfig`), how a circuit is audited (`AuditConfig`), and how a sparse
model is tied to a given dense one (`BridgeConfig`). The shape of the network itself is
TransformerLens' own `HookedTransformerConfig`.

Defaults follow Gao et al. 2025 (arXiv 2511.13653, section 2.1 and appendix A.2). Where the paper
and the authors' released script disagree, the field says so.
"""

from tl_sparse.config.audit import AuditConfig
from tl_sparse.config.bridge import BridgeConfig
from tl_sparse.config.pruning import PruningConfig, SearchConfig
from tl_sparse.config.sparsity import ACTIVATION_SITES, SparsityConfig
from tl_sparse.config.training import TrainingConfig

__all__ = [
    "ACTIVATION_SITES",
    "AuditConfig",
    "BridgeConfig",
    "PruningConfig",
    "SearchConfig",
    "SparsityConfig",
    "TrainingConfig",
]
