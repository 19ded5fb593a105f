"""The cost model against counts on real models, and against numbers worked out by hand."""

import ast
import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import SHAPE
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens import HookedTransformerConfig

import tl_sparse
from tl_sparse.bench.cost import (
    Run,
    abs_topk_bytes,
    all_reduce_bytes,
    memory,
    n_parameters,
    topk_mask_bytes,
    work,
)
from tl_sparse.bench.gpus import (
    A100,
    BANDWIDTH_SHARE,
    H100,
    H200,
    PEAK_SHARE,
    estimate,
    table,
    with_fitting_accumulation,
)
from tl_sparse.bench.plain import PlainTransformer
from tl_sparse.bench.sizes import Size
from tl_sparse.bench.training import our_model
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.functional import topk_mask
from tl_sparse.layers import fused_attention
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.presets import demo_shape
from tl_sparse.training import next_token_loss

DENSE = SparsityConfig(bigram_table=True)
SPARSE = replace(DENSE, weight_density=1 / 1024, embedding_density=1 / 32, activation_density=1 / 4)
TRAINING = TrainingConfig(n_tokens=32 * 10**9, batch_size=512, precision="bf16")
PRECISIONS = ["float32", "bf16"]


def shape_of(width: int, **others: Any) -> HookedTransformerConfig:
    shape: dict[str, Any] = demo_shape(2048, width=width) | {"seed": None} | others
    return HookedTransformerConfig(**shape)


LARGE = Run(shape_of(2048, n_layers=8, n_ctx=256), SPARSE, TRAINING)
"""The paper's largest shape."""


class Bytes(TorchDispatchMode):
    """Counts what operations read and write; views are free, and so is room that is only taken."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        places = {t.untyped_storage()._cdata for t in given}
        is_view = made and all(t.untyped_storage()._cdata in places for t in made)
        if not (is_view and not func._schema.is_mutable) and "empty" not in str(func):
            self.count[str(func)] += sum(t.numel() * t.element_size() for t in given + made)
        return out


def small(n_layers: int, *, precision: str, sparsity: SparsityConfig, batch_size: int = 8) -> Run:
    training = TrainingConfig(batch_size=batch_size, precision=precision)  # pyright: ignore[reportArgumentType]
    return Run(shape_of(128, n_layers=n_layers, d_vocab=64, n_ctx=64), sparsity, training)


def loss_of(run: Run, device: str = "cpu") -> Tensor:
    model = HookedSparseTransformer(run.shape, sparsity=run.sparsity, attention="auto").to(device)
    shape = (run.training.batch_size, run.n_ctx)
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    with torch.autocast("cpu", torch.bfloat16, enabled=run.training.precision == "bf16"):
        logits = model(tokens)
    return next_token_loss(logits.float(), tokens)


def bytes_kept(run: Run) -> int:
    """Bytes that the forward pass of a real model keeps for backward, weights left out."""
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(run)
    leaves = (t for t in kept.values() if not (t._base is not None and t._base.is_leaf))
    return sum(t.untyped_storage().nbytes() for t in leaves)


def bytes_moved(run: Run) -> int:
    with Bytes() as moved:
        loss_of(run).backward()
    return moved.count.total()


@pytest.fixture
def attention_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks as one more key, as everywhere but on a CPU."""

    def with_row_sums(*args: Any, **kwargs: Any) -> Any:
        return fused_attention(*args, **kwargs | {"row_sums": True})

    monkeypatch.setattr("tl_sparse.model.blocks.fused_attention", with_row_sums)


# -- what is held ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RMS", "RMSPre"])
@pytest.mark.parametrize("positions", ["none", "standard"])
@pytest.mark.parametrize("extras", [True, False])
def test_parameters_and_state_are_those_of_a_real_model(kind, positions, extras):
    shape = SHAPE | {
        "normalization_type": kind,
        "positional_embedding_type": positions,
        "use_attention_sinks": extras,
        "d_mlp": 48,
    }
    run = Run(
        HookedTransformerConfig(**shape), SparsityConfig(bigram_table=extras), TrainingConfig()
    )
    model = HookedSparseTransformer(run.shape, sparsity=run.sparsity)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(n_parameters(run).values()) == sum(p.numel() for p in trained)
    optimizer = torch.optim.Adam(trained)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim > 0]
    held = memory(run)
    assert held["weights"] == sum(p.nbytes for p in model.parameters())
    assert held["masks"] == sum(mask.nbytes for mask in model.weight_masks.values())
    assert held["gradients"] == sum(p.nbytes for p in trained)
    used = sum(t.nbytes for t in moments)
    assert used <= held["Adam's moments"] == 2 * held["gradients"]
    assert used > 0.9 * held["Adam's moments"]  # a parameter without a gradient has none


