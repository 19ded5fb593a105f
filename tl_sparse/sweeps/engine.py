"""The engine: cells done in order here, or by workers here and on other machines, through Dask.

1. `Store.pending` lists what is to be done, each cell after what it needs.
2. Without workers, one after the other in this process.
3. With them, each cell is a Dask task, given to a worker that is free. The workers are processes of
   this machine (`workers=N`), or whatever is at a scheduler's address (`scheduler="tcp://..."`), on
   machines that see the store's folder at the same path. A worker that is killed is started anew
   and its cell done again, from the checkpoint that it left.

Every cell is done with one thread, wherever it runs, so that its result hangs on nothing else.
Dask's processes talk to each other by pickle: connect to no scheduler but your own.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tl_sparse.rules import NON_NEGATIVE_INTEGER, POSITIVE_NUMBER, maybe
from tl_sparse.sweeps.cells import Cell, cell_of
from tl_sparse.sweeps.store import Store
from tl_sparse.sweeps.work import do


@dataclass
class Outcome:
    """How a run of cells went."""

    n_done: int = 0
    """Cells done in this run."""
    failed: dict[str, str] = field(default_factory=dict)
    """Errors by the label of the cell, and its key where others of that label failed too; cells
    that need it are left out."""
    n_left: int = 0
    """Cells that were not begun: the budget was used up, or what they need failed."""

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is done."""
        return not self.failed and not self.n_left

    def fail(self, cell: Cell, error: BaseException | None) -> None:
        """Note an error, in place."""
        name = f"{cell.label} ({cell.key})" if cell.label in self.failed else cell.label
        self.failed[name] = f"{type(error).__name__}: {error}"


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    hours: float | None = None,
    progress: bool = True,
) -> Outcome:
    """Do all cells that are not done, and keep each in the store when it is.

    No cell is begun after `hours`; those begun are finished. Ctrl-C stops at once: what was done is
    kept, and training goes on from its checkpoint another time.

    Raises:
        ValueError: If an argument is out of range, a file of the store can't be read, or there is
            no scheduler at the address.
        KeyboardInterrupt: On Ctrl-C.
    """
    NON_NEGATIVE_INTEGER.check("workers", workers)
    maybe(POSITIVE_NUMBER).check("hours", hours)
    pending = store.pending(cells)
    end = None if hours is None else time.monotonic() + 3600 * hours
    with tqdm(total=len(pending), disable=not progress, unit="cell", smoothing=0) as bar:
        if not pending:
            return Outcome()
        if workers == 0 and scheduler is None:
            return _here(pending, store, end, bar, progress)
        with _client(workers, scheduler) as client:
            return _by_workers(pending, store, end, bar, client)


def _here(
    pending: Sequence[Cell], store: Store, end: float | None, bar: Any, progress: bool
) -> Outcome:
    outcome, without = Outcome(), set[str]()
    for cell in pending:
        if _over(end) or any(needed.key in without for needed in cell.needs):
            without.add(cell.key)
            outcome.n_left += 1
            continue
        bar.set_description(cell.label)
        try:
            with _one_thread():
                do(cell, store, progress=progress)
        except Exception as error:  # the other cells go on; the caller is told
            without.add(cell.key)
            outcome.fail(cell, error)
            continue
        outcome.n_done += 1
        bar.update()
    return outcome


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """Connect to a scheduler, or start one with workers on this machine."""
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            with Client(scheduler, timeout="5s") as client:
                yield client
        except OSError as error:
            raise ValueError(
                f"No Dask scheduler answers at {scheduler!r}: {error}. Start one with `dask "
                "scheduler`, and workers with `dask worker ADDRESS --nthreads 1`."
            ) from error
        return
    settings: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0}
    settings["dashboard_address"] = ":0"  # a free port: the usual one may be taken
    with LocalCluster(n_workers=workers, **settings) as cluster, Client(cluster) as client:
        yield client


def _by_workers(
    pending: Sequence[Cell], store: Store, end: float | None, bar: Any, client: Any
) -> Outcome:
    """Give each free worker the first cell whose needs are done, until none is left.

    Dask holds no cell that no worker is free for: it would choose a worker for it at once, and the
    cell would wait there behind a training while another worker is idle.
    """
    from distributed import as_completed

    outcome, running, waiting = Outcome(), as_completed(), list(pending)
    without, undone = set[str](), {cell.key for cell in pending}
    cells: dict[str, Cell] = {}
    folder = str(store.folder.absolute())
    while waiting or cells:
        n_free = _n_threads(client) - len(cells)
        for cell in [c for c in waiting if not any(need.key in undone for need in c.needs)]:
            if _over(end) or any(need.key in without for need in cell.needs):
                without.add(cell.key)
                undone.discard(cell.key)
                outcome.n_left += 1
            elif n_free > 0:
                future = client.submit(do_from_spec, cell.spec(), folder, key=cell.key, pure=False)
                cells[future.key] = cell
                running.add(future)
                n_free -= 1
            else:
                break
            waiting.remove(cell)
        if cells:
            _collect(next(running), cells, undone, without, outcome, bar)
    return outcome


def _collect(
    future: Any,
    cells: dict[str, Cell],
    undone: set[str],
    without: set[str],
    outcome: Outcome,
    bar: Any,
) -> None:
    """Take note of a cell that has ended."""
    cell = cells.pop(future.key)
    undone.discard(cell.key)
    bar.set_description(cell.label)
    if future.status == "finished":
        outcome.n_done += 1
        bar.update()
        return
    without.add(cell.key)
    outcome.fail(cell, future.exception())


def _n_threads(client: Any) -> int:
    """Count the workers' threads as they are now; one is awaited where there is none."""
    return max(1, sum(client.nthreads().values()))


def _over(end: float | None) -> bool:
    return end is not None and time.monotonic() > end


def do_from_spec(spec: dict[str, Any], folder: str) -> None:
    """Do the cell of a spec in a worker."""
    with _one_thread():
        do(cell_of(spec), Store(Path(folder)), progress=False)
