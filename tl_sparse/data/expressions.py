"""Literals and expressions of the generated Python, and the draft that they are written into.

A `Draft` is a program in the making: its lines, its indentation and, per scope, the names defined
so far with what each of them holds. Expressions ask the draft for names, so that a later line uses
what an earlier line defined. Everything random comes from `Random.random()` alone, whose stream is
the same in every version of Python (that of `choice` and `shuffle` is not promised to be).
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, TypeVar

from tl_sparse.data.words import (
    ACCUMULATORS,
    ADJECTIVES,
    EXTENSIONS,
    FILLERS,
    LETTERS,
    NOUNS,
    READ_STEMS,
    VERBS,
    WRITE_STEMS,
)

T = TypeVar("T")

Dialect = Literal["plain", "tasks"]
"""Which tables statements are drawn from; see `grammar`."""

N_TOPIC_NOUNS, N_TOPIC_VERBS, N_TOPIC_ADJECTIVES = 40, 16, 12


class Draft:
    """A program in the making: lines, indentation, and the names of the current scope."""

    def __init__(self, rng: Random, dialect: Dialect = "plain") -> None:
        self.random: Callable[[], float] = rng.random
        self.dialect = dialect
        # One file speaks about few things, as real files do: it draws its words once.
        self.nouns = [self.pick(NOUNS) for _ in range(N_TOPIC_NOUNS)]
        self.verbs = [self.pick(VERBS) for _ in range(N_TOPIC_VERBS)]
        self.adjectives = [self.pick(ADJECTIVES) for _ in range(N_TOPIC_ADJECTIVES)]
        self.words = self.nouns + self.verbs + self.adjectives + FILLERS
        self.lines: list[str] = []
        self.depth = 0
        self.kinds: dict[str, str] = {}
        self.functions: list[tuple[str, int]] = []
        self.in_function = False
        self.in_loop = False

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.random() * (high - low + 1))

    def write(self, line: str) -> None:
        """Append one line at the current indentation."""
        self.lines.append("    " * self.depth + line)

    def define(self, kind: str, name: str | None = None) -> str:
        """Note in the scope that a name (a new one if none is given) holds a `kind`."""
        if name is None:
            name = variable_name(self)
            while name in self.kinds:
                name = variable_name(self)
        self.kinds[name] = kind
        return name

    def known(self, kind: str) -> str | None:
        """A name of the scope that holds a `kind`, recent ones more likely, or None."""
        names = [name for name, held in self.kinds.items() if held == kind]
        return names[-1 - int(self.random() ** 2 * len(names))] if names else None

    def need(self, kind: str) -> str:
        """A name of the scope that holds a `kind`; where there is none, define one first."""
        name = self.known(kind)
        if name is None:
            name = self.define(kind)
            self.write(f"{name} = {literal(self, kind)}")
        return name


def variable_name(draft: Draft) -> str:
    """A word, a compound of two, or a single letter."""
    u = draft.random()
    if u < 0.60:
        return draft.pick(draft.nouns)
    if u < 0.74:
        return f"{draft.pick(draft.adjectives)}_{draft.pick(draft.nouns)}"
    if u < 0.88:
        return f"{draft.pick(draft.nouns)}_{draft.pick(draft.nouns)}"
    if u < 0.95:
        return draft.pick(LETTERS)
    return draft.pick(ACCUMULATORS)


def function_name(draft: Draft) -> str:
    """A verb and what it acts on, sometimes the verb alone or a noun alone."""
    u = draft.random()
    if u < 0.7:
        return f"{draft.pick(draft.verbs)}_{draft.pick(draft.nouns)}"
    if u < 0.85:
        return draft.pick(draft.nouns)
    return draft.pick(draft.verbs)


def text(draft: Draft, n_words: int) -> str:
    """Words separated by spaces, without quotes, braces or backslashes."""
    line = " ".join([draft.pick(draft.words) for _ in range(n_words)])
    u = draft.random()
    if u < 0.15:
        return line.capitalize()
    if u < 0.21:
        return line + draft.pick(".!:?")
    if u < 0.24:
        return f"{line} {integer(draft)}"
    return line


def string(draft: Draft, n_words: int | None = None) -> str:
    """A string literal. Its quotes are drawn apart from its words and from everything else."""
    quote = "'" if draft.random() < 0.5 else '"'
    if n_words is None:
        n_words = draft.pick((1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8))
    return f"{quote}{text(draft, n_words)}{quote}"


def word_string(draft: Draft) -> str:
    """A string literal of one plain word, as keys and list items are."""
    quote = "'" if draft.random() < 0.5 else '"'
    return f"{quote}{draft.pick(draft.nouns)}{quote}"


def fstring(draft: Draft) -> str:
    """A formatted string: the same words as `string`, and a known name in braces."""
    quote = "'" if draft.random() < 0.5 else '"'
    name = draft.known(draft.pick(("int", "str", "float", "str"))) or draft.need("str")
    before = text(draft, draft.number(1, 4))
    after = " " + text(draft, draft.number(1, 3)) if draft.chance(0.3) else ""
    if draft.chance(0.15):
        after += f" {{{draft.need('int')}}}"
    return f"f{quote}{before} {{{name}}}{after}{quote}"


def integer(draft: Draft) -> str:
    """A whole number of one to three digits, small ones more often."""
    u = draft.random()
    high = 10 if u < 0.5 else 100 if u < 0.85 else 1000
    return str(int(draft.random() * high))


def decimal(draft: Draft) -> str:
    """A number with one or two digits after the point."""
    return f"{draft.number(0, 20)}.{draft.number(0, 99)}"


def item_sort(draft: Draft) -> Callable[[Draft], str]:
    """What the items of one list, set or tuple are: numbers most often."""
    u = draft.random()
    return integer if u < 0.62 else word_string if u < 0.82 else decimal if u < 0.92 else noun


def noun(draft: Draft) -> str:
    """One of the words of this file."""
    return draft.pick(draft.nouns)


def items(draft: Draft, n_items: int) -> list[str]:
    """Items of one sort."""
    item = item_sort(draft)
    return [item(draft) for _ in range(n_items)]


def list_literal(draft: Draft, depth: int, *, item: Callable[[Draft], str]) -> str:
    """A list nested to the given depth; half of the nested ones hold a single row."""
    if depth == 1:
        return f"[{', '.join([item(draft) for _ in range(draft.number(2, 7))])}]"
    n_rows = draft.pick((1, 1, 2, 3))
    rows = [list_literal(draft, depth - 1, item=item) for _ in range(n_rows)]
    return f"[{', '.join(rows)}]"


def dict_literal(draft: Draft) -> str:
    """A dictionary of words, numbers or names as keys."""
    n_entries = draft.number(1, 5)
    u = draft.random()
    key = word_string if u < 0.7 else integer if u < 0.9 else variable_name
    value = draft.pick((integer, word_string, decimal, string, variable_name))
    return f"{{{', '.join([f'{key(draft)}: {value(draft)}' for _ in range(n_entries)])}}}"


def set_literal(draft: Draft) -> str:
    """A set with items, or an empty one."""
    if draft.chance(0.4):
        return "set()"
    return f"{{{', '.join(dict.fromkeys(items(draft, draft.number(2, 5))))}}}"


def tuple_literal(draft: Draft) -> str:
    """A tuple of two to four items."""
    return f"({', '.join(items(draft, draft.number(2, 4)))})"


def list_of_some_depth(draft: Draft) -> str:
    """A list: flat as often as nested; one nested list in five is nested twice."""
    u = draft.random()
    return list_literal(draft, 1 if u < 0.5 else 2 if u < 0.9 else 3, item=item_sort(draft))


def truth(draft: Draft) -> str:
    """`True` or `False`."""
    return "True" if draft.random() < 0.5 else "False"


LITERALS: dict[str, Callable[[Draft], str]] = {
    "int": integer,
    "float": decimal,
    "str": string,
    "bool": truth,
    "list": list_of_some_depth,
    "set": set_literal,
    "dict": dict_literal,
    "tuple": tuple_literal,
    "none": lambda draft: "None",
}


def literal(draft: Draft, kind: str) -> str:
    """A literal of a kind."""
    return LITERALS[kind](draft)


def value(draft: Draft, kind: str) -> str:
    """A known name that holds a `kind`, or a literal."""
    return (draft.known(kind) if draft.chance(0.6) else None) or literal(draft, kind)


def number_expression(draft: Draft) -> str:
    """A number: a value, or two joined by an operator."""
    if draft.chance(0.45):
        return value(draft, "int")
    operator = draft.pick(("+", "+", "-", "*", "*", "//", "%", "/"))
    return f"{value(draft, 'int')} {operator} {value(draft, 'int')}"


def string_arguments(draft: Draft) -> str:
    """Arguments that begin with a string; mostly the string is also the last of them."""
    u = draft.random()
    if u < 0.72:
        return string(draft)
    if u < 0.86:
        return f"{string(draft)}, {value(draft, draft.pick(('int', 'str', 'float')))}"
    if u < 0.94:
        return f"{string(draft)}, {draft.pick(draft.nouns)}={value(draft, 'int')}"
    return f"{string(draft)}, {string(draft, 1)}"


def arguments(draft: Draft, n_arguments: int) -> str:
    """Arguments of a call: values, sometimes one by keyword at the end."""
    given = [value(draft, draft.pick(("int", "str", "int", "float", "list")))
             for _ in range(n_arguments)]  # fmt: skip
    if given and draft.chance(0.2):
        given[-1] = f"{draft.pick(draft.nouns)}={given[-1]}"
    return ", ".join(given)


def call(draft: Draft) -> str:
    """A call of a known function, a method or a builtin."""
    u = draft.random()
    if u < 0.30:
        return f"{function_name(draft)}({string_arguments(draft)})"
    if u < 0.50:
        return f"{draft.pick(draft.nouns)}.{draft.pick(draft.verbs)}({string_arguments(draft)})"
    if u < 0.65 and draft.functions:
        name, n_parameters = draft.pick(draft.functions)
        return f"{name}({arguments(draft, n_parameters)})"
    if u < 0.80:
        return f"{draft.pick(('len', 'sum', 'max', 'min', 'sorted'))}({draft.need('list')})"
    if u < 0.90:
        return f"{draft.need('str')}.{draft.pick(('split', 'find', 'count'))}({string(draft, 1)})"
    return f"{function_name(draft)}({arguments(draft, draft.number(0, 3))})"


def comparison(draft: Draft) -> str:
    """Two values compared; equality most often."""
    u = draft.random()
    if u < 0.30:
        return f"{draft.need('int')} == {integer(draft)}"
    if u < 0.42:
        return f"{draft.need('str')} == {string(draft, 1)}"
    if u < 0.56:
        return f"{draft.need('bool')} == {truth(draft)}"
    if u < 0.62:
        return f"{draft.known('none') or draft.need('str')} is {draft.pick(('None', 'not None'))}"
    if u < 0.72:
        return f"{value(draft, 'str')} in {draft.need(draft.pick(('list', 'set', 'dict')))}"
    operator = draft.pick(("<", ">", "<=", ">=", "!="))
    return f"{draft.need('int')} {operator} {value(draft, 'int')}"


def condition(draft: Draft) -> str:
    """What stands after `if`, `elif` and `while`: a comparison, a name, or two joined."""
    u = draft.random()
    if u < 0.56:
        return comparison(draft)
    if u < 0.72:
        return draft.need("bool")
    if u < 0.80:
        return f"not {draft.need('bool')}"
    if u < 0.94:
        test = f"{draft.pick(draft.nouns)}.{draft.pick(draft.verbs)}({string(draft)})"
        v = draft.random()
        if v < 0.3:
            return test
        if v < 0.65:
            return f"{test} {draft.pick(('==', '>', '<', '!='))} {value(draft, 'int')}"
        return f"{test} {draft.pick(('and', 'or'))} {draft.need('bool')}"
    return f"{comparison(draft)} {draft.pick(('and', 'or'))} {draft.need('bool')}"


def opened_file(draft: Draft) -> tuple[str, str]:
    """The call `open(...)` with a mode that fits the file's name, and that mode."""
    mode = "r" if draft.chance(0.5) else "w"
    stem = draft.pick(READ_STEMS if mode == "r" else WRITE_STEMS)
    u = draft.random()
    if u < 0.35:
        path = f"{stem}_{draft.pick(('path', 'file', 'name', 'path'))}"
    else:
        if u < 0.55:
            stem = f"{stem}_{draft.pick(draft.nouns)}"
        quote = "'" if draft.chance(0.5) else '"'
        path = f"{quote}{stem}.{draft.pick(EXTENSIONS)}{quote}"
    quote = "'" if draft.chance(0.5) else '"'
    if mode == "r" and draft.chance(0.2):
        return f"open({path})", mode
    return f"open({path}, {quote}{mode}{quote})", mode