@pytest.mark.usefixtures("attention_as_on_a_gpu")
@pytest.mark.parametrize("weight_density", [1.0, 1 / 2])
@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_kept_activations_are_those_of_a_real_model(precision, sinks, weight_density):
    sparsity = replace(DENSE, weight_density=weight_density)

    def run(n_layers: int, batch_size: int) -> Run:
        one = small(n_layers, precision=precision, sparsity=sparsity, batch_size=batch_size)
        return replace(one, shape=shape_of(128, n_layers=n_layers, d_vocab=64, n_ctx=64,
                                           use_attention_sinks=sinks))  # fmt: skip

    # One layer more, and eight rows more: neither the ends of the model nor its weights.
    rows = [bytes_kept(run(2, n)) - bytes_kept(run(1, n)) for n in (16, 8)]
    expected = memory(run(1, 8))["activations"]
    assert rows[0] - rows[1] == pytest.approx(expected, rel=0.02)


def test_masks_of_abs_topk_are_a_byte_for_each_channel():
    kept = []
    sparsity = replace(DENSE, activation_density={"attn_in": 0.5, "q": 0.25, "mlp_neuron": 0.25})
    run = small(2, precision="float32", sparsity=sparsity)

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes if tensor.dtype == torch.bool else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(run, "meta")  # as on a GPU: numpy has no part in it
    assert sum(kept) == memory(run)["AbsTopK's masks"] == 2 * 8 * 64 * (128 + 128 + 512)


# -- what is done ---------------------------------------------------------------------------------


def test_products_are_those_that_torch_counts_in_the_plain_model():
    size = Size(name="small", n_layers=3, d_model=64, d_mlp=160, d_vocab=96, n_ctx=32, batch_size=4,
                projected=(1, 1))  # fmt: skip
    shape = shape_of(64, n_layers=3, d_mlp=160, d_vocab=96, n_ctx=32, use_attention_sinks=False)
    done = work(Run(shape, SparsityConfig(), TrainingConfig(batch_size=4)))
    tokens = torch.zeros(4, 32, dtype=torch.long)
    model = PlainTransformer(size)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model.loss(tokens)
        with FlopCounterMode(display=False) as backward:
            loss.backward()

    def counted(counter: FlopCounterMode, *names: str) -> int:
        by_name = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
        return sum(v for k, v in by_name.items() if k in names)

    unembedding = done["unembedding and loss"].flops
    linear = [done[f"linear layers, {part}"].flops
              for part in ("forward", "input gradient", "weight gradient")]  # fmt: skip
    assert counted(forward, "aten.addmm", "aten.mm") == linear[0] + unembedding / 3
    assert counted(backward, "aten.addmm", "aten.mm") == sum(linear[1:]) + unembedding * 2 / 3
    # Two of the seven products of attention are forward; fused, backward makes the scores again.
    assert counted(forward, "aten.bmm") == done["attention"].flops * 2 / 7
    assert counted(backward, "aten.bmm") == done["attention"].flops * 4 / 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [1 / 4, 1 / 2])
def test_bytes_of_the_choice_of_the_largest_are_those_of_its_operations_on_a_gpu(dtype, density):
    x = torch.zeros(50, 2048, dtype=dtype, device="meta")
    with Bytes() as moved:
        topk_mask(x, int(x.numel() * density))
    expected = topk_mask_bytes(density, x.element_size()) * x.numel()
    assert moved.count.total() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_abs_topk_are_those_of_its_kernel(dtype):
    """The kernel can't run here: its own loads and stores, and the product that is backward."""
    source = (Path(tl_sparse.__file__).parent / "largest_on_gpu.py").read_text("utf-8")
    calls = [ast.unparse(c.func) for c in ast.walk(ast.parse(source)) if isinstance(c, ast.Call)]
    x = torch.zeros(50, 2048, dtype=dtype, device="meta")
    loads, stores = calls.count("tl.load") * x.nbytes, x.nbytes + x.numel()
    assert calls.count("tl.store") == 2  # what is kept, and a byte that says so
    mask = torch.zeros(x.shape, dtype=torch.uint8, device="meta")
    with Bytes() as moved:
        _ = x * mask
    expected = abs_topk_bytes(x.element_size()) * x.numel()
    assert loads + stores + moved.count.total() == expected


