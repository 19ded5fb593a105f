"""Top-k masks, AbsTopK and the straight-through step against slow definitions and closed forms."""

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_sparse import functional
from tl_sparse.functional import abs_topk, heaviside, kept_count, topk_mask


def slow_largest(values: list[float], k: int) -> list[bool]:
    """The definition: sort by falling magnitude, then by position, and keep the first k."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    return [i in order[:k] for i in range(len(values))]


few_values = st.lists(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 0.5]), min_size=1, max_size=20
)


@given(few_values, st.data())
@settings(max_examples=300, deadline=None)
def test_topk_mask_keeps_the_largest_and_breaks_ties_by_position(values, data):
    k = data.draw(st.integers(0, len(values)))
    assert topk_mask(torch.tensor(values), k).tolist() == slow_largest(values, k)


@given(st.lists(few_values, min_size=1, max_size=4), st.data())
@settings(max_examples=200, deadline=None)
def test_abs_topk_equals_the_definition_on_each_row(rows, data):
    width = min(len(row) for row in rows)
    x = torch.tensor([row[:width] for row in rows])
    k = data.draw(st.integers(1, width))
    expected = [
        [v if keep else 0.0 for v, keep in zip(row, slow_largest(row, k), strict=True)]
        for row in x.tolist()
    ]
    assert abs_topk(x, k).tolist() == expected


@pytest.mark.parametrize("width", [5, 64, 257])
def test_the_cpu_path_and_the_other_devices_path_keep_the_same_entries(width, monkeypatch):
    x = torch.randn(40, width).mul(2).round() / 2  # many ties
    fast = functional._largest(x.abs(), 3)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(functional._largest(x.abs(), 3), fast)


KERNEL = """
import torch
from tl_sparse.functional import abs_topk
from tl_sparse.largest_on_gpu import KeepLargest

