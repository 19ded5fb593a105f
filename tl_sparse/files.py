"""Writing files whole or not at all.

Everything is written to a temporary file beside its place and renamed over it, so that a full disk,
a crash or Ctrl-C leaves what was there before.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to a file, whole or not at all.

    Raises:
        OSError: If the disk is full or the place can't be written; what stood there is untouched.
    """
    _replace(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes to a file, whole or not at all.

    Raises:
        OSError: If the disk is full or the place can't be written; what stood there is untouched.
    """
    _replace(Path(path), lambda temporary: temporary.write_bytes(data))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `path` when the block ends well.

    An exception inside leaves `path` as it was and removes what was written.

    Raises:
        OSError: If the disk is full or the place can't be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.is_dir() or not _renamed(temporary, path):
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.replace(path, old / path.name)
            try:
                os.replace(temporary, path)
            except BaseException:
                recover_folder(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _renamed(folder: Path, path: Path) -> bool:
    """Rename a folder, unless another process has just put one there."""
    try:
        os.replace(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def recover_folder(path: str | Path) -> None:
    """Put back a folder that `whole_folder` had moved aside when its process was killed."""
    path = Path(path)
    for old in path.parent.glob(f".{path.name}.*.old"):
        if (old / path.name).is_dir() and not path.exists():
            os.replace(old / path.name, path)
        shutil.rmtree(old, ignore_errors=True)
