"""`run_bench`: every measurement that was asked for, written down one by one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm import tqdm

from tl_sparse.bench.circuits import auditing, compiled, pruning
from tl_sparse.bench.demo import Demo
from tl_sparse.bench.kernels import abstopk, projection
from tl_sparse.bench.linear import linear
from tl_sparse.bench.machine import machine
from tl_sparse.bench.memory import memory
from tl_sparse.bench.report import BenchReport
from tl_sparse.bench.settings import BenchSettings
from tl_sparse.bench.sizes import SIZES, Size
from tl_sparse.bench.timing import Measurement, clock_of, measure
from tl_sparse.bench.training import inference, training
from tl_sparse.threads import keep_freed_memory

KINDS: dict[str, Callable[[Size, torch.device], list[Measurement]]] = {
    "training": training,
    "memory": memory,
    "inference": inference,
    "linear": linear,
    "projection": projection,
    "abstopk": abstopk,
    "pruning": pruning,
    "audit": auditing,
    "compiled": compiled,
}
"""What can be measured, and how its measurements are made."""


def run_bench(
    settings: BenchSettings | None = None,
    *,
    measurements: Sequence[Measurement] | None = None,
    progress: bool = True,
) -> BenchReport:
    """Measure what the settings ask for, or the measurements given, and write it to files.

    The files are written anew after each measurement. Ctrl-C ends the run, and what was measured
    until then is in the files and in the report, whose `interrupted` is then true.

    Raises:
        OSError: If the files can't be written; that is tried before any work.
    """
    settings = settings or BenchSettings()
    keep_freed_memory()  # as `train` does, for all candidates alike
    device = settings.resolved_device()
    clock = clock_of(device)
    with _threads(settings.threads):
        report = BenchReport(machine(device), settings.to_dict())
        report.save(settings.out)
        try:
            if measurements is None:
                measurements = measurements_of(settings, device)
            with tqdm(measurements, disable=not progress, unit="measurement") as bar:
                for one in bar:
                    bar.set_description(one.label)
                    result = measure(
                        one, repeats=settings.repeats, seconds=settings.seconds, clock=clock
                    )
                    report.results.append(result)
                    report.interrupted = result.note == "interrupted"
                    report.save(settings.out)
                    if report.interrupted:
                        break
        except KeyboardInterrupt:  # between two measurements
            report.interrupted = True
        report.save(settings.out)
    return report


def measurements_of(settings: BenchSettings, device: torch.device) -> list[Measurement]:
    """List the measurements that settings ask for: kind by kind, by size, and then on the demo.

    Raises:
        ValueError: If model and circuit of the demo can't be read, or do not belong together.
    """
    on_demo = {} if settings.demo is None else Demo.open(settings.demo).kinds()
    found = []
    for kind in settings.only:
        found += [one for size in settings.sizes for one in KINDS[kind](SIZES[size], device)]
        found += on_demo[kind](device) if kind in on_demo else []
    return found


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
