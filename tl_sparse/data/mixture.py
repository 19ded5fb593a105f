"""The default text: real Python of the standard library, mixed with simple Python of our own.

1. Take files of the standard library, or of all Python that is installed, in an order drawn from
   the seed, as long as they fit in their share of the characters.
2. Generate programs until they make up the fraction that was asked for. Where the library is too
   small for its share, both become smaller: the fraction holds, not the total.
3. Interleave the two in proportion, so that any stretch of the corpus has both.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import tokenizers
from transformers import PreTrainedTokenizerBase

from tl_sparse.data import cache
from tl_sparse.data.corpora import Corpus, build, open_cached
from tl_sparse.data.expressions import Dialect
from tl_sparse.data.grammar import generate_programs
from tl_sparse.data.sources import Document, installed_python, standard_library
from tl_sparse.data.survey import SplitSettings
from tl_sparse.tokenizer import tokenizer_hash

Library = Literal["standard", "installed"]
"""Where real Python is taken from."""

MIN_PROGRAM = 300
"""No generated program has fewer characters."""


def python_corpus(
    *,
    generated_fraction: float = 0.5,
    n_characters: int = 24_000_000,
    vocab_size: int = 1024,
    seed: int = 0,
    dialect: Dialect = "plain",
    library: Library = "standard",
    tokenizer: PreTrainedTokenizerBase | None = None,
    validation_fraction: float = 0.05,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Corpus:
    """Make the default corpus, or open it if it was made before. Needs no network.

    The library is the one of the running interpreter, so another version of Python, or with
    `library="installed"` another set of packages, gives another corpus; `Corpus.hash` tells.

    Args:
        generated_fraction: Share of the characters that is generated, in [0, 1].
        n_characters: Characters in all; fewer where the library (the standard one has about 12
            million) falls short of its share.
        vocab_size: Tokens of the tokenizer to train; without effect if one is given.
        seed: Decides which programs are generated and the order of all documents.
        dialect: Of the generated programs; `"tasks"` has more of what the paper's tasks ask about.
        library: Where real Python is taken from: the standard library without its tests, or all
            that is installed here, with tests and packages, often hundreds of millions of
            characters.
        tokenizer: None trains one on the mixture.
        validation_fraction: Expected share of the documents kept for validation.
        cache_dir: Where the tokens stand; None is `default_cache_dir()`.
        progress: Show progress bars on stderr.

    Returns:
        The corpus. No document of its validation side occurs in its training side.

    Raises:
        ValueError: An argument is out of range, or there are too few characters for two documents.
        OSError: The disk is full; nothing half-written is left.
    """
    if not 0 <= generated_fraction <= 1:
        raise ValueError(
            f"generated_fraction is a fraction in [0, 1], got {generated_fraction}. 0.0 is the "
            f"standard library alone, 1.0 generated Python alone."
        )
    if n_characters < 1:
        raise ValueError(f"n_characters is a count, 1 or more, got {n_characters}.")
    if library not in get_args(Library):
        raise ValueError(
            f'library is "standard" or "installed", got {library!r}. For texts of your '
            "own there is data.corpus."
        )
    settings = SplitSettings(validation_fraction, max_tokens=None)
    n_real = round(n_characters * (1 - generated_fraction))
    real = library_part(n_real, seed=seed, library=library)
    n_generated = round(n_characters * generated_fraction)
    if generated_fraction < 1:
        n_library = sum(len(document.text) for document in real)
        n_generated = round(n_library * generated_fraction / (1 - generated_fraction))
    recipe = cache.hash_of(
        library=_digest(document.text for document in real), seed=seed, n_generated=n_generated,
        grammar=_digest(generate_programs(40, seed=0, dialect=dialect)),
        tokenizer=vocab_size if tokenizer is None else tokenizer_hash(tokenizer),
        tokenizers=tokenizers.__version__, **vars(settings),
    )  # fmt: skip
    place = Path(cache_dir) if cache_dir is not None else cache.default_cache_dir()
    known = cache.recall(place, recipe)
    if known and (found := open_cached(place / known, tokenizer=tokenizer)):
        return found
    made = build(
        partial(mixture, real, n_generated, seed=seed, dialect=dialect), once=False,
        settings=settings, tokenizer=tokenizer, vocab_size=vocab_size, cache_dir=place,
        progress=progress,
    )  # fmt: skip
    cache.remember(place, recipe, corpus_hash=made.hash)
    return made


def library_part(n_characters: int, *, seed: int, library: Library = "standard") -> list[Document]:
    """Take library files in an order drawn from the seed, leaving out those that do not fit."""
    if n_characters == 0:
        return []
    part, n_left = [], n_characters
    shuffled = sorted(
        standard_library() if library == "standard" else installed_python(),
        key=lambda document: hashlib.sha256(f"{seed} {document.name}".encode()).digest(),
    )
    for document in shuffled:
        if len(document.text) <= n_left:
            part.append(document)
            n_left -= len(document.text)
    return part


def mixture(
    library: list[Document], n_generated: int, *, seed: int, dialect: Dialect = "plain"
) -> Iterator[Document]:
    """Interleave library files with `n_generated` characters of programs (the last may overrun).

    Examples:
        >>> [document.name for document in mixture([Document("a.py", "x = 1")], 400, seed=0)]
        ['a.py', 'generated 0']
    """
    n_library, n_taken, n_written = sum(len(document.text) for document in library), 0, 0
    n_programs = n_generated // MIN_PROGRAM + 1
    programs = enumerate(generate_programs(n_programs, seed=seed, dialect=dialect))
    for document in library:
        yield document
        n_taken += len(document.text)
        while n_written < n_generated * n_taken // n_library:
            index, program = next(programs)
            n_written += len(program)
            yield Document(f"generated {index}", program)
    if not library:
        while n_written < n_generated:
            index, program = next(programs)
            n_written += len(program)
            yield Document(f"generated {index}", program)


def _digest(texts: Iterator[str]) -> str:
    content = hashlib.sha256()
    for text in texts:
        content.update(hashlib.sha256(text.encode("utf-8")).digest())
    return content.hexdigest()
