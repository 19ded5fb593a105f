"""Products with a matrix that is mostly zero, from its live weights alone.

y = x W + b and the gradient for x cost as many multiplications a token as there are live weights.
scipy multiplies a sparse matrix with a dense one whose rows it walks along, so tokens have to be
the columns. The tokens go through in chunks that fit in a core's cache, on several threads:

1. x -> x^T for the chunk,
2. y^T = W^T x^T + b from the live weights,
3. y^T -> y.

Backward is the same with W in place of W^T. The gradient for W is either a dense product, of which
weights that are zero get their part and can come back, or made for the live weights alone.

Whether that is faster than the dense product is told by a rule (`pays`) whose constants were
measured (docs/results/speed.md), not by a clock at run time: a run is to give the same bits twice.
"""

import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from tl_sparse.largest import FLOATS
from tl_sparse.threads import Work, for_chunks

ProductPath = Literal["dense", "sparse", "auto"]

CHUNK, ROOM = 512, 2**19
"""Tokens that a thread works on at a time, at most, and numbers that go in and out with them."""

DENSE, LIVE, TRANSPOSED = 0.025, 0.135, 1.0
"""Nanoseconds that one thread takes a token: for a multiplication of the dense product, for a live
weight, and for an entry that is moved to the other order of rows and columns."""

CALL = 1.2e6
"""Nanoseconds that a product from live weights takes beyond that, with its gradients' share."""


class LiveWeights:
    """Where the nonzero entries of a matrix are, [n_in, n_out]; made anew when it changes."""

    def __init__(self, weight: Float[Tensor, "n_in n_out"]) -> None:
        self.shape = (weight.shape[0], weight.shape[1])
        flat = np.flatnonzero(weight.detach().numpy().reshape(-1) != 0).astype(np.int64)
        inputs, outputs = np.divmod(flat, self.shape[1])
        self.flat = torch.from_numpy(flat)
        self.n = len(flat)
        self._order = np.argsort(outputs, kind="stable")
        self._by_input = (outputs.astype(np.int32), _pointers(inputs, self.shape[0]))
        by_output = inputs[self._order].astype(np.int32)
        self._by_output = (by_output, _pointers(outputs, self.shape[1]))

    def fits(self, weight: Float[Tensor, "n_in n_out"]) -> bool:
        """Tell whether these are still exactly the nonzero entries of a matrix."""
        same = tuple(weight.shape) == self.shape and int(weight.count_nonzero()) == self.n
        return same and bool(self.values(weight).all())

    def values(self, weight: Float[Tensor, "n_in n_out"]) -> Float[Tensor, " live"]:
        """Give the live weights themselves, input by input."""
        return weight.detach().reshape(-1)[self.flat]

    def matrix(self, values: Float[Tensor, " live"]) -> csr_array:
        """Give W as a sparse matrix, [n_in, n_out]."""
        return csr_array((values.numpy(), *self._by_input), shape=self.shape)

    def transposed(self, values: Float[Tensor, " live"]) -> csr_array:
        """Give W^T as a sparse matrix, [n_out, n_in]."""
        return csr_array((values.numpy()[self._order], *self._by_output), shape=self.shape[::-1])

    def gradient(self, x: list[Tensor], g: list[Tensor]) -> Float[Tensor, "n_in n_out"]:
        """Sum x^T g over chunks [n_in, tokens] and [n_out, tokens], for the live weights alone."""
        outputs, pointers = (torch.from_numpy(part) for part in self._by_input)
        zeros = torch.zeros(self.n, dtype=x[0].dtype)
        with warnings.catch_warnings():  # torch's own word for sparse tensors is "beta"
            warnings.simplefilter("ignore", UserWarning)
            total = torch.sparse_csr_tensor(
                pointers, outputs, zeros, self.shape, check_invariants=False
            )
        for one, other in zip(x, g, strict=True):
            total = torch.sparse.sampled_addmm(total, one, other.T)
        dense = torch.zeros(self.shape[0] * self.shape[1], dtype=x[0].dtype)
        return dense.index_copy_(0, self.flat, total.values()).view(self.shape)


def _pointers(rows: NDArray[Any], n_rows: int) -> NDArray[np.int32]:
    counts = np.bincount(rows, minlength=n_rows)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def pays(n_tokens: int, n_in: int, n_out: int, n_live: int) -> bool:
    """Tell whether a product from live weights is faster than the dense one."""
    dense = DENSE * n_in * n_out
    sparse = LIVE * n_live + TRANSPOSED * (n_in + n_out)
    return n_tokens * (dense - sparse) > CALL


