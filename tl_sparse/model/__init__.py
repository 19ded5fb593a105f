"""`HookedSparseTransformer`: the whole seam with TransformerLens.

Nothing else knows `HookedTransformer` from the inside (TransformerLens 3.7.3 to 3.9; 4.0 removed
the class, and the road there is this package). What differs from the host:

- `SparseTransformerBlock` calls the norm once and adds two hook points, `hook_attn_read` and
  `hook_mlp_read`, after the norm's gain and AbsTopK: what attention and MLP really read;
- `SparseAttention` puts AbsTopK on q, k, v before their hooks and can skip the matrix of scores;
- `forward` adds the bigram table to the logits;
- position channels, if there are any, are read by attention and MLP beside the residual stream;
- `weight_masks` follow the model everywhere; `project_()` makes the weights obey the densities.

At density 1, with nothing sparse asked for, it is bit for bit TransformerLens' own.
"""

from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

from tl_sparse.model.blocks import AttentionPath, SparseAttention, SparseTransformerBlock
from tl_sparse.model.cache import SparseActivationCache
from tl_sparse.model.transformer import HookedSparseTransformer

__all__ = [
    "SUPPORTED_ACTIVATIONS",
    "AttentionPath",
    "HookedSparseTransformer",
    "SparseActivationCache",
    "SparseAttention",
    "SparseTransformerBlock",
]
