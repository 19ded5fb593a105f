"""Shapes and recipes that were tried: the demo's models.

Sizes follow the paper where it gives them (d_head 16, d_mlp 4 x d_model, RMS norm with float32's
epsilon, no positions, sinks, a bigram table; Gao et al. 2025, A.1); the rest was chosen so that two
CPU cores train a pair of models within the demo's quarter of an hour.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig

FLOAT32_EPS = 1.1920928955078125e-07
"""The epsilon of the reference's norm; TransformerLens' default would be 1e-5."""

DEMO_WIDTH = 128
DEMO_VOCABULARY = 1024


def demo_shape(d_vocab: int, *, width: int = DEMO_WIDTH, seed: int = 0) -> dict[str, Any]:
    """Give the demo's HookedTransformerConfig as a dict: 2 layers, 128 tokens, heads of 16.

    `width` is any integer; there are ceil(width / 16) heads.

    Examples:
        >>> demo_shape(1024, width=50)["n_heads"]
        4
    """
    return {
        "n_layers": 2,
        "d_model": width,
        "d_mlp": 4 * width,
        "d_head": 16,
        "n_heads": math.ceil(width / 16),
        "n_ctx": 128,
        "d_vocab": d_vocab,
        "act_fn": "gelu",
        "normalization_type": "RMSPre",
        "eps": FLOAT32_EPS,
        "positional_embedding_type": "none",
        "use_attention_sinks": True,
        "default_prepend_bos": False,
        "initializer_range": 0.02,
        "seed": seed,
        "device": "cpu",
    }


DEMO_SPARSITY = SparsityConfig(weight_density=0.02, activation_density=0.25, bigram_table=True)
"""The demo's sparse arm: 2 % of the block weights, AbsTopK of a quarter at the eight sites."""

DENSE_SPARSITY = SparsityConfig(bigram_table=True)
"""The dense control: the sparse model's sinks and bigram table, and no AbsTopK."""

DEMO_TRAINING = TrainingConfig(
    n_tokens=5_242_880, batch_size=8, learning_rate=0.015, anneal="power"
)
"""The demo's recipe for the sparse arm: 5,120 steps of 8 x 128 tokens. Small batches, and a
density that falls as a power law, give a short run more steps near its final density. Twice the
learning rate gives a lower validation loss and larger circuits (docs/results/quotes.md)."""

DENSE_TRAINING = replace(DEMO_TRAINING, learning_rate=3e-3)
"""The same tokens and schedule at the dense control's own good learning rate."""

PLAIN_ADAM = replace(
    DEMO_TRAINING, learning_rate=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
    gradient_scaling="none", sharkfin=False,
)  # fmt: skip
"""Adam as everybody knows it, with the same annealing of the density, to compare with."""

DEMO_PRUNING = PruningConfig()
"""How both arms of the demo are pruned."""

QUICK_WIDTH = 32
QUICK_TRAINING = replace(DEMO_TRAINING, n_tokens=131_072, eval_every=64, n_eval_windows=16)
QUICK_DENSE_TRAINING = replace(QUICK_TRAINING, learning_rate=DENSE_TRAINING.learning_rate)
QUICK_SPARSITY = replace(DEMO_SPARSITY, weight_density=0.1)
QUICK_PRUNING = PruningConfig(n_steps=30, n_edge_steps=30, exchange=False, min_accuracy=0.0)
"""No gate: in a smoke run the pruner has to run on a model that can't do the task, too."""
QUICK_AUDIT = AuditConfig(
    n_random=4, n_subsets=2, n_adversarial_steps=4, n_examples=8, max_edges=4, batch_size=8
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model to train, all of it but the text."""

    n_layers: int = 2
    width: int = DEMO_WIDTH
    """d_model; there are ceil(width / 16) heads, and d_mlp is 4 x width."""
    n_ctx: int = 128
    vocab_size: int = DEMO_VOCABULARY
    """Tokens of the tokenizer that is trained on the text."""
    n_characters: int = 24_000_000
    """Of the default text, where no other is given."""
    library: Literal["standard", "installed"] = "standard"
    """Where the default text has its real Python from: see `data.python_corpus`."""
    sparsity: SparsityConfig = DEMO_SPARSITY
    training: TrainingConfig = DEMO_TRAINING

    def shape(self, d_vocab: int, *, device: str = "cpu") -> dict[str, Any]:
        """Give the HookedTransformerConfig as a dict."""
        shape = demo_shape(d_vocab, width=self.width, seed=self.training.seed)
        return shape | {"n_layers": self.n_layers, "n_ctx": self.n_ctx, "device": device}


RECIPES: dict[str, Recipe] = {
    "tiny": Recipe(
        width=64, n_ctx=64, vocab_size=512, n_characters=2_000_000,
        sparsity=replace(DEMO_SPARSITY, weight_density=0.1),
        training=replace(DEMO_TRAINING, n_tokens=400_000),
    ),
    "demo": Recipe(),
    "gpu": Recipe(
        n_layers=4, width=512, n_ctx=256, n_characters=120_000_000, library="installed",
        sparsity=replace(DEMO_SPARSITY, weight_density=50_000 / (48 * 512**2)),
        training=replace(
            DEMO_TRAINING, n_tokens=2**27, batch_size=96, learning_rate=0.0128, precision="bf16"
        ),
    ),
}  # fmt: skip
"""What `tl-sparse train --preset` takes: `tiny` is a look, well under a minute on an idle core;
`demo` is the demo's sparse model, some minutes on two; `gpu` took seven of a shared H100
(docs/results/larger.md), and its text two more of one core."""
