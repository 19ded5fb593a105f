"""Byte-level BPE with the split pattern of the paper's code, for TransformerLens.

A text is split by `SPLIT_PATTERN`, and pairs of bytes that often stand together inside the pieces
are merged until the vocabulary is full. Two properties matter here: any text comes back exactly
(all 256 bytes are tokens), and quotes join brackets (`('` and `")` are single tokens), on which the
paper's quote task rests (arXiv 2511.13653, Table 1).
"""

import hashlib
import json
from collections.abc import Iterable

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
    backend = Tokenizer(BPE())
    split = Split(Regex(SPLIT_PATTERN), behavior="isolated")
    backend.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return wrap_tokenizer(backend)


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
