"""Transformers you can read: weight-sparse transformers and their circuits, for TransformerLens.

The whole flow, each name in the order in which one meets it:

    from tl_sparse import HookedSparseTransformer, SparsityConfig, TrainingConfig, PruningConfig
    from tl_sparse import audit, data, prune, references, tasks, train

    corpus  = data.python_corpus()                                    # text -> tokens
    model   = HookedSparseTransformer(cfg, tokenizer=corpus.tokenizer,
                  sparsity=SparsityConfig(weight_density=1/32, activation_density=1/4))
    history = train(model, corpus, TrainingConfig(n_tokens=6_000_000))
    task    = tasks.get("single_double_quote", tokenizer=model.tokenizer)
    refs    = references(model, corpus)                               # the mean of every node
    circuit = prune(model, task, refs, PruningConfig(target_loss=0.15))
    circuit.save("quotes.json")
    print(audit(model, circuit, task, corpus))                        # can it be proved wrong?

A name is loaded when it is first asked for, so that `tl-sparse --help` and completion are quick.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_sparse import data, tasks, zoo
    from tl_sparse.ablation import References, only_circuit, references
    from tl_sparse.auditing import AuditReport, audit
    from tl_sparse.circuit import Circuit, Edge, Node, Site
    from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig
    from tl_sparse.history import History
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.pruning import prune
    from tl_sparse.sites import site_map
    from tl_sparse.sweeps import compare
    from tl_sparse.training import train

__version__ = "0.1.0"

__all__ = [
    "AuditConfig",
    "AuditReport",
    "Circuit",
    "Edge",
    "History",
    "HookedSparseTransformer",
    "Node",
    "PruningConfig",
    "References",
    "Site",
    "SparsityConfig",
    "TrainingConfig",
    "audit",
    "compare",
    "data",
    "only_circuit",
    "prune",
    "references",
    "site_map",
    "tasks",
    "train",
    "zoo",
]

_HOMES = {
    "ablation": ("References", "only_circuit", "references"),
    "auditing": ("AuditReport", "audit"),
    "circuit": ("Circuit", "Edge", "Node", "Site"),
    "config": ("AuditConfig", "PruningConfig", "SparsityConfig", "TrainingConfig"),
    "history": ("History",),
    "model": ("HookedSparseTransformer",),
    "pruning": ("prune",),
    "sites": ("site_map",),
    "sweeps": ("compare",),
    "training": ("train",),
}
"""Modules and the names that come from them, as in the imports above."""


def __getattr__(name: str) -> Any:
    """Load a public name, or a module of the package, when it is first asked for (PEP 562)."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is not None:
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what there is, loaded or not."""
    return sorted({*globals(), *__all__})
