"""single_double_quote: close a string with the quote that opened it.

One pair, as an example (the paper's Table 1; answers `')` and `")`):

    retries = 3                     retries = 3
    logger.info('waiting for        logger.info("waiting for
    -> ')                           -> ")

The two prompts differ only in the opening token, `('` against `("`. Test prompts are made of words
and calls that no training or validation prompt has. Held-out prompts have a string that is closed
already, `assert`, `raise` and the like. Adversarial ones stand behind a comment with a quote that
nothing closes, an apostrophe for one.
"""

import random

from tl_sparse.tasks.templates import Answers, PairSpec, Sides
from tl_sparse.tasks.words import Words

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


def _call(w: Words) -> Sides:
    before, words = _context(w.rng, w.pool), _phrase(w.rng, w.pool)
    return Sides((f"{before}('{words}", f'{before}("{words}'))


def _after_a_string(w: Words) -> Sides:
    """A call behind a line with a whole string, whose quotes are drawn apart."""
    quote, call = w.pick("'\""), w.pick(_CALLS[w.pool])
    first = f"{w.pick(_VARIABLES[w.pool])} = {quote}{_phrase(w.rng, w.pool)}{quote}\n"
    start = w.pick(("", f"{w.pick(_VARIABLES[w.pool])} += ", "yield ", "await "))
    words = _phrase(w.rng, w.pool)
    return Sides((f"{first}{start}{call}('{words}", f'{first}{start}{call}("{words}'))


def _checked(w: Words) -> Sides:
    """A call behind `assert` or `raise`, after a comment."""
    first = f"# {_phrase(w.rng, w.pool)} {w.pick(_VARIABLES[w.pool])}\n"
    start = f"{first}{w.pick(('assert', 'raise'))} {w.pick(_CALLS[w.pool])}"
    words = _phrase(w.rng, w.pool)
    return Sides((f"{start}('{words}", f'{start}("{words}'))


def _after_a_comment(w: Words) -> Sides:
    """A call behind a comment with one quote, drawn apart from those of the call."""
    quoted = w.pick(("it's", "don't", '3"', 'the "'))
    comment = f"# {quoted} {_phrase(w.rng, w.pool)}\n"
    a, b = _call(w).prompts
    return Sides((comment + a, comment + b))


TEMPLATES, HELD_OUT = (_call,), (_after_a_string, _checked)

SINGLE_DOUBLE_QUOTE = PairSpec(
    name="single_double_quote",
    decides="close a string with the quote that opened it",
    differ="the opening token, `('` against `(\"`",
    answers=(Answers("')", '")'),),
    templates=TEMPLATES,
    held_out=HELD_OUT,
    together=("('", '("'),
    adversarial={"an open quote in a comment": (_after_a_comment,)},
)


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
