"""Peak memory of training steps, each in a process of its own (`main`).

1. A fresh process imports everything; what it holds then is not counted.
2. It sets the candidate up and takes `N_STEPS` steps.
3. On a CPU the value is the most that was resident since, less what was resident before; on a GPU
   the most that torch had allocated there. In megabytes: weights, gradients, moments, activations.

Linux hands the peak of a parent down to `getrusage` of its children, so the kernel's own mark of
the process (VmHWM) is read there, and set back before the first step where that is allowed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import torch

from tl_sparse.bench.sizes import SIZES, Size
from tl_sparse.bench.timing import Candidate, Measurement, Run
from tl_sparse.bench.training import training_candidates

N_STEPS = 3
"""Steps taken: the moments are there from the first, and the rest is the allocator's."""

MEGABYTE = 1e6


def memory(size: Size, device: torch.device) -> list[Measurement]:
    """Measure the peak memory of the training steps, once each."""
    candidates = tuple(
        Candidate(one.name, partial(_in_own_process, size, device, one.name))
        for one in training_candidates(size, device)
    )
    return [
        Measurement(kind="memory", size=size.name, candidates=candidates, unit="MB", max_rounds=1)
    ]


@contextmanager
def _in_own_process(size: Size, device: torch.device, name: str) -> Iterator[Run]:
    yield lambda: peak_of(size, device, name)


def peak_of(size: Size, device: torch.device, name: str) -> float:
    """Give the peak memory of a candidate's training steps in megabytes, from a fresh process.

    Raises:
        MemoryError: If the process was killed, as the kernel does when memory runs out.
        RuntimeError: If it failed otherwise.
    """
    arguments = [size.name, str(device), str(torch.get_num_threads()), name]
    code = "import sys; from tl_sparse.bench.memory import main; main(*sys.argv[1:])"
    command = [sys.executable, "-P", "-c", code, *arguments]  # -P: not what lies in this folder
    # The allocator as it comes: told to keep what is freed, it may hold the same buffer twice.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    if done.returncode == -9:
        raise MemoryError(f"{name} was killed at the size {size.name}.")
    if done.returncode:
        raise RuntimeError(f"{name} failed at the size {size.name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])["megabytes"]


def measured_here(size: Size, device: torch.device, name: str) -> float:
    """Take the steps in this process and give its peak, in megabytes over what it held before."""
    by_name = {one.name: one for one in training_candidates(size, device)}
    on_gpu = device.type == "cuda"
    before = 0 if on_gpu else psutil.Process().memory_info().rss
    if on_gpu:
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_peak()
    with by_name[name].prepare() as run:
        for _ in range(N_STEPS):
            run()
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else _peak()
    return max(0, peak - before) / MEGABYTE


def _reset_peak() -> None:
    """Set the process' mark back to what it holds now, where the kernel lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:  # no Linux, or not allowed: the mark is then that of the imports, if higher
        return


def _peak() -> int:
    """Give the most bytes that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main(size: str, device: str, threads: str, name: str) -> None:
    """Measure one candidate and write its peak to stdout, as JSON."""
    torch.set_num_threads(int(threads))
    megabytes = measured_here(SIZES[size], torch.device(device), name)
    sys.stdout.write(json.dumps({"megabytes": megabytes}) + "\n")
