"""Where tokenised corpora stand on disk, and how they get there whole.

    cache_dir/
      <hash of a corpus>/      corpus.json, train.bin, validation.bin, tokenizer.json
      recipes/<key>.json       which corpus came of which inputs, so that nothing is made twice
      .building-*/             a workspace; gone when its builder ends, well or not

A corpus is written in a workspace beside its place and renamed into it. Who reads checks the sizes:
a folder that lost part of a file counts as absent and is built anew.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tl_sparse.files import write_text

FORMAT = 1
"""Changes whenever the meaning of the files does; folders of another format are not read."""

SPLITS = ("train", "validation")


def default_cache_dir() -> Path:
    """Choose the folder: TL_SPARSE_CACHE, else XDG_CACHE_HOME/tl_sparse, else ~/.cache/tl_sparse.

    Examples:
        >>> default_cache_dir().is_absolute()
        True
    """
    if own := os.environ.get("TL_SPARSE_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").absolute() / "tl_sparse"


def hash_of(**content: Any) -> str:
    """Name settings by their content: sha256, hex, of their canonical JSON."""
    canonical = json.dumps({"format": FORMAT, **content}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_entry(folder: Path) -> dict[str, Any] | None:
    """Read `corpus.json` of a cached corpus, or None where the folder is absent or torn."""
    try:
        entry = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        itemsize = np.dtype(entry["dtype"]).itemsize
        sizes = {name: (folder / f"{name}.bin").stat().st_size for name in SPLITS}
        whole = all(sizes[name] == entry[name]["n_tokens"] * itemsize > 0 for name in SPLITS)
        whole = whole and entry["tokenizer_file"] == file_hash(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if whole and entry["format"] == FORMAT and entry["hash"] == folder.name else None


def file_hash(folder: Path) -> str:
    """Name the stored tokenizer by its bytes (empty where it has no form on disk)."""
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def write_entry(folder: Path, entry: dict[str, Any]) -> None:
    """Write `corpus.json` into a folder."""
    write_text(folder / "corpus.json", json.dumps(entry, indent=2) + "\n")


def publish(built: Path, folder: Path) -> None:
    """Move a finished corpus into its place, unless another process was faster."""
    if read_entry(folder) is not None:
        return
    try:
        if folder.exists():
            os.replace(folder, built.with_name("torn"))
        os.replace(built, folder)
    except OSError:
        if read_entry(folder) is None:
            raise


def recall(cache_dir: Path, key: str) -> str | None:
    """Look up which corpus came of the inputs with this key."""
    try:
        recipe = json.loads((cache_dir / "recipes" / f"{key}.json").read_text(encoding="utf-8"))
        return str(recipe["corpus"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(cache_dir: Path, key: str, *, corpus_hash: str) -> None:
    """Note which corpus came of the inputs with this key."""
    write_text(cache_dir / "recipes" / f"{key}.json", json.dumps({"corpus": corpus_hash}) + "\n")


@contextmanager
def workspace(cache_dir: Path) -> Iterator[Path]:
    """Give a temporary folder on the disk of the cache, removed when the block ends.

    Raises:
        OSError: The disk is full (said with the folder and what to do), or not writable.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(
            prefix=".building-", dir=cache_dir, ignore_cleanup_errors=True
        ) as name:
            yield Path(name)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"The disk of the corpus cache is full ({cache_dir}). Nothing half-written was kept. "
            f"Free some space, or pass cache_dir=... or set TL_SPARSE_CACHE to another disk",
        ) from error
