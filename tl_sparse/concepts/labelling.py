"""Concepts of characters become labels of tokens, and documents a stream of labelled tokens.

1. A whole document is read by `tokenize` and `ast`: spans of characters, by concept.
2. A token has a concept if its last character has it. So "a string is open" is said of a token
   behind which it is open: what a model that has read so far can know, and needs for the next one.
3. Documents are put one behind another as in a `Corpus`, the end-of-text token between them. Only
   then is the stream cut into windows, so that a label does not depend on where a window begins.
4. Whole documents are dealt out to two halves: nodes and thresholds are chosen on one and scored on
   the other. Sorted by length they go to the halves as a, b, b, a, so that both get as many long
   ones.

Not scored are documents that Python can't parse, documents whose text gives other tokens than the
corpus has, end-of-text tokens, and the first tokens of each window, where a model has seen too
little.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from tqdm import tqdm

from tl_sparse.concepts.catalog import CONCEPTS
from tl_sparse.concepts.lexical import mark_lexical
from tl_sparse.concepts.source import NotPythonError, Source, Spans
from tl_sparse.concepts.syntax import mark_syntax, parse
from tl_sparse.data import Corpus, TokenSplit, documents

Encode = Callable[[str], Encoding]


def spans(text: str) -> Spans:
    """Give the spans of characters in which each concept holds, of those that hold anywhere.

    Raises:
        NotPythonError: If Python can't parse the text.

    Examples:
        >>> spans("x = [1]")["list"], spans("x = [1]")["number"]
        ([(4, 6)], [(5, 6)])
    """
    source = Source(text)
    tree = parse(text)
    mark_lexical(source)
    mark_syntax(source, tree)
    return source.spans


def characters(text: str) -> Bool[np.ndarray, "concept char"]:
    """Give the label of each concept for every character.

    Raises:
        NotPythonError: If Python can't parse the text.
    """
    found = spans(text)
    held = np.zeros((len(CONCEPTS), len(text)), dtype=bool)
    for row, name in enumerate(CONCEPTS):
        for start, end in found.get(name, ()):
            held[row, start:end] = True
    return held


def labels(text: str, tokenizer: Any) -> Bool[Tensor, "concept token"]:
    r"""Give the label of each concept for every token of a text, in the order of `names`.

    Raises:
        NotPythonError: If Python can't parse the text (a `ValueError`).
        ValueError: If the tokenizer has no fast backend, which knows where its tokens stand.

    Examples:
        >>> from tl_sparse.data import train_tokenizer
        >>> labels("x = 1\n", train_tokenizer(["x = 1\n"], vocab_size=257)).shape
        torch.Size([40, 6])
    """
    return torch.from_numpy(_labels(text, place_encoder(tokenizer)(text)))


def _labels(text: str, encoding: Encoding) -> Bool[np.ndarray, "concept token"]:
    last = np.array([max(end - 1, 0) for _, end in encoding.offsets], dtype=np.intp)
    return characters(text)[:, last]


def place_encoder(tokenizer: Any) -> Encode:
    """Give a function from a text to its tokens and their places; special tokens are read as text.

    Raises:
        ValueError: If the tokenizer has no fast backend.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            "Concepts need a fast tokenizer, which says where in the text each token stands; got "
            f"{type(tokenizer).__name__}. `data.train_tokenizer` makes one."
        )
    own = Tokenizer.from_str(backend.to_str())  # the caller's tokenizer stays as it is
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True
    return lambda text: own.encode(text, add_special_tokens=False)


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """A stream of tokens with the label of each concept."""

    tokens: Int[Tensor, " token"]
    labels: Bool[Tensor, "concept token"]
    half: Int[Tensor, " token"]
    """0 where nodes are chosen, 1 where they are scored, -1 where neither is done."""
    n_documents: int
    """Documents that are labelled."""
    n_skipped: int
    """Documents that are in the stream and are not."""

    def cut(self, n_ctx: int, n_skipped: int) -> "LabelledTokens":
        """Give the same without the first `n_skipped` tokens of each window of `n_ctx` scored."""
        place = torch.arange(len(self.tokens)) % n_ctx
        half = torch.where(place < n_skipped, -1, self.half)
        return LabelledTokens(self.tokens, self.labels, half, self.n_documents, self.n_skipped)


