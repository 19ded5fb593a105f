"""Tokens on disk, read as batches that are a function of the step and nothing else.

For training, in the epoch e of a seed s:

1. draw an offset from (s, e), below one window, and cut the tokens behind it into windows of
   `n_ctx` that do not overlap;
2. put the windows in an order drawn from (s, e);
3. step t takes the next `batch_size` of them. A batch may reach into the next epoch.

So a run that was cut off goes on with the same data from its step number alone, and every window is
seen once per epoch. The random bits are PCG64's raw output, whose stream NumPy promises to keep.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


class TokenSplit:
    """The tokens of one side of a corpus, memory-mapped and read-only.

    Pickling or copying one keeps its path, not its tokens.
    """

    def __init__(self, path: str | Path, *, dtype: str, n_bytes: int) -> None:
        """Look at a file of tokens.

        Args:
            path: A file of nothing but tokens.
            dtype: `"uint16"` or `"uint32"`.
            n_bytes: Length in UTF-8 of the text that the tokens stand for.
        """
        self.path = Path(path)
        self.dtype = dtype
        self.n_bytes = n_bytes
        self.n_tokens = self.path.stat().st_size // np.dtype(dtype).itemsize
        self._tokens: np.memmap | None = None
        self._epoch: tuple[tuple[int, int, int], np.ndarray] | None = None

    def __repr__(self) -> str:
        return f"TokenSplit({self.n_tokens:,} tokens, {self.bytes_per_token:.2f} bytes each)"

    def __len__(self) -> int:
        return self.n_tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": None, "_epoch": None}

    @property
    def tokens(self) -> np.memmap:
        """All tokens, as a read-only array on disk."""
        if self._tokens is None:
            self._tokens = np.memmap(self.path, dtype=self.dtype, mode="r")
        return self._tokens

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token; the token between files counts, with no bytes.

        A loss of x nats per token is x / ln 2 / bytes_per_token bits per byte.
        """
        return self.n_bytes / self.n_tokens

    def windows_per_epoch(self, n_ctx: int) -> int:
        """Number of windows that every epoch holds, whatever its offset.

        Raises:
            ValueError: There are too few tokens for one window.
        """
        self._check_room(n_ctx)
        return max(1, (self.n_tokens - n_ctx + 1) // n_ctx)

    def batch(
        self, step: int, *, batch_size: int, n_ctx: int, seed: int
    ) -> Int[Tensor, "batch pos"]:
        """Read the tokens of one training step; the same arguments give the same tokens.

        Args:
            step: 0 for the first.
            batch_size: Windows per step.
            n_ctx: Tokens per window.
            seed: Of the order of the data, 0 or more.

        Returns:
            Tokens as int64 on the CPU.

        Raises:
            ValueError: An argument is out of range, or there are too few tokens for one window.
        """
        if step < 0 or batch_size < 1 or seed < 0:
            raise ValueError(
                f"step and seed are 0 or more and batch_size 1 or more, got step={step}, "
                f"seed={seed}, batch_size={batch_size}."
            )
        n_windows = self.windows_per_epoch(n_ctx)
        first = step * batch_size
        starts = []
        while len(starts) < batch_size:
            epoch, position = divmod(first + len(starts), n_windows)
            order = self._starts(n_ctx, seed, epoch)
            starts.extend(order[position : position + batch_size - len(starts)])
        return self._gather(np.array(starts), n_ctx)

    def windows(self, n_ctx: int, n_windows: int) -> Int[Tensor, "batch pos"]:
        """Read windows spread evenly over the split, for validation; always the same ones.

        Args:
            n_ctx: Tokens per window.
            n_windows: How many; they do not overlap.

        Returns:
            Tokens as int64 on the CPU.

        Raises:
            ValueError: The split does not hold so many windows.
        """
        self._check_room(n_ctx)
        n_held = self.n_tokens // n_ctx
        if not 1 <= n_windows <= n_held:
            raise ValueError(
                f"A split of {self.n_tokens:,} tokens holds 1 to {n_held:,} windows of {n_ctx}, "
                f"got n_windows={n_windows}. Ask for fewer or take more text."
            )
        return self._gather(np.arange(n_windows) * n_held // n_windows * n_ctx, n_ctx)

    def _check_room(self, n_ctx: int) -> None:
        if not 1 <= n_ctx <= self.n_tokens:
            raise ValueError(
                f"A window of n_ctx tokens needs 1 <= n_ctx <= {self.n_tokens:,}, the tokens of "
                f"this split, got {n_ctx}. Use a smaller n_ctx or more text."
            )

    def _starts(self, n_ctx: int, seed: int, epoch: int) -> np.ndarray:
        """Where the windows of an epoch begin, in its order; kept until another is asked for."""
        key = (n_ctx, seed, epoch)
        kept = self._epoch
        if kept is None or kept[0] != key:
            n_windows = self.windows_per_epoch(n_ctx)
            n_offsets = min(n_ctx, self.n_tokens - n_windows * n_ctx + 1)
            bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
            offset = int(bits.random_raw()) % n_offsets
            order = np.argsort(bits.random_raw(n_windows), kind="stable")
            self._epoch = kept = key, order * n_ctx + offset
        return kept[1]

    def _gather(self, starts: np.ndarray, n_ctx: int) -> Int[Tensor, "batch pos"]:
        windows = self.tokens[starts[:, None] + np.arange(n_ctx)]
        return torch.from_numpy(np.asarray(windows, dtype=np.int64))
