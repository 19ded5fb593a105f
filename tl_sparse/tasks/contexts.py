"""Lines of code that stand before what decides, and say nothing about it.

The lines of train, validation and test prompts are of a few plain kinds, perhaps with a header that
indents what follows; `unfamiliar` has other kinds, for held-out prompts. None has a quote.
"""

import re
from collections.abc import Callable, Collection, Sequence

from tl_sparse.tasks.words import Words

Line = Callable[[Words], str]

INDENT = "    "


def _number(w: Words) -> str:
    return f"{w.name()} = {w.number()}"


def _sum(w: Words) -> str:
    return f"{w.name()} = {w.name()} {w.pick('+-*')} {w.number()}"


def _call(w: Words) -> str:
    return f"{w.name()} = {w.callee()}({w.name()})"


def _attribute(w: Words) -> str:
    return f"{w.name()} = {w.name()}.{w.name()}"


def _effect(w: Words) -> str:
    return f"{w.callee()}({w.name()}, {w.number()})"


def _if(w: Words) -> str:
    return f"if {w.name()} {w.pick(('>', '<', '>='))} {w.number()}:"


def _if_not(w: Words) -> str:
    return f"if not {w.name()}:"


PLAIN: tuple[Line, ...] = (_number, _sum, _call, _attribute, _effect)
HEADERS: tuple[Line, ...] = (_if, _if_not)


def _comment(w: Words) -> str:
    return f"# {w.text(2, 5)}"


def _delete(w: Words) -> str:
    return f"del {w.name()}"


def _assertion(w: Words) -> str:
    return f"assert {w.name()} is not {w.name()}"


def _augmented(w: Words) -> str:
    return f"{w.name()} -= {w.number()}"


def _item(w: Words) -> str:
    return f"{w.name()}[{w.number()}] = {w.name()}"


def _try(w: Words) -> str:
    return "try:"


def _with(w: Words) -> str:
    return f"with {w.name()}.{w.name()}:"


UNFAMILIAR: tuple[Line, ...] = (_comment, _delete, _assertion, _augmented, _item)
UNFAMILIAR_HEADERS: tuple[Line, ...] = (_try, _with)


def plain(
    w: Words,
    low: int = 1,
    high: int = 3,
    *,
    indent: str = "",
    headers: bool = True,
    avoid: Collection[str] = (),
) -> str:
    """Write `low` to `high` lines of the plain kinds, which name nothing of what is to be avoided.

    Without `headers` no line indents what follows. `indent_of` gives what follows its place.
    """
    kinds = (PLAIN, HEADERS if headers else ())
    return _lines(w, w.between(low, high), kinds, indent=indent, avoid=avoid)


def unfamiliar(
    w: Words,
    low: int = 1,
    high: int = 3,
    *,
    indent: str = "",
    headers: bool = True,
    avoid: Collection[str] = (),
) -> str:
    """Write lines of the kinds that only held-out prompts have; otherwise as `plain`."""
    kinds = (UNFAMILIAR, UNFAMILIAR_HEADERS if headers else ())
    return _lines(w, w.between(low, high), kinds, indent=indent, avoid=avoid)


def indent_of(text: str, *, otherwise: str = "") -> str:
    """Give the indentation of the line that follows some lines."""
    lines = text.splitlines()
    if not lines:
        return otherwise
    own = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]
    return own + INDENT if lines[-1].endswith(":") else own


def _lines(
    w: Words,
    n: int,
    kinds: tuple[Sequence[Line], Sequence[Line]],
    *,
    indent: str,
    avoid: Collection[str],
) -> str:
    text = ""
    while n > 0:
        header = bool(kinds[1]) and w.chance(0.25)
        line = w.pick(kinds[header])(w)
        if not set(re.findall(r"\w+", line)).isdisjoint(avoid):
            continue
        text += f"{indent}{line}\n"
        indent += INDENT if header else ""
        n -= 1
    return text


def function_header(w: Words, *parameters: str) -> str:
    """Write the first line of a function."""
    return f"def {w.function()}({', '.join(parameters or w.names(w.between(1, 3)))}):\n"


def method_header(w: Words, *parameters: str) -> str:
    """Write the first lines of a class and a method."""
    given = ", ".join(["self", *(parameters or w.names(w.between(0, 2)))])
    return f"class {w.class_name()}:\n{INDENT}def {w.function()}({given}):\n"
