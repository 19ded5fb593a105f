"""How long training takes on GPUs, on paper: the cost model's counts and the data sheets' rates.

1. `estimate` gives each part of a step the longer of two times, FLOPs / (peak x `PEAK_SHARE`) and
   bytes / (bandwidth x `BANDWIDTH_SHARE`),
2. and adds the all-reduce of the gradients, none of it hidden behind the backward pass.

The two shares are assumptions, and no time was measured on a GPU.

The rates are those of NVIDIA's data sheets: "A100 80GB" (2021), "H100 Tensor Core GPU" and "H200
Tensor Core GPU", the columns SXM; for networks those of the systems DGX A100 (eight adapters of 200
Gb/s for the GPUs), DGX H100 and DGX H200 (eight of 400 Gb/s). The sheets give NVLink in both
directions together, and the 16-bit peaks of H100 and H200 with structural sparsity: both are halved
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tl_sparse.bench.cost import Run, all_reduce_bytes, memory, work
from tl_sparse.schedules import n_steps

PEAK_SHARE = 0.4
"""Share of the peak FLOP/s that matrix products reach: an assumption."""

BANDWIDTH_SHARE = 0.8
"""Share of the peak bandwidth, of memory and of links, that is reached: an assumption."""

GPUS_PER_MACHINE = 8
"""GPUs that NVLink joins; further ones are reached over the machine's network."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peaks of one kind of GPU, in FLOP/s without structural sparsity, bytes and bytes/s."""

    name: str
    half: float
    """Peak of 16-bit matrix products that add up in float32."""
    float32: float
    """Peak of float32 outside the tensor cores, which is what PyTorch uses unless TF32 is asked
    for."""
    bandwidth: float
    """Of the GPU's memory."""
    memory: float
    nvlink: float
    """Out of one GPU, in one direction."""
    network: float
    """Out of one machine of eight, in one direction."""


A100 = Gpu(name="A100 80 GB", half=312e12, float32=19.5e12, bandwidth=2.039e12, memory=80e9,
           nvlink=300e9, network=200e9)  # fmt: skip
H100 = Gpu(name="H100 80 GB", half=989.4e12, float32=67e12, bandwidth=3.35e12, memory=80e9,
           nvlink=450e9, network=400e9)  # fmt: skip
H200 = replace(H100, name="H200 141 GB", bandwidth=4.8e12, memory=141e9)


@dataclass(frozen=True)
class Estimate:
    """How long a run takes on paper, and what it holds."""

    run: Run
    gpu: Gpu
    seconds: dict[str, float]
    """Of each part of a step."""

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def days(self) -> float:
        """Days of the whole run."""
        return self.step * n_steps(self.run.training, self.run.n_ctx) / 86_400

    @property
    def gpu_hours(self) -> float:
        """Hours of the whole run, times GPUs."""
        return 24 * self.days * self.run.n_gpus

    @property
    def memory(self) -> int:
        """Bytes that one GPU holds."""
        return sum(memory(self.run).values())

    def __repr__(self) -> str:
        """One line."""
        return (
            f"Estimate({self.run.n_gpus} x {self.gpu.name}: {self.step:.3g} s a step, "
            f"{self.days:.3g} days, {self.memory / 1e9:.3g} GB each)"
        )


def estimate(
    run: Run,
    gpu: Gpu,
    *,
    peak_share: float = PEAK_SHARE,
    bandwidth_share: float = BANDWIDTH_SHARE,
) -> Estimate:
    """Estimate the time of a run on GPUs of one kind."""
    peak = (gpu.float32 if run.n_bytes == 4 else gpu.half) * peak_share
    seconds = {
        part: max(
            one.flops / (peak if one.is_product else gpu.float32 * peak_share),
            one.n_bytes / (gpu.bandwidth * bandwidth_share),
        )
        for part, one in work(run).items()
    }
    link = gpu.nvlink if run.n_gpus <= GPUS_PER_MACHINE else min(gpu.nvlink, gpu.network)
    seconds["all-reduce"] = all_reduce_bytes(run) / (link * bandwidth_share)
    return Estimate(run, gpu, seconds)


def with_fitting_accumulation(run: Run, gpu: Gpu, *, share: float = 0.8) -> Run:
    """Give the run with the fewest micro-batches of which one fits in a share of the memory.

    Raises:
        ValueError: If not even one sequence fits.
    """
    rows = run.training.batch_size // run.n_gpus
    for n_micro in range(1, rows + 1):
        if rows % n_micro == 0:
            fewer = replace(run.training, gradient_accumulation=n_micro)
            smaller = replace(run, training=fewer)
            if sum(memory(smaller).values()) <= share * gpu.memory:
                return smaller
    raise ValueError(
        f"One sequence of this model takes more than {share:.0%} of the memory of {gpu.name}."
    )


def table(estimates: Sequence[Estimate]) -> str:
    """Write estimates as a table in Markdown, one row each."""
    lines = [
        "| GPUs | micro-batches | GB on each | s a step | tokens/s | days | GPU hours |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in estimates:
        training, n = one.run.training, one.run.n_gpus
        micro = training.gradient_accumulation
        rate = training.batch_size * one.run.n_ctx / one.step
        lines.append(
            f"| {n} x {one.gpu.name} | {micro} x {training.batch_size // n // micro} | "
            f"{one.memory / 1e9:.0f} | {one.step:.3f} | {rate:,.0f} | {one.days:.2f} | "
            f"{one.gpu_hours:,.0f} |"
        )
    return "\n".join(lines)