@dataclass(frozen=True, eq=False)
class _Labelled:
    """One document."""

    tokens: np.ndarray
    labels: np.ndarray | None


def label_tokens(
    source: Corpus | Iterable[Any], tokenizer: Any, n_tokens: int, *, progress: bool = False
) -> LabelledTokens:
    """Label the first `n_tokens` tokens of a corpus' validation side, or of texts.

    Raises:
        ValueError: If fewer than two documents can be labelled.
    """
    encode, end = place_encoder(tokenizer), tokenizer.eos_token_id
    if end is None:
        raise ValueError("The tokenizer needs an end-of-text token to put between documents.")
    if isinstance(source, Corpus):
        stream = _of_split(source.validation, end, tokenizer.backend_tokenizer, encode)
    else:
        stream = (_label(document.text, encode(document.text)) for document in documents(source))
    found: list[_Labelled] = []
    total = 0
    with tqdm(desc="labels", total=n_tokens, unit="token", disable=not progress) as bar:
        for document in stream:
            found.append(document)
            total += len(document.tokens) + 1
            bar.update(len(document.tokens) + 1)
            if total >= n_tokens:
                break
    n_labelled = sum(document.labels is not None for document in found)
    if n_labelled < 2:
        raise ValueError(
            f"Nodes are chosen on some documents and scored on others: at least two have to be "
            f"Python that parses, and {n_labelled} of {len(found)} are."
        )
    return _stream(found, end, n_tokens)


def _label(text: str, encoding: Encoding, tokens: np.ndarray | None = None) -> _Labelled:
    """Label a document, if it is Python and its text gives the tokens that are known already."""
    given = np.array(encoding.ids) if tokens is None else tokens.astype(np.int64)
    if not np.array_equal(given, encoding.ids):
        return _Labelled(given, None)
    try:
        return _Labelled(given, _labels(text, encoding))
    except NotPythonError:
        return _Labelled(given, None)


def _of_split(
    split: TokenSplit, end: int, backend: Tokenizer, encode: Encode
) -> Iterator[_Labelled]:
    """Read the documents of a split back from their tokens."""
    start, block = 0, 2**16
    while start < split.n_tokens:
        stop = start
        while stop < split.n_tokens:
            found = np.flatnonzero(split.tokens[stop : stop + block] == end)
            stop += int(found[0]) if len(found) else block
            if len(found):
                break
        tokens = np.asarray(split.tokens[start : min(stop, split.n_tokens)])
        text = backend.decode(tokens.tolist(), skip_special_tokens=False)
        yield _label(text, encode(text), tokens)
        start = stop + 1


def _stream(found: list[_Labelled], end: int, n_tokens: int) -> LabelledTokens:
    """Put documents one behind another, each with its half."""
    sizes = [(-len(each.tokens), i) for i, each in enumerate(found) if each.labels is not None]
    halves = {i: (0, 1, 1, 0)[place % 4] for place, (_, i) in enumerate(sorted(sizes))}
    total = sum(len(document.tokens) + 1 for document in found)
    tokens = np.full(total, end, dtype=np.int64)
    labelled = np.zeros((len(CONCEPTS), total), dtype=bool)
    half = np.full(total, -1, dtype=np.int64)
    start = 0
    for i, document in enumerate(found):
        stop = start + len(document.tokens)
        tokens[start:stop] = document.tokens
        if document.labels is not None:
            labelled[:, start:stop] = document.labels
            half[start:stop] = halves[i]
        start = stop + 1
    n = min(n_tokens, total)
    return LabelledTokens(
        torch.from_numpy(tokens[:n]),
        torch.from_numpy(labelled[:, :n].copy()),
        torch.from_numpy(half[:n]),
        n_documents=len(halves),
        n_skipped=len(found) - len(halves),
    )
