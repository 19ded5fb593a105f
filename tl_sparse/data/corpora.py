"""Text to tokens on disk: streamed, split by content, cached by hash.

1. Survey: read all documents once. Their sha256 digests, in order, name the content. A one-shot
   iterator is copied to disk on the way, anything else is simply read again in step 4.
2. Split: a document is validation if its digest, as a fraction of the largest one possible, lies
   below `validation_fraction`. So equal documents stand on one side, and a document stands on the
   same side in every corpus. Where that leaves a side empty, the one document nearest to the border
   changes sides.
3. Tokenizer: the one given, else byte-level BPE trained on the first 8 million characters of the
   training side.
4. Tokens: each document's, then the end-of-text token, to `train.bin` or `validation.bin`.

Only a chunk of documents is in memory at a time. Steps 3 and 4 are left out where the cache has
their result.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tokenizers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tl_sparse.data import cache
from tl_sparse.data.sources import Document, Source, Undecodable, documents
from tl_sparse.data.splits import TokenSplit
from tl_sparse.data.survey import (
    TRAINING_SAMPLE,
    SplitSettings,
    SurveyedTexts,
    progress_bar,
    survey_documents,
)
from tl_sparse.tokenizer import tokenizer_hash, train_tokenizer, wrap_tokenizer

CHUNK = 1_000_000
"""Characters that are tokenised at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Tokens for training and for validation, and the tokenizer that made them."""

    train: TokenSplit
    """What models are trained on."""
    validation: TokenSplit
    """Documents of which none, to the letter, is in `train`."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer given, or the one trained."""
    hash: str
    """Hex; of the content, the tokenizer and the settings of the split."""
    d_vocab: int
    """Highest token id of the tokenizer plus one."""

    def __repr__(self) -> str:
        return (
            f"Corpus({self.train.n_tokens:,} training and {self.validation.n_tokens:,} validation "
            f"tokens, d_vocab={self.d_vocab}, {self.train.bytes_per_token:.2f} bytes per token, "
            f"hash={self.hash[:12]})"
        )


