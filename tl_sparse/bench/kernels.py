"""The two choices of "the k largest": projection of weights, AbsTopK of activations.

The baseline is what one writes without this package: `torch.topk` and `scatter`. It breaks ties as
it likes, where ours keeps the first; on random numbers both keep the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from tl_sparse.bench.sizes import Size
from tl_sparse.bench.timing import Candidate, Measurement, Run
from tl_sparse.functional import abs_topk, kept_count, topk_mask
from tl_sparse.masks import zero_outside_

DENSITIES = {"1/64": 1 / 64, "1/32": 1 / 32, "1/4": 1 / 4}
"""Weight densities that projection is measured at."""

ACTIVATION_DENSITIES = {"1/16": 1 / 16, "1/4": 1 / 4, "1/2": 1 / 2}

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Channels that AbsTopK chooses from."""

GUARD = 4
MAX_ENTRIES = 2**22
"""Of the activations that AbsTopK is measured on: wide ones have fewer rows."""


def projected_by_scatter(weight: Tensor, k: int) -> Tensor:
    """Keep the k largest by `torch.topk` and `scatter`."""
    flat = weight.flatten()
    kept = flat.abs().topk(k, sorted=False).indices
    return torch.zeros_like(flat).scatter_(0, kept, flat[kept]).view_as(weight)


def projected(weight: Tensor, k: int, *, min_alive: int = 0) -> Tensor:
    """Keep the k largest by `topk_mask`, the guard along the first axis."""
    kept = weight.clone()
    zero_outside_(kept, topk_mask(weight, k, min_alive=min_alive, alive_dim=0))
    return kept


def topk_by_scatter(x: Tensor, k: int) -> Tensor:
    """Keep the k largest of each row by `torch.topk` and `scatter`."""
    kept = x.detach().abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))


@contextmanager
def _project(
    project: Callable[[Tensor, int], Tensor], shape: tuple[int, int], k: int, device: torch.device
) -> Iterator[Run]:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    yield lambda: project(weight, k)


@contextmanager
def _there_and_back(
    choose: Callable[[Tensor, int], Tensor], shape: tuple[int, int], k: int, device: torch.device
) -> Iterator[Run]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device).requires_grad_()
    gradient = torch.randn(shape, generator=generator).to(device)
    yield lambda: torch.autograd.grad(choose(x, k), x, gradient)


def projection(size: Size, device: torch.device) -> list[Measurement]:
    """Measure the exact projection of one matrix, with and without the guard of 4."""
    found = []
    shape = size.projected
    for name, density in DENSITIES.items():
        k = kept_count(density, shape[0] * shape[1])
        ways: dict[str, Callable[[Tensor, int], Tensor]] = {
            "torch.topk and scatter": projected_by_scatter,
            "ours": projected,
        }
        if shape[1] * GUARD <= k:
            ways[f"ours, guard {GUARD}"] = partial(projected, min_alive=GUARD)
        candidates = tuple(
            Candidate(way, partial(_project, project, shape, k, device))
            for way, project in ways.items()
        )
        case = f"{shape[0]} x {shape[1]}, density {name}"
        found.append(
            Measurement(kind="projection", size=size.name, case=case, candidates=candidates)
        )
    return found


def abstopk(size: Size, device: torch.device) -> list[Measurement]:
    """Measure AbsTopK forward and backward at widths from 64 to 4,096, on a step's tokens."""
    found = []
    ways = {"torch.topk and scatter": topk_by_scatter, "ours": abs_topk}
    for width in WIDTHS:
        shape = (min(size.n_tokens, MAX_ENTRIES // width), width)
        for name, density in ACTIVATION_DENSITIES.items():
            k = kept_count(density, width)
            candidates = tuple(
                Candidate(way, partial(_there_and_back, choose, shape, k, device))
                for way, choose in ways.items()
            )
            case = f"{shape[0]} x {width}, density {name}"
            found.append(
                Measurement(kind="abstopk", size=size.name, case=case, candidates=candidates)
            )
    return found
