"""Where texts come from: files of the standard library, packages and folders, lists and datasets.

Everything becomes a stream of `Document`s, one at a time, in an order that does not depend on the
machine. Files are read in place. Nothing is skipped in silence except empty files, and in the
standard library those few that do not decode on purpose.
"""

import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal

Undecodable = Literal["error", "replace", "skip"]
"""What to do with a file that is not UTF-8: fail, put U+FFFD for the bad bytes, or leave it out."""

Source = str | Path | Iterable[Any]
"""A folder path, or an iterable (list, generator, Hugging Face dataset) of strings, `Document`s or
rows with a text column."""

TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Document:
    """One text, and the name by which errors speak of it."""

    name: str
    """A path or a position; it has no influence on tokens, splits or hashes."""
    text: str
    """The text itself."""


def standard_library(*, include_tests: bool = False) -> Iterator[Document]:
    """Read the standard library of the running interpreter, about 12 million characters.

    Files come sorted by their relative path. Third-party folders and the `_sysconfigdata` files,
    which differ between builds of one version, are left out; so are files that do not decode by
    their own coding cookie (PEP 263).

    Args:
        include_tests: Also read the folders `test`, `tests` and `idle_test`: about 13 million
            characters more.

    Yields:
        One document per file, named by its path inside the library.

    Raises:
        ValueError: This interpreter has no library files on disk.

    Examples:
        >>> next(standard_library()).name
        '__future__.py'
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = FOREIGN_FOLDERS | (frozenset() if include_tests else TEST_FOLDERS)
    paths = [
        path
        for path in matching_files(root, "**/*.py")
        if left_out.isdisjoint(path.relative_to(root).parts[:-1])
        and not path.name.startswith("_sysconfigdata")
    ]
    if not paths:
        raise ValueError(
            f"The standard library is read from .py files, and {root} holds none (a zipped or "
            f"frozen Python). Use folder(...) or python_corpus(generated_fraction=1)."
        )
    return _read_library(root, paths)


def _read_library(root: Path, paths: list[Path]) -> Iterator[Document]:
    for path in paths:
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text:
            yield Document(path.relative_to(root).as_posix(), text)


def installed_python() -> Iterator[Document]:
    """Read all Python of this environment: the standard library with its tests, then all packages.

    Some 25 million characters and whatever is installed. Files that do not decode, and second
    copies of a file, are left out.

    Yields:
        One document per file, named by its path inside the library or the packages' folder.

    Raises:
        ValueError: This interpreter has no library files on disk.
    """
    seen = set[str]()
    folders = dict.fromkeys(Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib"))
    packages = (_read_library(root, matching_files(root, "**/*.py")) for root in folders)
    for document in chain(standard_library(include_tests=True), *packages):
        if document.text not in seen:
            seen.add(document.text)
            yield document


def installed_package(name: str, *, undecodable: Undecodable = "error") -> Iterator[Document]:
    """Read the `.py` files of an installed package, without importing it.

    Args:
        name: The name in `import name`, a package or a single module.
        undecodable: What to do with a file that is not UTF-8.

    Yields:
        One document per file, sorted by path.

    Raises:
        ValueError: There is no such package, or it has no Python files.

    Examples:
        >>> [document.name for document in installed_package("typing_extensions")]
        ['typing_extensions.py']
    """
    spec = None if "." in name or not name else find_spec(name)
    if spec is None:
        raise ValueError(
            f"installed_package takes a name that `import` finds, without dots; there is no "
            f"{name!r} in this environment. Give the import name, not the name on PyPI."
        )
    if spec.submodule_search_locations:
        return folder(next(iter(spec.submodule_search_locations)), undecodable=undecodable)
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"The module {name!r} is not made of Python files ({spec.origin}).")
    path = Path(spec.origin)
    return read_files(path.parent, [path], undecodable)


def folder(
    path: str | Path, *, pattern: str = "**/*.py", undecodable: Undecodable = "error"
) -> Iterator[Document]:
    """Read the files of a folder as UTF-8, exactly as they are.

    Args:
        path: The folder.
        pattern: Which files, as in `pathlib.Path.glob`.
        undecodable: What to do with a file that is not UTF-8.

    Yields:
        One document per nonempty file, sorted by relative path.

    Raises:
        ValueError: There is no such folder, nothing in it matches, or, when its turn comes, a file
            is not UTF-8 and `undecodable` is `"error"`.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"A folder of texts must exist, got {str(path)!r}. To use a string as a text, put it "
            f"in a list."
        )
    paths = matching_files(root, pattern)
    if not paths:
        raise ValueError(
            f"No file in {root} matches {pattern!r}. Give another pattern, for example '**/*.txt'."
        )
    return read_files(root, paths, undecodable)


def matching_files(root: Path, pattern: str) -> list[Path]:
    """List the files of a folder that match a pattern, sorted by relative path."""
    found = (path for path in root.glob(pattern) if path.is_file())
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def read_files(root: Path, paths: list[Path], undecodable: Undecodable) -> Iterator[Document]:
    """Read files as UTF-8, named by their paths relative to a folder; empty ones are left out.

    Raises:
        ValueError: If a file is not UTF-8 and `undecodable` is `"error"`.
    """
    for path in paths:
        content = path.read_bytes()
        try:
            text = content.decode(
                "utf-8", errors="replace" if undecodable == "replace" else "strict"
            )
        except UnicodeDecodeError as error:
            if undecodable == "skip":
                continue
            raise ValueError(
                f"Texts are read as UTF-8, but {path} has a byte {content[error.start]:#04x} at "
                f"offset {error.start} that is not. Pass undecodable='replace' or "
                f"undecodable='skip', or convert the file."
            ) from error
        if text:
            yield Document(path.relative_to(root).as_posix(), text)


def documents(
    source: Source, *, column: str = "text", undecodable: Undecodable = "error"
) -> Iterator[Document]:
    """Read any source as documents, one at a time; empty texts are left out.

    Args:
        source: A folder path (its `.py` files), or an iterable of strings, `Document`s or rows (a
            Hugging Face `Dataset` or `IterableDataset` is one of rows).
        column: The column of a row that holds the text.
        undecodable: For a folder: what to do with a file that is not UTF-8.

    Yields:
        The documents in the order of the source.

    Raises:
        ValueError: The source is a mapping (such as a `DatasetDict`), a row has no such column, or
            an item is no text.

    Examples:
        >>> [document.text for document in documents(["x = 1", "", "y = 2"])]
        ['x = 1', 'y = 2']
    """
    if isinstance(source, str | Path):
        return folder(source, undecodable=undecodable)
    if isinstance(source, Mapping):
        raise ValueError(
            f"A source is a sequence of texts, got a mapping with the keys {list(source)}. Choose "
            f"one of its values, for example source['train']."
        )
    return _from_items(source, column)


def _from_items(source: Iterable[Any], column: str) -> Iterator[Document]:
    for position, item in enumerate(source):
        name = f"item {position}"
        if isinstance(item, Document):
            name, item = item.name, item.text
        elif isinstance(item, Mapping):
            if column not in item:
                raise ValueError(
                    f"The text is read from the column {column!r}, but {name} has {list(item)}. "
                    f"Pass column=..."
                )
            item = item[column]
        if not isinstance(item, str):
            raise ValueError(
                f"A text is a string, but {name} is of type {type(item).__name__}. Pass strings, "
                f"Documents, or rows with a column of strings."
            )
        if item:
            yield Document(name, item)
