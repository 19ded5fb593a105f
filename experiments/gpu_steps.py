"""Milliseconds of a training step on a GPU, with the kernel for AbsTopK and by torch's operations.

    python experiments/gpu_steps.py

The table of docs/scaling.md. Both ways are taken in turn; each number is the median of the rounds.
On a CPU (`--device cpu --tiny`) there is no kernel, and both columns are the same code.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from tl_sparse import functional
from tl_sparse.bench.sizes import SIZES, Size
from tl_sparse.bench.timing import clock_of
from tl_sparse.bench.training import our_model, random_corpus
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.training import TrainingRun


@dataclass(frozen=True)
class Case:
    """A model, a batch and a precision."""

    n_layers: int
    d_model: int
    batch_size: int
    n_ctx: int
    precision: Literal["float32", "bf16", "fp16"]
    density: float

    def __str__(self) -> str:
        """Say what it is, as a row of the table does."""
        kind = "dense, " if self.density == 1 else ""
        return (
            f"{self.n_layers} layers, {self.d_model:,} channels, {kind}"
            f"{self.batch_size} x {self.n_ctx} tokens | {self.precision}"
        )

    @property
    def size(self) -> Size:
        """The same for the benchmark's builders."""
        shape = {"n_layers": self.n_layers, "d_model": self.d_model, "d_mlp": 4 * self.d_model}
        return Size(
            name="own", d_vocab=1024, n_ctx=self.n_ctx, batch_size=self.batch_size,
            projected=SIZES["tiny"].projected, **shape,
        )  # fmt: skip


CASES = (
    Case(2, 512, 8, 128, "float32", 8_000 / (24 * 512**2)),
    Case(2, 512, 64, 128, "float32", 8_000 / (24 * 512**2)),
    Case(4, 512, 64, 256, "bf16", 0.008),
    Case(4, 1024, 64, 256, "bf16", 0.002),
    Case(4, 128, 64, 256, "bf16", 1.0),
)
TINY = (Case(1, 32, 2, 16, "float32", 0.1),)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=3, help="rounds of ten steps each")
    parser.add_argument("--tiny", action="store_true", help="one small model, to see that it runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This measures a GPU, and torch sees none. Try --device cpu --tiny.")
    print("| model, batch | precision | with the kernel, ms | by torch's operations, ms |")
    print("|---|---|---:|---:|")
    for case in TINY if args.tiny else CASES:
        ours, theirs = measure(case, torch.device(args.device), args.rounds)
        print(f"| {case} | {ours:.1f} | {theirs:.1f} |", flush=True)


def measure(case: Case, device: torch.device, n_rounds: int) -> tuple[float, float]:
    """Give the milliseconds of a step with the kernel and without, in turn."""
    sparse = SparsityConfig(weight_density=case.density, activation_density=0.25, bigram_table=True)
    sparsity = sparse if case.density < 1 else SparsityConfig(bigram_table=True)
    config = TrainingConfig(
        n_tokens=10**6 * case.size.n_tokens, batch_size=case.batch_size, anneal="none",
        precision=case.precision,
    )  # fmt: skip
    clock, found = clock_of(device), ([], [])
    with random_corpus(case.size) as corpus:
        run = TrainingRun(our_model(case.size, device, sparsity), corpus, config, None, False)
        with run.accelerated():
            for _ in range(n_rounds):
                for times, kernel in zip(found, (True, False), strict=True):
                    with chosen(kernel):
                        run.take_step()
                        began = clock()
                        for _ in range(10):
                            run.take_step()
                        times.append((clock() - began) * 100)
    return statistics.median(found[0]), statistics.median(found[1])


@contextmanager
def chosen(kernel: bool) -> Iterator[None]:
    """Use the kernel where there is one, or not."""
    kept = functional._kernel_for
    if not kernel:
        functional._kernel_for = lambda x: None
    try:
        yield
    finally:
        functional._kernel_for = kept


if __name__ == "__main__":
    main()