def corpus(
    source: Source,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    vocab_size: int = 1024,
    validation_fraction: float = 0.05,
    max_tokens: int | None = None,
    column: str = "text",
    undecodable: Undecodable = "error",
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Corpus:
    r"""Tokenise texts, or open the tokens that an earlier call made of the same texts.

    Args:
        source: A folder path (its `.py` files) or an iterable of strings, `Document`s or rows with
            a text column. It may be larger than memory.
        tokenizer: Must have an end-of-text token. None trains one.
        vocab_size: Tokens of the tokenizer to train; without effect if one is given.
        validation_fraction: Expected share of the documents kept for validation.
        max_tokens: Stop at so many tokens, shared out by `validation_fraction`; the last document
            of each side may be cut. At most 16 bytes of text are read for each.
        column: Column of a row that holds the text.
        undecodable: For a folder: what to do with a file that is not UTF-8.
        cache_dir: Where the tokens stand; None is `default_cache_dir()`.
        progress: Show progress bars on stderr.

    Returns:
        The corpus, its tokens memory-mapped.

    Raises:
        ValueError: There are fewer than two distinct documents, a text is not valid Unicode, the
            source changed between two readings, or an argument is out of range.
        OSError: The disk is full; nothing half-written is left.

    Examples:
        >>> import tempfile
        >>> texts = [f"x = {i}\n" for i in range(100)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tiny = corpus(texts, vocab_size=260, cache_dir=folder, progress=False)
        ...     tiny.train.batch(0, batch_size=2, n_ctx=8, seed=0).shape
        torch.Size([2, 8])
    """
    settings = SplitSettings(validation_fraction, max_tokens)

    def read() -> Iterator[Document]:
        return documents(source, column=column, undecodable=undecodable)

    return build(
        read, once=isinstance(source, Iterator), settings=settings, tokenizer=tokenizer,
        vocab_size=vocab_size, cache_dir=cache_dir, progress=progress,
    )  # fmt: skip


def build(
    read: Callable[[], Iterator[Document]],
    *,
    once: bool,
    settings: SplitSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    cache_dir: str | Path | None,
    progress: bool,
) -> Corpus:
    """Survey, look into the cache, else train the tokenizer and tokenise; see `corpus`."""
    place = Path(cache_dir) if cache_dir is not None else cache.default_cache_dir()
    with cache.workspace(place) as workspace:
        spool = workspace / "spool" if once else None
        survey = survey_documents(read(), settings=settings, spool=spool, progress=progress)
        texts = SurveyedTexts(read, survey=survey, spool=spool, progress=progress)
        recipe = None
        if tokenizer is None:
            recipe = cache.hash_of(
                content=survey.content_hash, vocab_size=vocab_size, sample=TRAINING_SAMPLE,
                tokenizers=tokenizers.__version__, **vars(settings),
            )  # fmt: skip
            known = cache.recall(place, recipe)
            if known and (found := open_cached(place / known)):
                return found
            tokenizer = train_tokenizer(texts.training_sample(), vocab_size)
        name = cache.hash_of(
            content=survey.content_hash, tokenizer=tokenizer_hash(tokenizer),
            eos=tokenizer.eos_token_id, **vars(settings),
        )  # fmt: skip
        if cache.read_entry(place / name) is None:
            built = workspace / "corpus"
            _write(built, texts, tokenizer=tokenizer, settings=settings, name=name)
            cache.publish(built, place / name)
        if recipe is not None:
            cache.remember(place, recipe, corpus_hash=name)
    found = open_cached(place / name, tokenizer=tokenizer)
    assert found is not None, "a corpus that was just published can be opened"
    return found


def open_cached(folder: Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Corpus | None:
    """Open a corpus of the cache, or None if it is absent or torn.

    Without a tokenizer the stored one is read, which must be one that `train_tokenizer` made.
    """
    entry = cache.read_entry(folder)
    if entry is None:
        return None
    if tokenizer is None:
        try:
            stored = (folder / "tokenizer.json").read_text(encoding="utf-8")
            tokenizer = wrap_tokenizer(Tokenizer.from_str(stored))
        except Exception:  # tokenizers raises bare Exceptions for a file that it cannot read
            return None
    if tokenizer_hash(tokenizer) != entry["tokenizer_hash"]:
        return None
    train, validation = (
        TokenSplit(folder / f"{side}.bin", dtype=entry["dtype"], n_bytes=entry[side]["n_bytes"])
        for side in cache.SPLITS
    )
    return Corpus(train, validation, tokenizer, hash=entry["hash"], d_vocab=entry["d_vocab"])


# Tokens -------------------------------------------------------------------------------------------


class _Side:
    """One file of tokens while it is written."""

    def __init__(self, file: BinaryIO, *, dtype: str, budget: int | float) -> None:
        self.file, self.dtype, self.budget = file, dtype, budget
        self.n_tokens = self.n_bytes = self.n_documents = 0

    @property
    def is_full(self) -> bool:
        return self.n_tokens >= self.budget

    def add(self, tokens: list[int], n_bytes: int) -> None:
        """Write a document as far as the budget allows; its bytes are counted in proportion."""
        n_kept = int(min(len(tokens), self.budget - self.n_tokens))
        if n_kept <= 0:
            return
        self.file.write(np.array(tokens[:n_kept], dtype=self.dtype).tobytes())
        self.n_tokens += n_kept
        self.n_bytes += round(n_bytes * n_kept / len(tokens))
        self.n_documents += 1

    def summary(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("n_tokens", "n_bytes", "n_documents")}


def _write(
    folder: Path,
    texts: SurveyedTexts,
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: SplitSettings,
    name: str,
) -> None:
    """Tokenise all documents into a new folder."""
    encode, end = encoder(tokenizer), tokenizer.eos_token_id
    assert isinstance(end, int), "encoder() refuses a tokenizer without an end-of-text token"
    d_vocab = max(tokenizer.get_vocab().values()) + 1
    dtype = "uint16" if d_vocab <= 2**16 else "uint32"
    folder.mkdir()
    budgets = _budgets(settings)
    with ExitStack() as files:
        sides = [
            _Side(files.enter_context(path.open("wb")), dtype=dtype, budget=budgets[path.stem])
            for path in (folder / f"{side}.bin" for side in cache.SPLITS)
        ]
        _write_tokens(sides, texts, encode=encode, end=end)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    stored = backend.to_str() if isinstance(backend, Tokenizer) else ""
    (folder / "tokenizer.json").write_text(stored, encoding="utf-8")
    summaries = {name: side.summary() for name, side in zip(cache.SPLITS, sides, strict=True)}
    cache.write_entry(folder, {
        "format": cache.FORMAT, "hash": name, "content_hash": texts.survey.content_hash,
        "tokenizer_hash": tokenizer_hash(tokenizer), "tokenizer_file": cache.file_hash(folder),
        "d_vocab": d_vocab, "dtype": dtype,
        **summaries, "settings": vars(settings),
        "versions": {"python": platform.python_version(), "tokenizers": tokenizers.__version__},
    })  # fmt: skip


def _write_tokens(
    sides: list[_Side],
    texts: SurveyedTexts,
    *,
    encode: Callable[[list[str]], list[list[int]]],
    end: int,
) -> None:
    """Tokenise chunk by chunk, until the texts end or both sides are full."""
    with progress_bar("tokenising", texts.progress, total=texts.survey.n_bytes) as bar:
        for chunk in _chunks(texts.read()):
            for raw, tokens in zip(chunk, encode([raw.decode() for raw in chunk]), strict=True):
                sides[texts.survey.is_validation(raw)].add([*tokens, end], len(raw))
                bar.update(len(raw))
            if all(side.is_full for side in sides):
                break


def _budgets(settings: SplitSettings) -> dict[str, int | float]:
    if settings.max_tokens is None:
        return dict.fromkeys(cache.SPLITS, float("inf"))
    n_validation = min(
        max(1, round(settings.max_tokens * settings.validation_fraction)), settings.max_tokens - 1
    )
    return {"train": settings.max_tokens - n_validation, "validation": n_validation}


def _chunks(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """A function from texts to tokens that adds none, cuts none and reads special tokens as text.

    Raises:
        ValueError: The tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer needs an end-of-text token to put between documents, and has none. "
            "Set tokenizer.eos_token to a token of its vocabulary."
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        return lambda texts: [tokenizer.encode(text, **options) for text in texts]
    own = Tokenizer.from_str(backend.to_str())  # the caller's tokenizer stays as it is
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True

    def encode(texts: list[str]) -> list[list[int]]:
        encodings = own.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode
