"""The modules that a sparse transformer has and TransformerLens' lacks.

- `AbsTopK`: keeps the channels of largest magnitude at each token (Gao et al. 2025, A.1).
- `BigramTable`: a dense table whose row of the current token is added to the logits (A.1).
- `PositionChannels`: learned positions that are read beside the residual stream (A.1).
- `fused_attention`: softmax attention, with sinks or not, without the matrix of scores in memory.

Sparsity lives in modules and never in hooks: SAELens and `reset_hooks` remove hooks.
"""

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


class PositionChannels(nn.Module):
    """Learned positions as channels of their own: an n_ctx x n_channels table.

    Never sparsified and never decayed; drawn from N(0, 0.02) as the released script's embeddings.
    """

    def __init__(self, n_ctx: int, n_channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        # Not called W_anything: TransformerLens draws every W_ parameter anew from a normal.
        self.table = nn.Parameter(torch.zeros(n_ctx, n_channels, dtype=dtype))
        self.hook_out = HookPoint()  # [batch, pos, position_channel]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the table from N(0, 0.02), in place."""
        self.table.normal_(0, 0.02)

    def forward(
        self, attention_mask: Int[Tensor, "batch offset_pos"], n_pos: int
    ) -> Float[Tensor, "batch pos position_channel"]:
        """Give the rows of the last `n_pos` positions; padding, 0 in the mask, is not counted.

        As in TransformerLens' `PosEmbed` the first token attended to has row 0 and padding zeros.

        Raises:
            ValueError: If there are more tokens than the table has rows.
        """
        attended = attention_mask[:, -n_pos:, None] != 0
        rows = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -n_pos:]
        n_ctx = len(self.table)
        if attention_mask.shape[1] > n_ctx and (n_needed := int(rows.max()) + 1) > n_ctx:
            raise ValueError(
                f"The model has positions for {n_ctx} tokens (cfg.n_ctx), got {n_needed}."
            )
        return self.hook_out(F.embedding(rows, self.table).masked_fill(~attended, 0))


def fused_attention(
    q: Float[Tensor, "batch query_pos head_index d_head"],
    k: Float[Tensor, "batch key_pos head_index d_head"],
    v: Float[Tensor, "batch key_pos head_index d_head"],
    *,
    scale: float,
    causal: bool,
    sinks: Float[Tensor, " head_index"] | None = None,
    row_sums: bool = False,
) -> tuple[
    Float[Tensor, "batch query_pos head_index d_head"],
    Float[Tensor, "batch query_pos head_index"] | None,
]:
    """Compute softmax(q k / scale) v without keeping the scores, and the sums of its rows.

    `scale` divides, as in TransformerLens. A sink is a logit that joins each softmax and whose
    share goes nowhere, so each row of the pattern sums to less than 1. With `row_sums` these sums
    are given too, gradients and all; None stands for rows that all sum to 1, and for not asked.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if sinks is None:
        z = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1 / scale)
        return z.transpose(1, 2), None
    on_cpu = q.device.type == "cpu" and hasattr(torch.ops.aten, _FLASH)
    alike = len({x.dtype for x in (q, k, v)}) == 1
    if row_sums or not on_cpu or not alike or not min(q.numel(), k.numel()):
        z, sums = _attention_with_sink_key(q, k, v, sinks, scale, causal)
        return z.transpose(1, 2), sums.transpose(1, 2)
    z = _SinkAttention.apply(*map(_dense_rows, (q, k, v)), sinks, 1 / scale, causal)
    assert isinstance(z, Tensor)
    return z.transpose(1, 2), None


_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
"""PyTorch's name for fused attention on a CPU; private, so its absence is met."""


def _dense_rows(x: Tensor) -> Tensor:
    """Give a tensor whose last axis lies in one piece: PyTorch's kernel reads on, unasked."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _SinkAttention(torch.autograd.Function):
    """Fused attention with sinks on a CPU, at the price of fused attention without.

    Attention without sinks gives the logarithm of each row's sum of exponentials too. The sink adds
    its own to that sum, so all outputs of the row shrink by one factor. Backward makes the pattern
    anew from q, k and that sum: given the larger one, it makes the pattern with sinks.
    """

    @staticmethod
    def forward(ctx, q, k, v, sinks, factor, causal):
        attention = getattr(torch.ops.aten, _FLASH)
        z, log_sum = attention(q, k, v, 0.0, causal, scale=factor)
        with_sink = torch.logaddexp(log_sum, sinks[:, None].to(log_sum))
        z = (z * (log_sum - with_sink).exp_()[..., None]).to(v.dtype)
        ctx.save_for_backward(q, k, v, sinks, z, with_sink)
        ctx.factor, ctx.causal = factor, causal
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        q, k, v, sinks, z, with_sink = ctx.saved_tensors
        backward, grad = getattr(torch.ops.aten, f"{_FLASH}_backward"), _dense_rows(grad)
        grads = backward(grad, q, k, v, z, with_sink, 0.0, ctx.causal, scale=ctx.factor)
        share = (sinks[:, None] - with_sink).exp_()
        return *grads, -(share * (grad * z).sum(-1)).sum((0, 2)).to(sinks.dtype), None, None


def _attention_with_sink_key(q, k, v, sinks, scale, causal):
    """Fused attention in which the sink is one more key at the front, with value 0.

    An extra channel, 1 in every query and nonzero in that key only, gives the key the logit `sink`,
    and a dummy query in front keeps the causal mask aligned. The same channel, 1 in every other
    key's value, comes out as the sum of each row of the pattern.
    """
    d_head = q.shape[-1]
    # One channel for the sink, padded to a multiple of 8: unaligned rows are slow.
    n_extra = 8 - d_head % 8
    q = F.pad(q, (0, n_extra, 1, 0))
    q[..., d_head] = 1
    v = F.pad(v, (0, n_extra, 1, 0))
    v[:, :, 1:, d_head] = 1
    sink_key = F.pad((sinks * scale).to(k.dtype)[:, None, None], (d_head, n_extra - 1))
    k = torch.cat([sink_key.expand(k.shape[0], -1, -1, -1), F.pad(k, (0, n_extra))], dim=2)
    z = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1 / scale)[:, :, 1:]
    return z[..., :d_head], z[..., d_head]
