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

A whole matrix is one row of millions (`_mark_one`). There a sample says between which two
magnitudes its threshold is, so one pass marks what is above, and only the few between are looked
at.
"""

import math
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tl_sparse.threads import Work, for_chunks

CHUNK = 2**17
"""Entries that a thread works on at a time: few enough for its cache, and long enough work that
handing it over costs little."""

BLOCK = 512
"""The longest row that is sorted whole."""

LEAST_BLOCK = 256
"""The shortest block of a longer row: in shorter ones little is ruled out."""

AROUND = 64
"""Ranks below and above the expected one that are looked at in each block: five standard deviations
of what chance does."""

FLOATS = (torch.float32, torch.float64)
"""Types that numpy sorts."""

SAMPLE = 2**16
"""Entries of a matrix from which its threshold is guessed."""

SURE = 5.0
"""Standard deviations of chance by which a guess from a sample is widened to both sides."""

Floats = NDArray[np.floating]
Rows = NDArray[np.floating]
Marks = NDArray[np.bool_]
Places = NDArray[np.integer]


def mark_largest(x: Rows, k: int) -> Marks:
    """Mark the k entries of largest magnitude in each row, 0 < k < width; NaN is the largest."""
    mask = np.empty(x.shape, dtype=bool)
    if len(x) > 1 or x.size < 4 * SAMPLE:
        _for_rows(x, partial(_mark_rows, x, k, mask))
    elif not _mark_one(x[0], k, mask[0]):
        _mark(x, k, np.empty_like(x), mask)
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
    axis %= weight.ndim
    n_before, n_after = math.prod(weight.shape[:axis]), math.prod(weight.shape[axis + 1 :])
    magnitude = np.abs(np.ascontiguousarray(weight)).reshape(n_before, -1, n_after)
    flat = magnitude.reshape(1, -1)
    if np.isnan(flat[0] @ flat[0]):
        np.nan_to_num(magnitude, copy=False, nan=np.inf, posinf=np.inf)
    poor = np.ones((n_before, n_after), dtype=bool)
    if k > 2 * min_alive * poor.size:  # else the guard leaves little, and many lines are poor
        poor = _counts(magnitude > 1.1 * _around(flat[0], k)[1]) < min_alive
    mask, missed = _with_guard(magnitude, k, min_alive, poor)
    if missed.any():
        mask, missed = _with_guard(magnitude, k, min_alive, poor | missed)
    if missed.any():  # the guard takes so much that line after line turns out poor
        mask, _ = _with_guard(magnitude, k, min_alive, np.ones_like(poor))
    return mask.reshape(weight.shape)


def _with_guard(magnitude: Floats, k: int, min_alive: int, poor: Marks) -> tuple[Marks, Marks]:
    """Mark k entries, the guard's of the poor lines first; tell which others it should have had."""
    before, after = np.nonzero(poor)
    guarded = _guarded(magnitude, before, after, min_alive)
    values = magnitude[guarded]
    magnitude[guarded] = np.inf
    mask = mark_largest(magnitude.reshape(1, -1), k).reshape(magnitude.shape)
    magnitude[guarded] = values
    return mask, ~poor & (_counts(mask) < min_alive)


def _counts(mask: Marks) -> NDArray[np.integer]:
    """Count the marks of each line along the middle axis."""
    marks = mask.view(np.uint8)
    total = np.zeros((mask.shape[0], mask.shape[2]), dtype=np.int64)
    for start in range(0, mask.shape[1], 255):  # so many fit in a byte
        total += marks[:, start : start + 255].sum(axis=1, dtype=np.uint8)
    return total


def _guarded(
    magnitude: Floats, before: Places, after: Places, min_alive: int
) -> tuple[Places, Places, Places]:
    """Give the places of the largest entries of some lines along the middle axis."""
    if len(magnitude) == 1:
        lines = np.ascontiguousarray(magnitude[0].take(after, axis=1).T)
    else:
        lines = np.ascontiguousarray(magnitude[before, :, after])
    guard = np.ones(lines.shape, dtype=bool)
    if lines.size and min_alive < lines.shape[1]:
        guard = mark_largest(lines, min_alive)
    line, place = np.nonzero(guard)
    return before[line], place, after[line]


