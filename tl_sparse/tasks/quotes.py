"""single_double_quote: close a string with the quote that opened it.

One pair, as an example (the paper's Table 1; answers `')` and `")`):

    retries = 3                     retries = 3
    logger.info('waiting for        logger.info("waiting for
    -> ')                           -> ")

The two prompts differ only in the opening token, `('` against `("`. Test prompts are made of words
and calls that no training or validation prompt has.
"""

import random
from typing import Any

from tl_sparse.tasks.base import Pair, PairTask, Split

NAME = "single_double_quote"

_CALLS = {
    "train": (
        "print", "open", "logger.info", "items.append", "ValueError", "self.write", "load", "find",
        "os.getenv", "text.split", "send", "names.index", "run", "data.get", "log", "path.join",
        "show", "parser.add", "raise_error", "check",
    ),
    "test": (
        "logging.warning", "queue.put", "str", "config.read", "TypeError", "say", "result.add",
        "self.emit", "get", "values.remove", "system", "name.replace",
    ),
}  # fmt: skip
_WORDS = {
    "train": (
        "the", "file", "value", "not", "found", "name", "is", "missing", "hello", "error", "in",
        "start", "of", "data", "waiting", "for", "input", "done", "no", "such", "key", "user",
        "output", "list", "can", "read", "this", "table", "line", "time", "first", "test", "number",
        "red", "report", "page", "item", "total", "to", "save", "open", "size",
    ),
    "test": (
        "invalid", "index", "on", "world", "message", "or", "last", "path", "and", "server", "with",
        "close", "blue", "left", "count", "host", "result", "ready", "from", "write", "state",
        "empty", "title", "new", "order", "at",
    ),
}  # fmt: skip
_VARIABLES = {
    "train": ("count", "total", "size", "x", "retries", "n", "index", "limit", "width", "items"),
    "test": ("offset", "y", "depth", "start", "value", "rows", "level", "speed"),
}


def make(
    tokenizer: Any,
    *,
    n_train: int = 1024,
    n_validation: int = 128,
    n_test: int = 256,
    seed: int = 0,
) -> PairTask:
    """Make the task for a tokenizer, with so many pairs in each split.

    Raises:
        ValueError: If the tokenizer has no single token for one of the answers, or for one of the
            opening quotes.
    """
    for opening in ("('", '("'):
        if len(tokenizer.encode(opening, add_special_tokens=False)) != 1:
            raise ValueError(
                f"The task {NAME} needs {opening} to be one token, and this tokenizer splits it. "
                "Train a tokenizer on Python text (tl_sparse.data.train_tokenizer)."
            )
    rng = random.Random(f"{NAME} {seed}")
    seen: set[str] = set()
    pairs: dict[Split, list[Pair]] = {
        "train": _pairs(rng, "train", n_train, seen),
        "validation": _pairs(rng, "train", n_validation, seen),
        "test": _pairs(rng, "test", n_test, seen),
    }
    return PairTask(NAME, pairs, tokenizer=tokenizer)


def _pairs(rng: random.Random, pool: str, n: int, seen: set[str]) -> list[Pair]:
    pairs: list[Pair] = []
    while len(pairs) < n:
        before, words = _context(rng, pool), _phrase(rng, pool)
        single = f"{before}('{words}"
        if single not in seen:
            seen.add(single)
            pairs.append(Pair((single, f'{before}("{words}'), ("')", '")')))
    return pairs


def _context(rng: random.Random, pool: str) -> str:
    """Nought to two lines without quotes, then a call up to its bracket."""
    indent = ""
    lines = []
    for _ in range(rng.randrange(3)):
        name = rng.choice(_VARIABLES[pool])
        other = rng.choice(_VARIABLES[pool])
        kind = rng.randrange(4)
        if kind == 0:
            lines.append(f"{indent}{name} = {rng.randrange(100)}")
        elif kind == 1:
            lines.append(f"{indent}{name} = {other} + {rng.randrange(10)}")
        elif kind == 2:
            lines.append(f"{indent}{name} = [{rng.randrange(10)}, {rng.randrange(10)}]")
        else:
            lines.append(f"{indent}if {name} > {rng.randrange(50)}:")
            indent += "    "
    start = rng.choice(("", "", f"{rng.choice(_VARIABLES[pool])} = ", "return "))
    lines.append(f"{indent}{start}{rng.choice(_CALLS[pool])}")
    return "\n".join(lines)


def _phrase(rng: random.Random, pool: str) -> str:
    return " ".join(rng.choice(_WORDS[pool]) for _ in range(rng.randint(1, 4)))