def chunk_of(shape: tuple[int, int]) -> int:
    """Give the tokens that a thread takes at a time, which fit in its cache; W and W^T alike."""
    return max(64, min(CHUNK, ROOM // sum(shape)))


@dataclass
class Products:
    """How a model makes its products; one object for all of its layers."""

    path: ProductPath = "dense"
    """"auto" makes those from live weights where that `pays`, "sparse" all that it can: those of
    float32 or float64 on a CPU, without autocast."""
    live_gradient: bool = False
    """Whether weights that are zero get no gradient, which is then cheaper to make."""
    found: dict[str, LiveWeights] = field(default_factory=dict, repr=False)
    """Where the live weights of each matrix were when they were last looked for."""

    def __call__(
        self,
        name: str,
        x: Float[Tensor, "*batch_pos n_in"],
        weight: Float[Tensor, "n_in n_out"],
        bias: Float[Tensor, " n_out"],
    ) -> Float[Tensor, "*batch_pos n_out"]:
        """Compute x W + b; `name` stands for the place in the model."""
        live = self._live(name, x, weight)
        if live is None:
            return F.linear(x, weight.T, bias)
        y = _Product.apply(x.flatten(0, -2), weight, bias, live, self.live_gradient)
        assert isinstance(y, Tensor)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _live(self, name: str, x: Tensor, weight: Tensor) -> LiveWeights | None:
        """Give the live weights of a matrix if a product with x is to be made from them."""
        if self.path == "dense" or not _possible(x, weight):
            return None
        if self.path == "auto":
            # First without looking at the weights: would it pay if there were next to none?
            (n_in, n_out), n_tokens = weight.shape, x.numel() // x.shape[-1]
            if not pays(n_tokens, n_in, n_out, 0):
                return None
            if not pays(n_tokens, n_in, n_out, int(weight.count_nonzero())):
                return None
        live = self.found.get(name)
        if live is None or not live.fits(weight):
            live = self.found[name] = LiveWeights(weight)
        return live

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be found again."""
        return {"path": self.path, "live_gradient": self.live_gradient, "found": {}}


def _possible(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == weight.device.type == "cpu" and x.numel() > 0
    alike = x.dtype == weight.dtype and x.dtype in FLOATS
    elsewhere = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return on_cpu and alike and not elsewhere


class _Product(torch.autograd.Function):
    """x W + b from the live weights of W, and its gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, live, live_gradient):
        values, blocks = live.values(weight), None
        if ctx.needs_input_grad[1] and live_gradient:
            blocks = [torch.empty(0)] * -(-len(x) // chunk_of(live.shape))
        y = _times(live.transposed(values), x, bias, blocks)
        ctx.save_for_backward(values, *(blocks or [x] * ctx.needs_input_grad[1]))
        ctx.live, ctx.live_gradient = live, live_gradient
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grad_outputs
        values, *kept = ctx.saved_tensors
        for_x = for_weight = None
        blocks = [torch.empty(0)] * len(kept) if ctx.live_gradient and kept else None
        if ctx.needs_input_grad[0] or blocks:
            for_x = _times(ctx.live.matrix(values), g, None, blocks)
        if blocks:
            for_weight = ctx.live.gradient(kept, blocks)
        elif kept:
            for_weight = kept[0].T @ g
        for_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return for_x, for_weight, for_bias, None, None


def _times(
    matrix: csr_array, x: Tensor, bias: Tensor | None, blocks: list[Tensor] | None
) -> Float[Tensor, "token n_out"]:
    """Give (matrix x^T)^T + bias, and keep the chunks of x^T in `blocks` if there is a list."""
    y = torch.empty(len(x), matrix.shape[0], dtype=x.dtype)  # pyright: ignore[reportOptionalSubscript]
    shift = None if bias is None else bias.detach().numpy()[:, None]
    chunk = chunk_of((x.shape[1], y.shape[1]))
    chunks = _Chunks(matrix, x.detach(), shift, y, blocks, chunk)
    for_chunks(len(x), chunk, chunks.begin)
    return y


@dataclass(frozen=True)
class _Chunks:
    """The chunks of one product."""

    matrix: csr_array
    x: Tensor
    shift: NDArray[Any] | None
    y: Tensor
    blocks: list[Tensor] | None
    n_tokens: int

    def begin(self) -> Work:
        return partial(self.do, self.x.new_empty(self.x.shape[1], self.n_tokens))

    def do(self, room: Tensor, start: int, stop: int) -> None:
        columns = room[:, : stop - start]
        if self.blocks is not None:
            columns = self.blocks[start // self.n_tokens] = room.new_empty(len(room), stop - start)
        columns.copy_(self.x[start:stop].T)
        product = self.matrix @ columns.numpy()
        if self.shift is not None:
            product += self.shift
        self.y[start:stop].copy_(torch.from_numpy(product).T)
