"""Texts that are named by their paths: files, folders of files, datasets on disk.

1. A file is one text. A folder is its text files, by their endings or by a pattern. A folder that
   `datasets` saved is its rows.
2. A corpus is split by document, and a single book is a single document. So where there are few,
   long ones are cut at line ends into pieces.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tl_sparse.data.sources import (
    Document,
    Undecodable,
    documents,
    matching_files,
    read_files,
)

TEXT_ENDINGS = frozenset({
    ".c", ".cc", ".cpp", ".cs", ".css", ".csv", ".go", ".h", ".hpp", ".html", ".java", ".jl",
    ".js", ".json", ".jsonl", ".kt", ".lua", ".md", ".php", ".pl", ".py", ".r", ".rb", ".rs",
    ".rst", ".scala", ".sh", ".sql", ".swift", ".tex", ".toml", ".ts", ".tsv", ".txt", ".xml",
    ".yaml", ".yml",
})  # fmt: skip
"""Endings of the files that a folder is searched for."""

FEW = 20
"""With fewer documents than this, long ones are cut."""

PIECES = 40
"""Into about so many pieces in all."""

SHORTEST, LONGEST = 500, 20_000
"""Characters of a piece at least, if the text is long enough, and about at most."""


class PathTexts:
    """The texts at some paths as documents, in the order of their names, as often as they are read.

    Args:
        paths: Files, whatever their endings; folders; datasets that `datasets` saved.
        pattern: Which files of a folder, as in `pathlib.Path.glob`; None is `TEXT_ENDINGS`.
        column: Column of a dataset's rows that holds the text.
        undecodable: What to do with a file that is not UTF-8.

    Raises:
        ValueError: If there is nothing at a path or no text in a folder; when read, if a file is
            not UTF-8.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.txt", "a.md", "c.bin"):
        ...         _ = Path(folder, name).write_text(name)
        ...     [document.name for document in PathTexts([folder])]
        ['a.md', 'b.txt']
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        pattern: str | None = None,
        column: str = "text",
        undecodable: Undecodable = "error",
    ) -> None:
        self.column, self.undecodable = column, undecodable
        self.parts = [_part(Path(path).expanduser(), pattern) for path in paths]

    @property
    def n_files(self) -> int | None:
        """Number of files; None where a dataset is among the paths."""
        if any(files is None for _, files in self.parts):
            return None
        return sum(len(files) for _, files in self.parts)

    def __iter__(self) -> Iterator[Document]:
        if self.n_files is not None and self.n_files < FEW:
            return iter(cut(list(self._read())))
        return self._read()

    def _read(self) -> Iterator[Document]:
        for source, files in self.parts:
            if files is None:
                yield from documents(source, column=self.column)
            else:
                yield from read_files(source, files, self.undecodable)


def _part(path: Path, pattern: str | None) -> tuple[Any, list[Path] | None]:
    """Give a folder and the files of it that are meant, or a dataset and None."""
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _dataset(path), None
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise ValueError(f"There is no file or folder {path} to read text from.")
    found = matching_files(path, pattern or "**/*")
    if pattern is None:
        found = [file for file in found if file.suffix.lower() in TEXT_ENDINGS]
    if not found:
        what = f"matches {pattern!r}" if pattern else "ends as text does (.txt, .md, .py, ...)"
        raise ValueError(f"No file in {path} {what}. Give a pattern, for example '**/*.log'.")
    return path, found


def _dataset(path: Path) -> Any:
    from datasets import load_from_disk

    rows = load_from_disk(str(path))
    if not isinstance(rows, dict):
        return rows
    if "train" not in rows:
        raise ValueError(
            f"The dataset {path} has the splits {', '.join(map(str, rows))} and no train. Name the "
            f"folder of one: {path / str(next(iter(rows)))}."
        )
    return rows["train"]


def cut(texts: Sequence[Document]) -> list[Document]:
    r"""Cut long documents into pieces, at line ends where there are some.

    Examples:
        >>> book = Document("book", "a line\n" * 200)
        >>> [(piece.name, len(piece.text)) for piece in cut([book])]
        [('book, part 1', 504), ('book, part 2', 504), ('book, part 3', 392)]
    """
    whole = sum(len(document.text) for document in texts)
    length = min(max(whole // PIECES, SHORTEST), LONGEST, max(1, whole // 2))
    return [piece for document in texts for piece in _pieces(document, length)]


def _pieces(document: Document, length: int) -> Iterator[Document]:
    text, pieces, begin, end = document.text, [], 0, 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), length):  # nobody knows how long a line is
            end += len(line[start : start + length])
            if end - begin >= length and len(text) - end >= length // 2:
                pieces.append(text[begin:end])
                begin = end
    pieces.append(text[begin:])
    for number, piece in enumerate(pieces, start=1):
        name = f"{document.name}, part {number}" if len(pieces) > 1 else document.name
        yield Document(name, piece)
