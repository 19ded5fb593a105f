"""How work is put on a CPU: chunks of rows on as many threads as torch uses, and memory kept.

The threads are for numpy and scipy, which let go of Python's lock while they compute and use one
thread themselves.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

Work = Callable[[int, int], object]
"""Does the rows from one number to another."""


def for_chunks(n_rows: int, step: int, begin: Callable[[], Work]) -> None:
    """Do all rows, `step` at a time; each thread calls `begin` once for what it works with."""
    n_helpers = min(torch.get_num_threads(), -(-n_rows // step)) - 1
    starts = iter(range(0, n_rows, step))  # shared by the threads: each chunk goes to one of them
    if n_helpers <= 0:
        _some(starts, step, n_rows, begin)
        return
    pool = _threads(os.getpid())
    helpers = [pool.submit(_some, starts, step, n_rows, begin) for _ in range(n_helpers)]
    _some(starts, step, n_rows, begin)
    for helper in helpers:
        helper.result()


def _some(starts: Iterator[int], step: int, n_rows: int, begin: Callable[[], Work]) -> None:
    work = begin()
    for start in starts:
        work(start, min(start + step, n_rows))


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Give this process' threads; one that was forked off has none of its parent's."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="tl_sparse")


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Ask the C library, for this whole process, to keep what is freed for what is needed next.

    By default glibc gives tensors of 32 MB and more back at once, and the system clears every page
    anew for the next one: a tenth of a training step. Does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mmap_threshold, trim_threshold, most = -3, -1, 2**31 - 1  # malloc.h
    mallopt(mmap_threshold, most)
    mallopt(trim_threshold, most)
