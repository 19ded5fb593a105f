"""The modules that a sparse transformer has and TransformerLens' lacks.

- `AbsTopK`: keeps the channels of largest magnitude at each token (Gao et al. 2025, A.1).
- `BigramTable`: a dense table whose row of the current token is added to the logits (A.1).
- `fused_attention`: softmax attention, with sinks or not, without the matrix of scores in memory.

Sparsity lives in modules and never in hooks: SAELens and `reset_hooks` remove hooks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from tl_sparse.functional import abs_topk, kept_count


class AbsTopK(nn.Module):
    """Keep floor(density x width) channels of largest magnitude at each token; 1.0 is the identity.

    `n_dims` trailing axes are ranked together: 2 for q, k and v, whose heads compete.

    Raises:
        ValueError: If the density keeps no channel at all.
    """

    def __init__(self, density: float, width: int, *, n_dims: int = 1) -> None:
        super().__init__()
        self.density, self.width, self.n_dims = density, width, n_dims
        self.n_kept = kept_count(density, width)
        if self.n_kept == 0:
            raise ValueError(
                f"An activation density of {density} keeps none of {width} channels; "
                f"raise it to at least {1 / width:.3g}."
            )

    def forward(self, x: Float[Tensor, "*batch_pos_width"]) -> Float[Tensor, "*batch_pos_width"]:
        """Zero all but the kept channels."""
        if self.n_kept == self.width:
            return x
        if self.n_dims == 1:
            return abs_topk(x, self.n_kept)
        return abs_topk(x.flatten(-self.n_dims), self.n_kept).reshape(x.shape)

    def extra_repr(self) -> str:
        """Show how many channels are kept."""
        return f"{self.n_kept} of {self.width} channels"


class SparseActivation(nn.Module):
    """A nonlinearity followed by AbsTopK, in the place of TransformerLens' `mlp.act_fn`."""

    def __init__(self, act_fn: Callable[[Tensor], Tensor], topk: AbsTopK) -> None:
        super().__init__()
        self.act_fn, self.topk = act_fn, topk

    def forward(self, x: Float[Tensor, "*batch_pos d_mlp"]) -> Float[Tensor, "*batch_pos d_mlp"]:
        """Apply the nonlinearity, then keep the largest channels."""
        return self.topk(self.act_fn(x))


class BigramTable(nn.Module):
    """Logits that depend on the current token alone: a dense d_vocab x d_vocab_out table.

    Never sparsified and never decayed; drawn from U(0, 0.02) as in the released script.
    """

    def __init__(self, d_vocab: int, d_vocab_out: int, dtype: torch.dtype) -> None:
        super().__init__()
        # Not called W_anything: TransformerLens draws every W_ parameter anew from a normal.
        self.table = nn.Parameter(torch.zeros(d_vocab, d_vocab_out, dtype=dtype))
        self.hook_out = HookPoint()  # [batch, pos, d_vocab_out]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the table from U(0, 0.02), in place."""
        self.table.uniform_(0, 0.02)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        """Give each token's row of the table."""
        return self.hook_out(F.embedding(tokens, self.table))


def fused_attention(
    q: Float[Tensor, "batch query_pos head_index d_head"],
    k: Float[Tensor, "batch key_pos head_index d_head"],
    v: Float[Tensor, "batch key_pos head_index d_head"],
    *,
    scale: float,
    causal: bool,
    sinks: Float[Tensor, " head_index"] | None = None,
) -> Float[Tensor, "batch query_pos head_index d_head"]:
    """Compute softmax(q k / scale) v without keeping the scores.

    `scale` divides, as in TransformerLens. A sink is a logit that joins each softmax and whose
    share goes nowhere. Here it is one more key at the front with value 0: an extra channel, 1 in
    every query and nonzero in that key only, gives it the logit `sink`, and a dummy query in front
    keeps the causal mask aligned.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if sinks is None:
        z = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1 / scale)
        return z.transpose(1, 2)
    d_head = q.shape[-1]
    # One channel for the sink, padded to a multiple of 8: unaligned rows are slow.
    n_extra = 8 - d_head % 8
    q = F.pad(q, (0, n_extra, 1, 0))
    q[..., d_head] = 1
    v = F.pad(v, (0, n_extra, 1, 0))
    sink_key = F.pad((sinks * scale).to(k.dtype)[:, None, None], (d_head, n_extra - 1))
    k = torch.cat([sink_key.expand(k.shape[0], -1, -1, -1), F.pad(k, (0, n_extra))], dim=2)
    z = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1 / scale)
    return z[:, :, 1:, :d_head].transpose(1, 2)