def _around(row: Rows, k: int) -> tuple[float, float]:
    """Give two magnitudes between which the k-th largest of a long row is, almost surely."""
    step = row.size // SAMPLE | 1  # odd: not always the same column of a matrix
    sample = np.abs(row[::step])
    share, n = k / row.size, sample.size
    slack = SURE * math.sqrt(share * (1 - share) * n) + 1
    low, high = math.ceil(share * n + slack), math.floor(share * n - slack)  # ranks, 1 the largest
    sample.partition([max(0, n - low), min(n - 1, n - high)])
    at_low = float(sample[n - low]) if low <= n else 0.0
    return at_low, float(sample[n - high]) if high >= 1 else math.inf


class _Chunk(NamedTuple):
    """What a chunk of a long row has to say."""

    start: int
    n_above: int
    places: Places
    """Of entries that may be among the largest."""
    values: Rows


def _mark_one(row: Rows, k: int, mask: Marks) -> bool:
    """Mark the k largest of one long row, and tell whether that went well.

    It does not where the row has a NaN, or the sample was unlike the rest.
    """
    low, high = _around(row, k)
    found: list[_Chunk] = []
    mark = partial(_mark_above, row, low, high, mask, found)
    for_chunks(len(row), 2 * CHUNK, partial(_begin, mark, 2 * CHUNK, 1, row.dtype))
    found.sort(key=attrgetter("start"))
    between = np.concatenate([chunk.places for chunk in found])
    values = np.concatenate([chunk.values for chunk in found])
    missing = k - sum(chunk.n_above for chunk in found)
    if np.isnan(row @ row) or not 0 <= missing <= len(values):
        return False
    if missing:
        threshold = np.partition(values, len(values) - missing)[len(values) - missing]
        above, equal = values > threshold, np.flatnonzero(values == threshold)
        mask[between[above]] = True
        mask[between[equal[: missing - np.count_nonzero(above)]]] = True
    return True


def _mark_above(
    row: Rows,
    low: float,
    high: float,
    mask: Marks,
    found: list[_Chunk],
    chunk: slice,
    scratch: Rows,
) -> None:
    """Mark what is above `high` in a chunk, and note what is not, but at least `low`."""
    magnitude, marks = np.abs(row[chunk], out=scratch[:, 0]), mask[chunk]
    np.greater(magnitude, high, out=marks)
    places = np.flatnonzero((magnitude >= low) & ~marks)
    n_above = int(np.count_nonzero(marks))
    found.append(_Chunk(chunk.start, n_above, places + chunk.start, magnitude[places]))


def kth_largest(rows: Rows, k: int) -> Rows:
    """Give the k-th largest entry of each row, 0 < k <= width; the rows are left in disorder."""
    n_rows, width = rows.shape
    if width <= BLOCK:
        rows.sort(axis=-1)
        return rows[:, width - k].copy()
    block = next((size for size in range(BLOCK, LEAST_BLOCK - 1, -1) if width % size == 0), None)
    if block is None:
        rows.partition(width - k, axis=-1)
        return rows[:, width - k].copy()
    n_blocks = width // block
    blocks = rows.reshape(n_rows, n_blocks, block)
    blocks.sort(axis=-1)
    # In rising order; the threshold stands so many places from the end of each block, or nearly.
    low = max(0, block - -(-k // n_blocks) - AROUND)
    high = min(block, block - k // n_blocks + AROUND)
    if n_blocks * (high - low) == width:  # nothing was ruled out
        rows.partition(width - k, axis=-1)
        return rows[:, width - k].copy()
    around = blocks[:, :, low:high].reshape(n_rows, -1)
    found = kth_largest(around, k - n_blocks * (block - high))
    wrong = np.zeros(n_rows, dtype=bool)
    if low > 0:
        wrong |= blocks[:, :, low - 1].max(-1) > found
    if high < block:
        wrong |= blocks[:, :, high].min(-1) < found
    if wrong.any():  # blocks that are unlike each other
        found[wrong] = np.partition(rows[wrong], width - k, axis=-1)[:, width - k]
    return found


def _mark(x: Rows, k: int, scratch: Rows, mask: Marks) -> None:
    np.abs(x, out=scratch)
    threshold = kth_largest(scratch, k)[:, None]
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
    if step == n_rows:
        work(slice(0, n_rows), np.empty(x.shape, dtype=x.dtype))
        return
    for_chunks(n_rows, step, partial(_begin, work, step, width, x.dtype))


def _begin(work: Callable[[slice, Rows], object], step: int, width: int, dtype: Any) -> Work:
    scratch = np.empty((step, width), dtype=dtype)
    return lambda start, stop: work(slice(start, stop), scratch[: stop - start])