@pytest.mark.usefixtures("attention_as_on_a_gpu")
@pytest.mark.parametrize("weight_density", [1.0, 1 / 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_moved_by_a_layer_are_those_of_its_operations(precision, weight_density):
    sparsity = replace(DENSE, weight_density=weight_density)

    def run(n_layers: int, batch_size: int) -> Run:
        return small(n_layers, precision=precision, sparsity=sparsity, batch_size=batch_size)

    rows = [bytes_moved(run(2, n)) - bytes_moved(run(1, n)) for n in (16, 8)]
    parts = ("linear layers, forward", "linear layers, input gradient",
             "linear layers, weight gradient", "attention", "norms, biases, GELU")  # fmt: skip
    more = [sum(work(run(1, n))[part].n_bytes for part in parts) for n in (16, 8)]
    assert rows[0] - rows[1] == pytest.approx(more[0] - more[1], rel=0.03)


def test_bytes_of_projection_are_those_of_its_operations_on_a_gpu():
    sparsity = SparsityConfig(weight_density=1 / 64, embedding_density=1 / 8)
    run = small(2, precision="float32", sparsity=sparsity)
    model = HookedSparseTransformer(run.shape, sparsity=sparsity).to("meta")
    with Bytes() as moved:
        model.project_()
    assert moved.count.total() == pytest.approx(work(run)["projection"].n_bytes, rel=0.02)


# -- by hand --------------------------------------------------------------------------------------


def test_the_paper_s_largest_shape_by_hand():
    count = n_parameters(LARGE)
    assert count["block weights"] == 8 * 12 * 2048**2 == 402_653_184
    assert sum(count.values()) == 415_386_624
    done = work(LARGE)
    assert done["linear layers, forward"].flops == 2 * 131_072 * 402_653_184
    # six bf16 channels of eight d_model wide sites and the neurons, two in float32
    per_token = 2048 * (9 * 10 + 2 * 18)
    assert done["AbsTopK"].n_bytes == pytest.approx(per_token * 131_072 * 8)
    assert memory(LARGE)["AbsTopK's masks"] == (7 * 2048 + 8192) * 131_072 * 8
    assert all_reduce_bytes(LARGE) == 0
    assert all_reduce_bytes(replace(LARGE, n_gpus=8)) == 1.75 * 4 * 415_386_624
    assert done["projection"].flops == 32 * (402_653_184 + 2 * 2048**2)


def test_gpus_and_micro_batches_share_the_tokens_and_not_the_model():
    eight = replace(LARGE, n_gpus=8)
    assert eight.n_tokens == 16_384
    halves = replace(eight, training=replace(TRAINING, gradient_accumulation=2))
    for part in ("weights", "masks", "gradients", "Adam's moments"):
        assert memory(LARGE)[part] == memory(eight)[part] == memory(halves)[part]
    assert memory(LARGE)["activations"] == pytest.approx(16 * memory(halves)["activations"])
    forward = "linear layers, forward"
    assert work(LARGE)[forward].flops == 8 * work(eight)[forward].flops
    assert work(halves)[forward].flops == work(eight)[forward].flops
    assert work(halves)["gradients and Adam"].n_bytes > work(eight)["gradients and Adam"].n_bytes


def test_a_part_takes_the_longer_of_its_two_times():
    done, fast = work(LARGE), replace(H100, bandwidth=1e30)
    for part, seconds in estimate(LARGE, fast).seconds.items():
        if part != "all-reduce":
            peak = H100.half if done[part].is_product else H100.float32
            assert seconds == pytest.approx(done[part].flops / (peak * PEAK_SHARE))
    for part, seconds in estimate(LARGE, replace(H100, half=1e30, float32=1e30)).seconds.items():
        if part != "all-reduce":
            expected = done[part].n_bytes / (3.35e12 * BANDWIDTH_SHARE)
            assert seconds == pytest.approx(expected)
    one = estimate(LARGE, H100)
    assert one.days == pytest.approx(one.step * 244_141 / 86_400)  # 32e9 tokens, rounded up
    assert one.gpu_hours == pytest.approx(one.days * 24)


def test_the_gradients_go_over_the_slower_of_the_links_that_they_need():
    near, far = (estimate(replace(LARGE, n_gpus=n), A100).seconds["all-reduce"] for n in (8, 64))
    assert near == pytest.approx(1.75 * 4 * 415_386_624 / (300e9 * 0.8))
    assert far == pytest.approx(2 * 63 / 64 * 4 * 415_386_624 / (200e9 * 0.8))


def test_float32_runs_at_the_peak_of_float32():
    run = replace(LARGE, training=replace(TRAINING, precision="float32"))
    part = "linear layers, forward"
    ratio = estimate(run, H100).seconds[part] / estimate(LARGE, H100).seconds[part]
    assert ratio == pytest.approx(989.4 / 67)


def test_the_fewest_micro_batches_that_fit_are_chosen():
    run = with_fitting_accumulation(LARGE, H100)
    n = run.training.gradient_accumulation
    assert n > 1
    assert estimate(run, H100).memory <= 0.8 * 80e9
    fewer = replace(LARGE, training=replace(TRAINING, gradient_accumulation=n // 2))
    assert estimate(fewer, H100).memory > 0.8 * 80e9
    assert with_fitting_accumulation(LARGE, H200).training.gradient_accumulation < n
    with pytest.raises(ValueError, match="One sequence of this model takes more than 80%"):
        with_fitting_accumulation(LARGE, replace(H100, memory=1e9))


def test_the_table_has_a_row_for_each_estimate():
    estimates = [estimate(replace(LARGE, n_gpus=n), H200) for n in (8, 64)]
    rows = table(estimates).splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| 8 x H200 141 GB | 1 x 64 | ")
    assert f"| {estimates[1].days:.2f} |" in rows[3]
    assert repr(estimates[0]).startswith("Estimate(8 x H200 141 GB: ")


def test_what_is_not_counted_is_refused():
    with pytest.raises(ValueError, match=r"must divide batch_size, got 7 x 1 and 512"):
        replace(LARGE, n_gpus=7)
    with pytest.raises(ValueError, match="not attn_only, gated_mlp"):
        replace(LARGE, shape=shape_of(64, attn_only=True))
    with pytest.raises(ValueError, match="position_channels"):
        replace(LARGE, sparsity=replace(SPARSE, position_channels=8))


def test_the_bench_s_models_have_the_shape_that_is_counted():
    size = Size(name="s", n_layers=1, d_model=64, d_mlp=256, d_vocab=64, n_ctx=16, batch_size=2,
                projected=(1, 1))  # fmt: skip
    model = our_model(size, torch.device("cpu"), DENSE)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(n_parameters(Run(model.cfg, DENSE, TrainingConfig())).values()) == trained


# -- the page -------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "script", ROOT / "experiments" / "scaling_cost.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_that_its_script_makes(script):
    assert script.RUN.shape.to_dict() == LARGE.shape.to_dict()
    assert f"{script.MARKS[0]}\n\n{script.tables()}\n\n{script.MARKS[1]}" in PAGE


def test_the_script_compares_the_model_with_a_clock(script, capsys):
    script.check(["tiny"])
    lines = capsys.readouterr().out.splitlines()
    assert "GFLOP/s" in lines[0]
    assert lines[1].startswith("tiny: ")
    assert float(lines[1].split(", ")[-1]) > 0


def test_the_page_s_own_run_can_be_copied(capsys):
    block = next(b for b in PAGE.split("```python\n")[1:] if "tl_sparse.bench.cost" in b)
    exec(block.partition("```")[0] + "\nprint(memory(run), work(run))", {})
    assert "| 4 x H100 80 GB | " in capsys.readouterr().out


def test_the_page_s_script_builds_the_model_that_is_counted():
    block = next(b for b in PAGE.split("```python\n")[1:] if "# run.py" in b).partition("```")[0]
    names: dict[str, Any] = {"corpus": None}
    lines = block.replace("corpus.d_vocab", "2048").replace("cuda", "cpu").splitlines()
    wanted = [i for i, line in enumerate(lines) if line.startswith(("shape =", "model ="))]
    exec("\n".join([lines[1], *lines[wanted[0] : wanted[1]]]), names)
    cfg = HookedTransformerConfig(**names["shape"], eps=LARGE.shape.eps, initializer_range=0.02)
    assert n_parameters(Run(cfg, names["sparsity"], names["training"])) == n_parameters(LARGE)
    assert work(Run(cfg, names["sparsity"], names["training"])) == work(LARGE)
