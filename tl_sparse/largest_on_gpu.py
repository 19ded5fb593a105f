"""The k largest channels of each token, on a GPU in one pass.

By torch's own operations AbsTopK goes over its input dozens of times, and of each time memory is
the limit. Here each row is read once, and stays in registers:

1. A magnitude's bits, read as an integer, are in the order of the magnitudes. So the k-th largest
   is found bit by bit from the highest: a bit is set if k entries are at least that large.
2. Kept are the entries above it, and of those equal to it the first ones, k in all.
3. Written are the row with the rest zeroed, and a byte a channel for backward.

Triton, which comes with torch's CUDA build, compiles it at the first call. Where there is no Triton
there is no kernel, and `AVAILABLE` is false.
"""

from typing import no_type_check

import torch
from torch import Tensor

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:  # as in torch's CPU build
    triton = None

AVAILABLE = triton is not None
"""Whether the kernel can be made."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types whose numbers float32 holds exactly."""

WIDEST = 2**14
"""The longest row that is held in registers."""


class KeepLargest(torch.autograd.Function):
    """x with all but the k largest of each row zeroed; the gradient passes where they were."""

    @staticmethod
    def forward(ctx, x: Tensor, n_kept: int) -> Tensor:
        """Keep the `n_kept` channels of largest magnitude of each row."""
        x = x.detach().contiguous()
        width, kept = x.shape[-1], torch.empty_like(x)
        ctx.mask = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
        block = 1 << (width - 1).bit_length()
        sizes = {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}
        with torch.cuda.device_of(x):
            kernel = _keep[(x.numel() // width,)]  # pyright: ignore[reportIndexIssue]
            kernel(x, kept, ctx.mask, width, n_kept, **sizes)
        return kept

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient through the kept channels."""
        return grad_outputs[0] * ctx.mask, None


if triton is not None:

    @triton.jit
    @no_type_check  # Triton reads the source, and wants no wrapper around it
    def _keep(x, kept, mask, width, k, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * width
        column = tl.arange(0, BLOCK)
        inside = column < width
        value = tl.load(x + row + column, mask=inside, other=0.0)
        bits = value.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        bits = tl.where(inside, tl.minimum(bits, 0x7F800000), -1)  # NaN counts as infinite
        threshold = tl.zeros((), dtype=tl.int32)
        for place in tl.static_range(31):
            higher = threshold | (1 << (30 - place))
            enough = tl.sum((bits >= higher).to(tl.int32)) >= k
            threshold = tl.where(enough, higher, threshold)
        above, equal = bits > threshold, bits == threshold
        missing = k - tl.sum(above.to(tl.int32))
        keep = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= missing))
        tl.store(kept + row + column, tl.where(keep, value, 0.0), mask=inside)
        tl.store(mask + row + column, keep.to(tl.uint8), mask=inside)
