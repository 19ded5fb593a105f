"""One pass over the texts: what they are, and on which side of the split each of them belongs.

A survey reads every document once and keeps only digests: the hash of the content, and the border
below which a document's own sha256 makes it validation. A one-shot iterator is copied to disk on
the way (the spool), so that it can be read again; anything else is read again from its source and
checked against the survey.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from tl_sparse.data.sources import Document

TRAINING_SAMPLE = 8_000_000
"""Characters of the training side that a tokenizer is trained on."""

MAX_BYTES_PER_TOKEN = 16
"""With `max_tokens`, texts are read up to so many bytes for each token wanted."""


@dataclass(frozen=True)
class SplitSettings:
    """How a corpus is cut."""

    validation_fraction: float
    """Expected share of the documents on the validation side, between 0 and 1."""
    max_tokens: int | None
    """Most tokens of both sides together, or None for all."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction is a fraction between 0 and 1, both excluded, got "
                f"{self.validation_fraction}. A corpus always has both sides; the default is 0.05."
            )
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(
                f"max_tokens counts both sides and is 2 or more, got {self.max_tokens}. "
                f"Leave it None for all tokens."
            )


@dataclass(frozen=True)
class Survey:
    """What one pass over the documents tells."""

    content_hash: str
    """sha256, hex, of the documents' digests in order."""
    n_documents: int
    n_bytes: int
    highest_validation: bytes
    """The documents of validation are those whose digest is not above this one."""

    def is_validation(self, text: bytes) -> bool:
        """Whether a document belongs to the validation side."""
        return hashlib.sha256(text).digest() <= self.highest_validation


def survey_documents(
    stream: Iterator[Document], *, settings: SplitSettings, spool: Path | None, progress: bool
) -> Survey:
    """Read all documents once, and copy them to `spool` if that is a path."""
    content, lowest, highest = hashlib.sha256(), b"\xff" * 33, b""
    n_documents = n_bytes = 0
    most = settings.max_tokens * MAX_BYTES_PER_TOKEN if settings.max_tokens else None
    with progress_bar("reading", progress) as bar, _Spool(spool) as copy:
        for document in stream:
            text = _utf8(document)
            copy.write(text)
            digest = hashlib.sha256(text).digest()
            content.update(digest)
            lowest, highest = min(lowest, digest), max(highest, digest)
            n_documents, n_bytes = n_documents + 1, n_bytes + len(text)
            bar.update(len(text))
            if most is not None and n_bytes >= most and lowest != highest:
                break
    if n_documents == 0:
        raise ValueError(
            "A corpus needs text, but the source has none. Check the path or the list."
        )
    if lowest == highest:
        raise ValueError(
            f"A corpus needs two different documents, one for training and one for validation; "
            f"the source has {n_documents} that are all alike. Cut a long text into several."
        )
    border = int(settings.validation_fraction * 2**64).to_bytes(8, "big") + bytes(24)
    last = max(lowest, border)
    if highest <= last:
        last = (int.from_bytes(highest, "big") - 1).to_bytes(32, "big")
    return Survey(content.hexdigest(), n_documents, n_bytes, last)


def _utf8(document: Document) -> bytes:
    try:
        return document.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"A text must be valid Unicode, but {document.name} has a lone surrogate at character "
            f"{error.start}. Read the file with errors='replace'."
        ) from error


def progress_bar(what: str, progress: bool, *, total: int | None = None) -> tqdm:
    """A bar on stderr that counts bytes."""
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, disable=not progress)


class _Spool:
    """A file of documents, each behind its length; without a path it swallows them."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.file: BinaryIO | None = None

    def __enter__(self) -> "_Spool":
        self.file = None if self.path is None else self.path.open("wb")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, text: bytes) -> None:
        if self.file is not None:
            self.file.write(len(text).to_bytes(8, "big") + text)

    @staticmethod
    def read(path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            while header := file.read(8):
                yield file.read(int.from_bytes(header, "big"))


@dataclass(frozen=True)
class SurveyedTexts:
    """The surveyed documents, to be read as often as needed."""

    source: Callable[[], Iterator[Document]]
    survey: Survey
    spool: Path | None
    progress: bool

    def read(self) -> Iterator[bytes]:
        """All documents as UTF-8, checked against the survey."""
        if self.spool is not None:
            yield from _Spool.read(self.spool)
            return
        content = hashlib.sha256()
        for document in islice(self.source(), self.survey.n_documents):
            text = _utf8(document)
            content.update(hashlib.sha256(text).digest())
            yield text
        if content.hexdigest() != self.survey.content_hash:
            raise ValueError(
                "The texts must be the same whenever they are read, but the second reading gave "
                "others. Pass a list, or an iterator, which is read once and copied to disk."
            )

    def training_sample(self) -> Iterator[str]:
        """The first documents of the training side, for the tokenizer."""
        n_characters = 0
        with progress_bar("tokenizer", self.progress, total=TRAINING_SAMPLE) as bar:
            for raw in self.read():
                if n_characters >= TRAINING_SAMPLE:
                    return
                if not self.survey.is_validation(raw):
                    text = raw.decode("utf-8")
                    n_characters += len(text)
                    bar.update(len(text))
                    yield text
