"""Fused attention with sinks against the definition: a softmax in which one more logit takes part.

In memory layouts too that a hook may hand on: PyTorch's kernel reads past an axis in pieces.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tl_sparse.layers import fused_attention

SHAPE = (2, 9, 3, 8)  # batch, pos, head_index, d_head


def by_definition(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, causal: bool) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 3
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    logits = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1)[..., :-1], v)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in one piece": lambda x: x,
    "channels apart": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other channel": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "all positions alike": lambda x: x[:, :1].expand(-1, SHAPE[1], -1, -1),
}

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "squares": lambda z: z.square().sum(),
    "a sum, whose gradient is one number": lambda z: z.sum(),
    "channels apart": lambda z: (z.mT * torch.linspace(-1, 1, 3, dtype=z.dtype)).sum(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("row_sums", [True, False])
def test_values_and_gradients_are_those_of_the_definition(layout, loss, causal, row_sums):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        LAYOUTS[layout](torch.randn(SHAPE, dtype=torch.float64, generator=generator))
        .detach()
        .requires_grad_()
        for _ in range(3)
    )
    sinks = torch.tensor([-1.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    z, _ = fused_attention(q, k, v, scale=3.0, causal=causal, sinks=sinks, row_sums=row_sums)
    expected = by_definition(q, k, v, sinks, causal)
    torch.testing.assert_close(z, expected)
    for name, mine, theirs in zip(
        ("q", "k", "v", "sinks"),
        torch.autograd.grad(LOSSES[loss](z), (q, k, v, sinks)),
        torch.autograd.grad(LOSSES[loss](expected), (q, k, v, sinks)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, msg=name)


@pytest.mark.parametrize("shape", [(0, 9, 3, 8), (2, 0, 3, 8)])
def test_no_prompts_and_no_tokens_give_nothing(shape):
    """PyTorch's kernel divides by their number, and takes the process with it."""
    x = torch.zeros(shape)
    z, _ = fused_attention(x, x, x, scale=3.0, causal=True, sinks=torch.zeros(3))
    assert z.shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_definition(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(3))
    sinks = torch.tensor([-1.0, 0.0, 4.0])
    z, _ = fused_attention(q, k, v, scale=3.0, causal=True, sinks=sinks)
    assert z.dtype == dtype
    expected = by_definition(q.float(), k.float(), v.float(), sinks, causal=True)
    torch.testing.assert_close(z.float(), expected, atol=2e-2, rtol=2e-2)


def test_without_the_kernel_the_sink_is_a_key(monkeypatch):
    q, k, v = (torch.randn(SHAPE) for _ in range(3))
    sinks = torch.randn(3)
    here, _ = fused_attention(q, k, v, scale=3.0, causal=True, sinks=sinks)
    monkeypatch.setattr("tl_sparse.layers._FLASH", "_no_such_kernel")
    slow, _ = fused_attention(q, k, v, scale=3.0, causal=True, sinks=sinks)
    torch.testing.assert_close(slow, here)
