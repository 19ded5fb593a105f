"""Pure tensor functions: exact top-k masks, AbsTopK and the straight-through step.

All choices of "the k largest" here are *exact*: they keep precisely k entries, and equal magnitudes
are kept in the order of their positions. On a CPU `tl_sparse.largest` makes them, several times as
fast as `torch.topk`, which gives the threshold elsewhere and under `torch.compile`. On a GPU
AbsTopK is a kernel, `tl_sparse.largest_on_gpu`, where torch has Triton.

Gao et al. 2025 (arXiv 2511.13653): section 2.1 (weights), A.1 (AbsTopK), A.5 (the step).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_sparse import largest_on_gpu
from tl_sparse.largest import FLOATS, keep_largest, mark_guarded, mark_largest


def kept_count(density: float, size: int) -> int:
    """Give floor(density x size), the number of entries that a density keeps.

    A density written as a rounded quotient counts as the quotient: 0.1 of 30 is 3.

    Examples:
        >>> kept_count(1 / 64, 128 * 128), kept_count(0.1, 30), kept_count(0.3, 7)
        (256, 3, 2)
    """
    return int(density * size + 1e-9 * max(1.0, density * size))


def topk_mask(
    weight: Float[Tensor, "*shape"],
    n_nonzero: int,
    *,
    min_alive: int = 0,
    alive_dim: int = 0,
) -> Bool[Tensor, "*shape"]:
    """Mark the `n_nonzero` entries of a weight with the largest absolute values.

    Ties are broken by position, so the mask always has exactly `n_nonzero` true entries. With
    `min_alive`, the largest `min_alive` entries along `alive_dim` are marked first, whatever their
    size, and the rest of the budget goes to the largest of the others (paper, A.2).

    Raises:
        ValueError: If `n_nonzero` is not between 0 and the size, or is too small for the guard.

    Examples:
        >>> topk_mask(torch.tensor([1.0, -3.0, 3.0, 2.0]), 2)
        tensor([False,  True,  True, False])
        >>> topk_mask(torch.tensor([[5.0, 1.0], [6.0, 2.0]]), 2, min_alive=1)
        tensor([[False, False],
                [ True,  True]])
    """
    if not 0 <= n_nonzero <= weight.numel():
        raise ValueError(
            f"n_nonzero is between 0 and the number of entries, {weight.numel()}; got {n_nonzero}."
        )
    if not min_alive:
        return _largest(weight.detach().abs().reshape(1, -1), n_nonzero).reshape(weight.shape)
    length = weight.shape[alive_dim]
    if min_alive > length:
        raise ValueError(
            f"min_alive={min_alive} asks for more entries than the {length} that there are."
        )
    n_guarded = min_alive * (weight.numel() // length)
    if n_guarded > n_nonzero:
        raise ValueError(
            f"min_alive={min_alive} protects {n_guarded} of {weight.numel()} entries, more "
            f"than the {n_nonzero} that the density keeps. Raise the density or lower "
            "min_alive."
        )
    if _in_numpy(weight):
        values = weight.detach()
        values = values if values.dtype in FLOATS else values.float()
        return torch.from_numpy(mark_guarded(values.numpy(), n_nonzero, min_alive, alive_dim))
    lines = weight.detach().abs().movedim(alive_dim, -1)
    guarded = _largest(lines.reshape(-1, length), min_alive).reshape(lines.shape)
    magnitude = lines.masked_fill(guarded, float("inf")).movedim(-1, alive_dim)
    return _largest(magnitude.reshape(1, -1), n_nonzero).reshape(weight.shape)


def abs_topk(x: Float[Tensor, "*batch width"], n_kept: int) -> Float[Tensor, "*batch width"]:
    """Keep the `n_kept` channels of largest magnitude in each row and zero the others.

    The gradient passes through the kept channels only. NaNs stay NaNs.

    Raises:
        ValueError: If `n_kept` is not between 1 and the width.

    Examples:
        >>> abs_topk(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), 2)
        tensor([[ 0., -3.,  2.,  0.]])
    """
    width = x.shape[-1]
    if not 1 <= n_kept <= width:
        raise ValueError(f"n_kept is between 1 and the width, {width}; got {n_kept}.")
    if n_kept == width:
        return x
    if _in_numpy(x) and x.dtype in FLOATS and x.numel():
        kept = _KeepLargest.apply(x, n_kept)
        assert isinstance(kept, Tensor)
        return kept
    if (kernel := _kernel_for(x)) is not None:
        return kernel.apply(x, n_kept)
    mask = _largest(x.detach().abs().reshape(-1, width), n_kept).reshape(x.shape)
    return x * mask


def _kernel_for(x: Tensor) -> Any:
    """Give the GPU's AbsTopK where it can be had, else None."""
    if not x.is_cuda or not x.numel() or torch.compiler.is_compiling():
        return None
    if not largest_on_gpu.AVAILABLE or x.dtype not in largest_on_gpu.DTYPES:
        return None
    return largest_on_gpu.KeepLargest if x.shape[-1] <= largest_on_gpu.WIDEST else None


class _KeepLargest(torch.autograd.Function):
    """x times the mask of its largest channels: one pass over x, and a byte a channel is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, n_kept: int) -> Tensor:
        rows = x.detach().reshape(-1, x.shape[-1])
        kept, mask = keep_largest(rows.numpy(), n_kept)
        ctx.mask = torch.from_numpy(mask).reshape(x.shape)
        return torch.from_numpy(kept).reshape(x.shape)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        # As numbers, not as truth values: several times as fast on a CPU.
        return grad_outputs[0] * ctx.mask.view(torch.uint8), None


def _in_numpy(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _largest(magnitude: Tensor, k: int) -> Tensor:
    """Mark the k largest entries of each row, the first ones among equals; NaN is the largest."""
    n = magnitude.shape[-1]
    if k == 0 or magnitude.numel() == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    if k == n:
        return torch.ones_like(magnitude, dtype=torch.bool)
    if _in_numpy(magnitude):
        if magnitude.dtype not in FLOATS:
            magnitude = magnitude.float()  # exact for the half precisions, which numpy lacks
        return torch.from_numpy(mark_largest(magnitude.numpy(), k))
    magnitude = magnitude.nan_to_num(nan=float("inf"), posinf=float("inf"))
    threshold = magnitude.topk(k, dim=-1).values[..., -1:]
    above, equal = magnitude > threshold, magnitude == threshold
    missing = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= missing))


class _HeavisideStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tau: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(tau)
        ctx.temperature = temperature
        return (tau > 0).to(tau.dtype)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (tau,) = ctx.saved_tensors
        s = torch.sigmoid(tau / ctx.temperature)
        return grad_outputs[0] * s * (1 - s) / ctx.temperature, None


def heaviside(tau: Float[Tensor, "*shape"], temperature: float = 1.0) -> Float[Tensor, "*shape"]:
    """Step from 0 to 1 at tau = 0 whose gradient is that of sigmoid(tau / temperature).

    The straight-through estimator of the paper's pruning (A.5): 1 where tau > 0, else 0.

    Examples:
        >>> tau = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
        >>> heaviside(tau).sum().backward()
        >>> [round(g, 4) for g in tau.grad.tolist()]
        [0.235, 0.25, 0.235]
    """
    out = _HeavisideStep.apply(tau, temperature)
    assert isinstance(out, Tensor)
    return out