generator = torch.Generator().manual_seed(0)
for width in (5, 64, 100):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(6, width, generator=generator).mul(2).round().div(2).to(dtype)
        x[3] = torch.randn(width, generator=generator).to(dtype)
        for n_kept in {1, width // 4, width - 1}:
            ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            kept, expected = KeepLargest.apply(ours, n_kept), abs_topk(theirs, n_kept)
            kept.float().pow(2).sum().backward()
            expected.float().pow(2).sum().backward()
            assert torch.equal(kept, expected), (width, dtype, n_kept)
            assert torch.equal(ours.grad, theirs.grad), (width, dtype, n_kept)
"""


@pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="torch's CPU build has no Triton"
)
def test_the_gpu_s_kernel_keeps_the_same_entries_where_triton_interprets_it():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", KERNEL], env=environment, check=True, timeout=120)


def test_abs_topk_passes_gradient_through_kept_channels_only():
    x = torch.tensor([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (abs_topk(x, 2) * torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 10.0, 100.0], [1.0, 10.0, 0.0]]


@pytest.mark.parametrize("n_nan", [1, 3, 5])
@pytest.mark.parametrize("compiled", [False, True])
def test_masks_keep_nan_and_are_exact_all_the_same(n_nan, compiled, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    weight.view(-1)[torch.arange(n_nan) * 3] = float("nan")
    mask = topk_mask(weight, 4)
    assert int(mask.sum()) == 4
    assert int(weight[mask].isnan().sum()) == min(n_nan, 4)


def test_abs_topk_works_in_half_precision_and_keeps_nan():
    x = torch.tensor([[1.0, -3.0, 2.0]], dtype=torch.bfloat16)
    assert abs_topk(x, 1).tolist() == [[0.0, -3.0, 0.0]]
    assert abs_topk(torch.tensor([[float("nan"), 1.0, 2.0]]), 1).isnan().any()


def test_guarded_mask_protects_the_largest_of_each_neuron_then_fills_up():
    weight = torch.tensor([[9.0, 8.0, 7.0], [0.3, 0.2, 0.1], [6.0, 0.01, 0.02]])
    # One for each row: 9, 0.3, 6; two more from the rest: 8 and 7.
    mask = topk_mask(weight, 5, min_alive=1, alive_dim=1)
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, False, False]]


@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_guarded_mask_against_brute_force(seed, min_alive, dim):
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)).round()
    k = 45
    mask = topk_mask(weight, k, min_alive=min_alive, alive_dim=dim)
    rows, kept = weight.movedim(dim, -1).reshape(-1, weight.shape[dim]), set()
    index = torch.arange(60).reshape(3, 4, 5).movedim(dim, -1).reshape(-1, weight.shape[dim])
    for row, places in zip(rows.tolist(), index.tolist(), strict=True):
        kept |= {p for p, keep in zip(places, slow_largest(row, min_alive), strict=True) if keep}
    flat = weight.flatten().tolist()
    rest = sorted((i for i in range(60) if i not in kept), key=lambda i: (-abs(flat[i]), i))
    kept |= set(rest[: k - len(kept)])
    assert set(mask.flatten().nonzero().flatten().tolist()) == kept


@pytest.mark.parametrize("dead", [0.0, 0.5])
@pytest.mark.parametrize("density", [1 / 64, 1 / 4])
def test_a_guard_of_a_large_matrix_is_that_of_the_other_devices_path(dead, density, monkeypatch):
    """Neurons that are almost dead, of which the threshold alone would leave nothing."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 700, generator=generator).T  # not contiguous either
    weight = weight * torch.where(torch.rand(500, generator=generator) < dead, 1e-3, 1.0)
    n_nonzero = int(density * weight.numel())
    fast = topk_mask(weight, n_nonzero, min_alive=4, alive_dim=0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(fast, topk_mask(weight, n_nonzero, min_alive=4, alive_dim=0))
    assert int(fast.sum(0).min()) >= 4
    assert int(fast.sum()) == n_nonzero


@pytest.mark.parametrize("width", [512, 600, 1024, 4096])
@pytest.mark.parametrize("n_kept", [1, 100, 256, 511])
@pytest.mark.parametrize("kind", ["random", "ties", "unlike blocks"])
def test_wide_rows_keep_what_a_stable_sort_keeps(width, n_kept, kind):
    """Rows that are sorted block by block, also where the blocks are unlike each other."""
    x = torch.randn(9, width, generator=torch.Generator().manual_seed(width), dtype=torch.float32)
    if kind == "ties":
        x = (2 * x).round() / 2
    elif kind == "unlike blocks":
        x[:, : width // 2] *= 100
    order = x.abs().argsort(dim=-1, descending=True, stable=True)[:, :n_kept]
    expected = torch.zeros_like(x).scatter(-1, order, x.gather(-1, order))
    assert torch.equal(abs_topk(x, n_kept), expected)


LONG = 300_000  # a row that is marked by a sample's guess


def long_rows() -> dict[str, torch.Tensor]:
    x = torch.randn(LONG, generator=torch.Generator().manual_seed(0))
    unlike = x.clone()
    unlike[:: LONG // 2**16 | 1] *= 1e-3  # what the sample sees
    return {
        "random": x, "ties": (2 * x).round() / 2, "mostly zero": x * (x > 1.5), "zero": 0 * x,
        "rising": torch.linspace(-1, 1, LONG), "unlike its sample": unlike,
        "infinite": torch.where(x > 2, torch.inf, x), "double": x.double(),
    }  # fmt: skip


@pytest.mark.parametrize("n_kept", [1, 700, LONG // 64, LONG // 4, LONG - 3])
@pytest.mark.parametrize("kind", long_rows())
def test_a_matrix_keeps_what_a_stable_sort_keeps(kind, n_kept):
    x = long_rows()[kind]
    order = x.abs().argsort(descending=True, stable=True)[:n_kept]
    expected = torch.zeros(LONG, dtype=torch.bool)
    expected[order] = True
    assert torch.equal(topk_mask(x.view(600, 500), n_kept), expected.view(600, 500))


def test_nan_in_a_matrix_is_kept():
    x = long_rows()["random"].clone()
    x[[5, 100_000]] = torch.nan
    mask = topk_mask(x, 1000)
    assert int(mask.sum()) == 1000
    assert mask[[5, 100_000]].all()


@pytest.mark.parametrize("shape", [(600, 500), (20, 30, 500), (4, 250, 300)])
@pytest.mark.parametrize("spare", [0, 1, 4000])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_guard_of_a_large_tensor_takes_each_lines_largest_first(shape, spare, dim):
    """Also where it takes the whole budget, or nearly."""
    x = long_rows()["random"].view(shape)
    length = shape[dim]
    n_kept = 3 * LONG // length + spare
    lines = x.abs().movedim(dim, -1).reshape(-1, length).clone()
    lines.scatter_(1, lines.topk(3).indices, torch.inf)
    order = lines.flatten().argsort(descending=True, stable=True)[:n_kept]
    expected = torch.zeros(LONG, dtype=torch.bool)
    expected[order] = True
    mask = topk_mask(x, n_kept, min_alive=3, alive_dim=dim).movedim(dim, -1)
    assert torch.equal(mask.reshape(-1), expected)


def test_a_guard_that_needs_more_than_the_budget_is_refused():
    with pytest.raises(ValueError, match="protects 6 of 9 entries, more than the 5"):
        topk_mask(torch.randn(3, 3), 5, min_alive=2)
    with pytest.raises(ValueError, match="more entries than the 3"):
        topk_mask(torch.randn(3, 3), 9, min_alive=4)
    with pytest.raises(ValueError, match="between 0 and the number of entries, 9"):
        topk_mask(torch.randn(3, 3), 10)
    with pytest.raises(ValueError, match="between 1 and the width"):
        abs_topk(torch.randn(3, 3), 0)


def test_kept_count_is_the_floor_of_the_quotient_as_written():
    kept = [kept_count(d, n) for d, n in ((0.1, 30), (1 / 3, 9), (0.29, 100), (0.5, 7))]
    assert kept == [3, 3, 29, 3]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_heaviside_steps_at_zero_with_the_sigmoids_slope(temperature):
    tau = torch.tensor([-1.0, -1e-9, 0.0, 1e-9, 0.7], dtype=torch.float64, requires_grad=True)
    gate = heaviside(tau, temperature)
    assert gate.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    gate.sum().backward()
    closed = [
        math.exp(-t / temperature) / (temperature * (1 + math.exp(-t / temperature)) ** 2)
        for t in tau.tolist()
    ]
    # and finite differences of the surrogate, a sigmoid written out here
    h = 1e-6
    sigmoid = [
        (1 / (1 + math.exp(-(t + h) / temperature)) - 1 / (1 + math.exp(-(t - h) / temperature)))
        / (2 * h)
        for t in tau.tolist()
    ]
    assert tau.grad is not None
    assert tau.grad.tolist() == pytest.approx(closed, abs=1e-12)
    assert tau.grad.tolist() == pytest.approx(sigmoid, abs=1e-8)
