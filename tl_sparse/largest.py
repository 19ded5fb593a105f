"""The k largest entries of each row, exactly and fast on a CPU.

All choices of "the k largest" keep precisely k entries; equal magnitudes are kept in the order of
their positions. The method is a threshold, not a list of places:

1. t = the k-th largest magnitude of the row (`kth_largest`),
2. keep everything that is not below t,
3. where that is more than k, some are equal to t: keep the first few of those.

Rows are worked on in chunks that fit in a core's cache, on several threads. numpy sorts rows of up
to `BLOCK` entries by networks of vector instructions, three times as fast an entry as it partitions
longer ones, so a long row is sorted in blocks. In each block the threshold stands near the same
rank, and the entries around it, from all blocks together, hold the threshold of the row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_sparse.threads import Work, for_chunks

CHUNK = 2**16
"""Entries that a thread works on at a time."""

BLOCK = 512
"""The longest row that is sorted whole."""

AROUND = 64
"""Ranks below and above the expected one that are looked at in each block: five standard deviations
of what chance does."""

FLOATS = (torch.float32, torch.float64)
"""Types that numpy sorts."""

SAMPLE = 2**18
"""Entries of a matrix from which its threshold is guessed."""

Floats = NDArray[np.floating]
Rows = NDArray[np.floating]
Marks = NDArray[np.bool_]


def mark_largest(x: Rows, k: int) -> Marks:
    """Mark the k entries of largest magnitude in each row, 0 < k < width; NaN is the largest."""
    mask = np.empty(x.shape, dtype=bool)
    if len(x) == 1:
        _mark(x, k, np.empty_like(x), mask, alone=True)
    else:
        _for_rows(x, partial(_mark_rows, x, k, mask))
    return mask


def keep_largest(x: Rows, k: int) -> tuple[Rows, Marks]:
    """Give a copy with all but the k largest of each row zeroed, and the marks of those."""
    mask, kept = np.empty(x.shape, dtype=bool), np.empty(x.shape, dtype=x.dtype)
    _for_rows(x, partial(_keep_rows, x, k, mask, kept))
    return kept, mask


def mark_guarded(weight: Floats, k: int, min_alive: int, axis: int) -> Marks:
    """Mark the largest `min_alive` entries along an axis first, then the largest rest, k in all.

    A line of the array along the axis is poor if fewer than `min_alive` of its entries are above
    the threshold that the rest then has. The others are served by the threshold alone, so only
    those that may turn out poor are sorted.
    """
    if k == weight.size:
        return np.ones(weight.shape, dtype=bool)
    magnitude = np.abs(np.ascontiguousarray(weight))
    if np.isnan(magnitude.max()):
        magnitude = np.nan_to_num(magnitude, nan=np.inf, posinf=np.inf)
    flat = magnitude.reshape(1, -1)
    sample = flat[:, :: max(1, flat.size // SAMPLE)].copy()
    guess = float(kth_largest(sample, max(1, k * sample.size // flat.size))[0])
    poor = _n_above(magnitude, 1.1 * guess, axis) < min_alive
    lines = np.moveaxis(magnitude, axis, -1)
    while True:
        chosen = lines[poor]
        guard = np.ones(chosen.shape, dtype=bool)
        if chosen.size and min_alive < chosen.shape[-1]:
            guard = mark_largest(chosen, min_alive)
        lines[poor] = np.where(guard, np.inf, chosen)
        threshold = float(kth_largest(flat.copy(), k, alone=True)[0])
        mask = magnitude >= threshold
        if np.count_nonzero(mask) != k:
            mask = mark_largest(flat, k).reshape(weight.shape)
        lines[poor] = chosen
        missed = ~poor & (_n_above(magnitude, threshold, axis) < min_alive)
        if not missed.any():
            return mask
        poor |= missed


def _n_above(magnitude: Floats, threshold: float, axis: int) -> NDArray[np.integer]:
    """Count the entries above a threshold along an axis."""
    above = (magnitude > threshold).view(np.uint8)
    return above.sum(axis=axis, dtype=np.int32)


def kth_largest(rows: Rows, k: int, *, alone: bool = False) -> Rows:
    """Give the k-th largest entry of each row, 0 < k <= width; the rows are left in disorder.

    `alone` says that no other thread of ours is at work, so that one row can have them all.
    """
    n_rows, width = rows.shape
    if width <= BLOCK:
        rows.sort(axis=-1)
        return rows[:, width - k].copy()
    if width % BLOCK:
        rows.partition(width - k, axis=-1)
        return rows[:, width - k].copy()
    n_blocks = width // BLOCK
    blocks = rows.reshape(n_rows, n_blocks, BLOCK)
    if alone:
        whole = blocks.reshape(-1, BLOCK)
        _for_rows(whole, lambda some, scratch: whole[some].sort(axis=-1))
    else:
        blocks.sort(axis=-1)
    # In rising order; the threshold stands so many places from the end of each block, or nearly.
    low = max(0, BLOCK - -(-k // n_blocks) - AROUND)
    high = min(BLOCK, BLOCK - k // n_blocks + AROUND)
    if n_blocks * (high - low) == width:  # nothing was ruled out
        rows.partition(width - k, axis=-1)
        return rows[:, width - k].copy()
    around = blocks[:, :, low:high].reshape(n_rows, -1)
    found = kth_largest(around, k - n_blocks * (BLOCK - high))
    wrong = np.zeros(n_rows, dtype=bool)
    if low > 0:
        wrong |= blocks[:, :, low - 1].max(-1) > found
    if high < BLOCK:
        wrong |= blocks[:, :, high].min(-1) < found
    if wrong.any():  # blocks that are unlike each other
        found[wrong] = np.partition(rows[wrong], width - k, axis=-1)[:, width - k]
    return found


def _mark(x: Rows, k: int, scratch: Rows, mask: Marks, *, alone: bool = False) -> None:
    np.abs(x, out=scratch)
    threshold = kth_largest(scratch, k, alone=alone)[:, None]
    np.abs(x, out=scratch)
    np.greater_equal(scratch, threshold, out=mask)
    n_kept = np.count_nonzero(mask)
    if n_kept < k * len(mask):  # NaN is no less than anything; dropped, it would become a quiet 0
        _mark(np.nan_to_num(scratch, nan=np.inf, posinf=np.inf), k, scratch, mask)
    elif n_kept > k * len(mask):  # some row has equals at its threshold
        crowded = np.flatnonzero(np.count_nonzero(mask, axis=-1) > k)
        rows, t = scratch[crowded], threshold[crowded]
        above, equal = rows > t, rows == t
        missing = k - np.count_nonzero(above, axis=-1, keepdims=True)
        mask[crowded] = above | (equal & (np.cumsum(equal, axis=-1) <= missing))


def _mark_rows(x: Rows, k: int, mask: Marks, rows: slice, scratch: Rows) -> None:
    _mark(x[rows], k, scratch, mask[rows])


def _keep_rows(x: Rows, k: int, mask: Marks, kept: Rows, rows: slice, scratch: Rows) -> None:
    _mark(x[rows], k, scratch, mask[rows])
    np.multiply(x[rows], mask[rows], out=kept[rows])


def _for_rows(x: Rows, work: Callable[[slice, Rows], object]) -> None:
    """Call `work` with chunks of rows, and room for as many; a row that is longer goes alone."""
    n_rows, width = x.shape
    step = min(n_rows, max(1, CHUNK // width))
    for_chunks(n_rows, step, partial(_begin, work, step, width, x.dtype))


def _begin(work: Callable[[slice, Rows], object], step: int, width: int, dtype: Any) -> Work:
    scratch = np.empty((step, width), dtype=dtype)
    return lambda start, stop: work(slice(start, stop), scratch[: stop - start])
