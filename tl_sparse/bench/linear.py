"""The linear layers of one block: products from live weights against those of `torch`.

Random tokens and weights, for neither product looks at the values. Ours chooses for each matrix
between the two ("auto"), so beside the products this measures the rule of `tl_sparse.products`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tl_sparse.bench.sizes import Size
from tl_sparse.bench.timing import Candidate, Measurement, Run
from tl_sparse.functional import kept_count, topk_mask
from tl_sparse.products import Products

DENSITIES = {"1/64": 1 / 64, "1/32": 1 / 32, "1/16": 1 / 16, "1/4": 1 / 4, "1": 1.0}
"""Weight densities that products are measured at."""

Product = Callable[[str, Tensor, Tensor, Tensor], Tensor]


def matrices(size: Size) -> dict[str, tuple[int, int]]:
    """Give inputs and outputs of a block's products; q, k and v are one."""
    d, d_mlp = size.d_model, size.d_mlp
    return {"qkv": (d, 3 * d), "o": (d, d), "in": (d, d_mlp), "out": (d_mlp, d)}


def dense_product(name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x W + b as torch does."""
    return F.linear(x, weight.T, bias)


@contextmanager
def _block(
    product_of: Callable[[], Product],
    size: Size,
    device: torch.device,
    density: float,
    backward: bool,
) -> Iterator[Run]:
    product, generator = product_of(), torch.Generator().manual_seed(0)
    calls = []
    for name, (n_in, n_out) in matrices(size).items():
        x = torch.randn(size.n_tokens, n_in, generator=generator)
        weight = torch.randn(n_in, n_out, generator=generator)
        weight *= topk_mask(weight, kept_count(density, weight.numel()))
        parts = [part.to(device).requires_grad_() for part in (x, weight, torch.zeros(n_out))]
        gradient = torch.randn(size.n_tokens, n_out, generator=generator).to(device)
        calls.append((name, parts, gradient))

    def forward() -> None:
        with torch.no_grad():
            for name, parts, _ in calls:
                product(name, *parts)

    def there_and_back() -> None:
        for name, parts, gradient in calls:
            torch.autograd.grad(product(name, *parts), parts, gradient)

    yield there_and_back if backward else forward


def linear(size: Size, device: torch.device) -> list[Measurement]:
    """Measure the four products of a block on a step's tokens, forward, and with the gradients."""
    ways: dict[str, Callable[[], Product]] = {
        "torch": lambda: dense_product,
        "ours": partial(Products, "auto"),
    }
    found = []
    for what, backward in (("forward", False), ("forward and backward", True)):
        for name, density in DENSITIES.items():
            candidates = tuple(
                Candidate(way, partial(_block, product_of, size, device, density, backward))
                for way, product_of in ways.items()
            )
            found.append(
                Measurement(
                    kind="linear",
                    size=size.name,
                    case=f"{what}, density {name}",
                    candidates=candidates,
                )
            )
    return found
