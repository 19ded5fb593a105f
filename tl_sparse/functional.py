"""Pure tensor functions: exact top-k masks, AbsTopK and the straight-through step.

All three choices of "the k largest" here are *exact*: they keep precisely k entries, and equal
magnitudes are kept in the order of their positions. The method is a threshold, not a sort:

1. t = the k-th largest magnitude (`numpy.partition` on the CPU, several times as fast there as
   `torch.topk`; `torch.topk` elsewhere and under `torch.compile`),
2. keep everything above t,
3. of the entries equal to t keep the first few, until there are k.

Gao et al. 2025 (arXiv 2511.13653): section 2.1 (weights), A.1 (AbsTopK), A.5 (the step).
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
    magnitude = weight.detach().abs()
    if min_alive:
        guarded = _guarded_mask(magnitude, min_alive, alive_dim)
        n_guarded = int(guarded.sum())
        if n_guarded > n_nonzero:
            raise ValueError(
                f"min_alive={min_alive} protects {n_guarded} of {weight.numel()} entries, more "
                f"than the {n_nonzero} that the density keeps. Raise the density or lower "
                "min_alive."
            )
        magnitude = magnitude.masked_fill(guarded, float("inf"))
    return _largest(magnitude.reshape(1, -1), n_nonzero).reshape(weight.shape)


def _guarded_mask(magnitude: Tensor, min_alive: int, alive_dim: int) -> Tensor:
    rows = magnitude.movedim(alive_dim, -1)
    if min_alive > rows.shape[-1]:
        raise ValueError(
            f"min_alive={min_alive} asks for more entries than the {rows.shape[-1]} that there are."
        )
    mask = _largest(rows.reshape(-1, rows.shape[-1]), min_alive)
    return mask.reshape(rows.shape).movedim(-1, alive_dim)


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
    mask = _largest(x.detach().abs().reshape(-1, width), n_kept).reshape(x.shape)
    return x * mask.view(torch.uint8).to(x.dtype)  # ten times as fast as from bool, on a CPU


def _largest(magnitude: Tensor, k: int) -> Tensor:
    """Mark the k largest entries of each row, the first ones among equals; NaN is the largest."""
    n = magnitude.shape[-1]
    if k == 0 or magnitude.numel() == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    if k == n:
        return torch.ones_like(magnitude, dtype=torch.bool)
    if magnitude.device.type == "cpu" and not torch.compiler.is_compiling():
        if magnitude.dtype not in (torch.float32, torch.float64):
            magnitude = magnitude.float()  # exact for the half precisions, which numpy lacks
        return torch.from_numpy(_largest_numpy(magnitude.numpy(), k))
    magnitude = magnitude.nan_to_num(nan=float("inf"), posinf=float("inf"))
    threshold = magnitude.topk(k, dim=-1).values[..., -1:]
    above, equal = magnitude > threshold, magnitude == threshold
    missing = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= missing))


def _largest_numpy(magnitude: np.ndarray, k: int) -> np.ndarray:
    n = magnitude.shape[-1]
    threshold = np.partition(magnitude, n - k, axis=-1)[:, n - k, None]
    mask = magnitude >= threshold
    n_kept = np.count_nonzero(mask)
    if n_kept < k * len(mask):  # NaN is no less than anything; dropped, it would become a quiet 0
        return _largest_numpy(np.nan_to_num(magnitude, nan=np.inf, posinf=np.inf), k)
    if n_kept > k * len(mask):  # some row has equals at its threshold
        crowded = np.flatnonzero(np.count_nonzero(mask, axis=-1) > k)
        rows, t = magnitude[crowded], threshold[crowded]
        above, equal = rows > t, rows == t
        missing = k - np.count_nonzero(above, axis=-1, keepdims=True)
        mask[crowded] = above | (equal & (np.cumsum(equal, axis=-1) <= missing))
    return mask


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
