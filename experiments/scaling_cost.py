"""Make the tables of docs/scaling.md: what the paper's largest shape costs on 1, 8 and 64 GPUs.

    python experiments/scaling_cost.py                    # seconds: nothing is trained
    python experiments/scaling_cost.py --check --sizes small paper

With `--check` the page is left alone. The rates of the machine at hand, of a product of matrices
and of a copy, take the place of a data sheet's, and steps of the benchmark's dense models, taken
one after the other, are compared with what the cost model says of them: on a GPU if there is one.
"""

import argparse
import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformerConfig

from tl_sparse import SparsityConfig, TrainingConfig
from tl_sparse.bench import gpus
from tl_sparse.bench.cost import Run, memory, n_parameters, work
from tl_sparse.bench.gpus import H100, Estimate, Gpu, estimate
from tl_sparse.bench.sizes import SIZES
from tl_sparse.bench.training import NOTHING_SPARSE, our_model, our_step
from tl_sparse.files import write_text
from tl_sparse.presets import demo_shape

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
MARKS = ("<!-- tables: made by experiments/scaling_cost.py -->", "<!-- end of tables -->")

SHAPE: dict[str, Any] = demo_shape(2048, width=2048) | {"n_layers": 8, "n_ctx": 256, "seed": None}
SPARSITY = SparsityConfig(
    weight_density=1 / 1024, embedding_density=1 / 32, activation_density=1 / 4, bigram_table=True
)
TRAINING = TrainingConfig(
    n_tokens=32 * 10**9, batch_size=512, learning_rate=0.0128, precision="bf16"
)
RUN = Run(HookedTransformerConfig(**SHAPE), SPARSITY, TRAINING)


def tables() -> str:
    """Write the tables of the page."""
    estimates = [
        estimate(gpus.with_fitting_accumulation(replace(RUN, n_gpus=n), gpu), gpu)
        for gpu in (gpus.A100, H100, gpus.H200)
        for n in (1, 8, 64)
    ]
    one, eight, many = (e for e in estimates if e.gpu is H100)
    total = sum(n_parameters(RUN).values())
    shares = [estimate(one.run, H100, peak_share=share).days for share in (0.5, 0.3)]
    return "\n\n".join([
        f"{total:,} trained parameters. At 50 % of the peak in place of 40 % one H100 would take "
        f"{shares[0]:.1f} days, at 30 % {shares[1]:.1f}.",
        gpus.table(estimates),
        f"Milliseconds of a step on {one.gpu.name}, and the work of one of eight GPUs:",
        parts_table(one, eight, many),
        f"Gigabytes on each {one.gpu.name}:",
        memory_table(one, eight, many),
    ])  # fmt: skip


def parts_table(one: Estimate, eight: Estimate, many: Estimate) -> str:
    """Write what each part of a step does, and how long it takes."""
    lines = [
        "| part | TFLOP | GB moved | 1 GPU | 8 GPUs | 64 GPUs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for part in one.seconds:
        done = work(eight.run).get(part)
        amounts = f"{done.flops / 1e12:.3g} | {done.n_bytes / 1e9:.1f}" if done else "- | -"
        times = " | ".join(f"{1e3 * each.seconds[part]:.1f}" for each in (one, eight, many))
        lines.append(f"| {part} | {amounts} | {times} |")
    return "\n".join(lines)


def memory_table(one: Estimate, eight: Estimate, many: Estimate) -> str:
    """Write what each GPU holds."""
    held = [memory(each.run) for each in (one, eight, many)]
    lines = ["| part | 1 GPU | 8 GPUs | 64 GPUs |", "|---|---:|---:|---:|"]
    for part in held[0]:
        lines.append(f"| {part} | " + " | ".join(f"{h[part] / 1e9:.1f}" for h in held) + " |")
    return "\n".join(lines)


def check(names: list[str]) -> None:
    """Compare steps of dense models on this machine with the cost model, and print it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = this_machine(device)
    print(f"{here.float32 / 1e9:,.0f} GFLOP/s, {here.bandwidth / 1e9:,.0f} GB/s on {device}")
    for name in names:
        shape = our_model(SIZES[name], device, NOTHING_SPARSE).cfg
        training = TrainingConfig(batch_size=SIZES[name].batch_size)
        run = Run(shape, NOTHING_SPARSE, training)
        paper = estimate(run, here, peak_share=1.0, bandwidth_share=1.0).step
        with redirect_stdout(io.StringIO()), our_step(SIZES[name], device, NOTHING_SPARSE) as step:
            seconds = fastest(step, device)
        print(f"{name}: {paper:.3g} s on paper, {seconds:.3g} s measured, {paper / seconds:.2f}")


def this_machine(device: torch.device) -> Gpu:
    """Measure the rates of a product of matrices and of a copy, in float32."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device)
    x = torch.randn(2**28 if device.type == "cuda" else 2**25, device=device)
    y = torch.empty_like(x)
    rate = 2 * n**3 / fastest(lambda: a @ a, device)
    bandwidth = 2 * x.nbytes / fastest(lambda: y.copy_(x), device)
    return Gpu(name="here", half=rate, float32=rate, bandwidth=bandwidth, memory=1e12, nvlink=1e12,
               network=1e12)  # fmt: skip


def fastest(run: Callable[[], Any], device: torch.device, *, repeats: int = 5) -> float:
    """Give the seconds of the fastest of a few calls, after one to warm up."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times = []
    for _ in range(1 + repeats):
        wait()
        began = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def main() -> None:
    """Write the tables between the two marks of the page, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="measure on this machine instead")
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=list(SIZES))
    args = parser.parse_args()
    if args.check:
        check(args.sizes)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    write_text(PAGE, before + "\n\n".join([MARKS[0], tables(), MARKS[1]]) + after)


if __name__ == "__main__":
    main()
