"""Position channels: learned positions that are read beside the residual stream.

TransformerLens passes Shortformer's positions from `get_residual` through `forward`, `generate` and
the key-value cache to every block. Position channels take the same way, under the same name,
`shortformer_pos_embed`, and the blocks read them (Gao et al. 2025, A.1: some earlier models).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.config import SparsityConfig
from tl_sparse.layers import PositionChannels


class PositionedTransformer(HookedTransformer):
    """What `HookedSparseTransformer` knows of its positions; abstract, it has no constructor."""

    sparsity: SparsityConfig
    positions: PositionChannels

    def positions_of(
        self, residual: Float[Tensor, "batch pos d_model"], n_before: int, attention_mask: Any
    ) -> Float[Tensor, "batch pos position_channel"]:
        """Give the position channels of a residual stream whose tokens follow `n_before` others.

        The mask, if there is one, is of those others too and says what is padding.
        """
        batch, n_pos = residual.shape[:2]
        if attention_mask is None:
            attention_mask = residual.new_ones(batch, n_before + n_pos, dtype=torch.long)
        return self.positions(attention_mask, n_pos)

    def all_composition_scores(self, mode) -> Any:
        """Score how heads compose, as the host does; override: position channels do not fit in.

        Raises:
            ValueError: If the model has position channels.
        """
        if self.sparsity.position_channels:
            raise ValueError(
                "all_composition_scores multiplies what a head writes, d_model channels, by what "
                "the next one reads, and in this model W_Q, W_K and W_V read "
                f"{self.sparsity.position_channels} position channels more. Take the first "
                f"{self.cfg.d_model} rows of these matrices and transformer_lens.FactoredMatrix."
            )
        return super().all_composition_scores(mode)
