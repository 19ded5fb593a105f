"""Byte-level BPE with the split pattern of the paper's code, for TransformerLens.

A text is split by `SPLIT_PATTERN`, and pairs of bytes that often stand together inside the pieces
are merged until the vocabulary is full. Two properties matter here: any text comes back exactly
(all 256 bytes are tokens), and quotes join brackets (`('` and `")` are single tokens), on which the
paper's quote task rests (arXiv 2511.13653, Table 1).
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""The token between files; also beginning, end and padding, where a tool asks for them."""

SPLIT_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pieces that merges never cross: a word with one sign before it, up to three digits, a run of
signs with the newlines behind it, newlines, other white space."""

MIN_VOCAB_SIZE = 257


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    r"""Train a byte-level BPE tokenizer. The same texts give the same tokenizer.

    Args:
        texts: What to learn the merges from; read once.
        vocab_size: Number of tokens, with the 256 bytes and `<|endoftext|>`. Texts with too few
            distinct pairs give fewer.

    Returns:
        A tokenizer that TransformerLens accepts. It adds no token of its own when it encodes, and
        decodes to exactly the text that was encoded.

    Raises:
        ValueError: `vocab_size` is below 257.

    Examples:
        >>> tokenizer = train_tokenizer(["print('hello')\n"] * 2, vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("naïve → '\t'"))
        "naïve → '\t'"
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size must be at least {MIN_VOCAB_SIZE} (256 bytes and {END_OF_TEXT}), got "
            f"{vocab_size}. The demo uses 1024."
        )
    backend = _byte_level(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return wrap_tokenizer(backend)


def _byte_level(model: BPE) -> Tokenizer:
    backend = Tokenizer(model)
    split = Split(Regex(SPLIT_PATTERN), behavior="isolated")
    backend.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = ByteLevelDecoder()
    return backend


def read_bpe(folder: str | Path) -> PreTrainedTokenizerFast | None:
    """Read the tokenizer of a folder with `encoder.json` and `vocab.bpe`, if they are there.

    The first gives each token's id, bytes as GPT-2's printable characters; the second the merges,
    the most important first, under a line with the version. `<|endoftext|>` gets the next free id
    if it has none.

    Raises:
        ValueError: If one of the two is missing or damaged.
    """
    encoder, merges = Path(folder) / "encoder.json", Path(folder) / "vocab.bpe"
    if not encoder.is_file() and not merges.is_file():
        return None
    try:
        vocabulary = json.loads(encoder.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
        lines = [line for line in lines if line and not line.startswith("#version")]
        pairs = [tuple(line.split(" ")) for line in lines]
        if not isinstance(vocabulary, dict) or any(len(pair) != 2 for pair in pairs):
            raise ValueError("not a table of tokens and a list of pairs")
        backend = _byte_level(BPE(vocabulary, pairs))  # pyright: ignore[reportArgumentType]
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ValueError(
            f"No tokenizer could be read from encoder.json and vocab.bpe in {folder}: {error}."
        ) from None
    backend.add_special_tokens([END_OF_TEXT])
    return wrap_tokenizer(backend)


def write_bpe(tokenizer: Any, folder: str | Path) -> None:
    """Write a byte-level BPE as `encoder.json` and `vocab.bpe` into a folder.

    Raises:
        ValueError: If the two files would not give back the same tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if isinstance(backend, Tokenizer) else {}
    ours = json.loads(_byte_level(BPE()).to_str())
    same = all(content.get(key) == ours[key] for key in ("normalizer", "pre_tokenizer", "decoder"))
    if not same or content["model"]["type"] != "BPE":
        raise ValueError(
            "encoder.json and vocab.bpe hold a byte-level BPE with the reference's split pattern "
            "and no other tokenizer."
        )
    pairs = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"] | added
    Path(folder, "encoder.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    text = "\n".join(["#version: 0.2", *pairs, ""])
    Path(folder, "vocab.bpe").write_text(text, encoding="utf-8")


def wrap_tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Make a tokenizer that TransformerLens takes as it is from one of the `tokenizers` library.

    Raises:
        ValueError: The vocabulary has no `<|endoftext|>`.
    """
    if backend.token_to_id(END_OF_TEXT) is None:
        raise ValueError(f"The tokenizer needs a token {END_OF_TEXT!r} to put between files.")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    # Without these two TransformerLens reloads the tokenizer by a name that it does not have.
    tokenizer.init_kwargs.setdefault("name_or_path", "")
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name a tokenizer by its content: sha256, hex, of all that decides which tokens a text gets.

    Padding and truncation are left out: they change with every call. Of a tokenizer without a
    Rust backend only the class, the vocabulary and the special tokens are seen.

    Examples:
        >>> tokenizer_hash(train_tokenizer(["a"])) == tokenizer_hash(train_tokenizer(["a"]))
        True
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        content = json.loads(backend.to_str())
        del content["padding"], content["truncation"]
    else:
        content = {
            "class": type(tokenizer).__name__,
            "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
            "vocabulary": tokenizer.get_vocab(),
        }
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
