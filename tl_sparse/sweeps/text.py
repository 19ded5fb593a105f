"""The text of a sweep: which one it is, and where its tokens are.

A text is named by a hash of its content. It is opened by that name where a folder has it, also from
another machine, and else made here, which gives the same text only from the same Python.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tl_sparse.data import Corpus, open_cached, python_corpus
from tl_sparse.rules import POSITIVE_INTEGER, WORD, check_fields, checks_itself, choice


@checks_itself
@dataclass(frozen=True, kw_only=True)
class Text:
    """The text that models are trained on: the arguments of `data.python_corpus`, and its hash.

    The hash makes a cell's key, so that results on another text, as another version of Python has
    it, never pass for these.
    """

    hash: str
    n_characters: int
    vocab_size: int
    dialect: str
    library: str = "standard"

    def __post_init__(self) -> None:
        check_fields(self, WORD, "hash")
        check_fields(self, POSITIVE_INTEGER, "n_characters", "vocab_size")
        check_fields(self, choice("plain", "tasks"), "dialect")
        check_fields(self, choice("standard", "installed"), "library")

    @classmethod
    @checks_itself
    def of(
        cls,
        folder: str | Path,
        *,
        n_characters: int = 24_000_000,
        vocab_size: int = 1024,
        dialect: str = "tasks",
        library: str = "standard",
        progress: bool = True,
    ) -> "Text":
        """Make or open the text in a folder, and describe it.

        Raises:
            ValueError: If an argument is out of range.
        """
        asked: dict[str, Any] = {
            "n_characters": n_characters, "vocab_size": vocab_size, "dialect": dialect,
            "library": library,
        }  # fmt: skip
        corpus = python_corpus(**asked, cache_dir=Path(folder), progress=progress)
        return cls(hash=corpus.hash, **asked)

    def open(self, folder: str | Path, *, progress: bool = True) -> Corpus:
        """Open the text in a folder, or make it there.

        Where the folder has it, it may come from another machine.

        Raises:
            ValueError: If it is not there, and this machine would make another one.
        """
        if found := open_cached(Path(folder) / self.hash):
            return found
        asked = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "hash"}
        corpus = python_corpus(**asked, cache_dir=Path(folder), progress=progress)
        if corpus.hash != self.hash:
            raise ValueError(
                f"The cell asks for the text {self.hash[:12]} and this machine's is "
                f"{corpus.hash[:12]}: half of it is the interpreter's own library. Copy the other "
                f"machine's {self.hash[:12]}... into {folder}, or make the plan anew here."
            )
        return corpus

    def spec(self) -> dict[str, Any]:
        """Give the fields as plain JSON values.

        The library is left out where it is the standard one: so the names of cells are what they
        were before there was another.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.library == "standard":
            del values["library"]
        return values
