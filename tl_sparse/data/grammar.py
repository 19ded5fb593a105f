"""Simple Python of our own, from a grammar: repetitive in its forms, varied in its words.

Small models learn few of the paper's tasks from real code alone (arXiv 2511.13653 trains on a
mixture, half of it simple and synthetic). A program is made in three steps:

1. draw a length, and perhaps a docstring and imports;
2. until that length is reached, write a block: statements, a function, or a class. A statement is
   drawn from a weighted table; those with a body (`for`, `if`, `with` ...) draw statements again,
   one level deeper. Each scope remembers what its names hold, so a set gets `.add`, a string `+=`;
3. join the lines.

Every program parses. What a construct needs next can be read from its syntax only: the closing
quote from the opening one, `.add` from `set()`, `]]` from `[[`.

The dialect `"plain"` is the default. `"tasks"` has more of the constructs that a small model does
not learn from it (`constructs`): it gains on some of the paper's tasks and loses on
others, whose share of the text is smaller.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random
from typing import get_args

from tl_sparse.data import constructs, statements
from tl_sparse.data.expressions import (
    Dialect,
    Draft,
    comparison,
    condition,
    function_name,
    integer,
    literal,
    opened_file,
    text,
    value,
    variable_name,
)
from tl_sparse.data.words import ACCUMULATORS, EXCEPTIONS, IMPORTED_NAMES, MODULES

Statement = Callable[[Draft], None]


def generate_program(rng: Random, *, dialect: Dialect = "plain") -> str:
    """Write one small Python file, about 300 to 2,500 characters long.

    Args:
        rng: Where all choices come from. Only its `random()` is called.
        dialect: `"tasks"` for more of what the paper's tasks ask about.

    Returns:
        Source text that `ast.parse` accepts, with a newline at its end.

    Examples:
        >>> import ast, random
        >>> program = generate_program(random.Random("doc"))
        >>> isinstance(ast.parse(program), ast.Module)
        True
    """
    draft = Draft(rng, dialect)
    length = 300 + int(1500 * draft.random())
    _opening(draft)
    while sum(map(len, draft.lines)) < length:
        u = draft.random()
        if u < 0.30:
            _function(draft)
        elif u < 0.45:
            _class(draft)
        else:
            _write_statements(draft, draft.number(3, 7))
        if draft.chance(0.7):
            draft.lines.append("")
    return "\n".join(draft.lines).strip("\n") + "\n"


def generate_programs(n_programs: int, *, seed: int, dialect: Dialect = "plain") -> Iterator[str]:
    """Write programs, the same ones for the same seed on any machine.

    Program `i` depends on the seed and on `i` only, so a longer stream begins with the shorter one.

    Args:
        n_programs: How many.
        seed: Any whole number.
        dialect: See `generate_program`.

    Yields:
        One program after the other; see `generate_program`.

    Raises:
        ValueError: `n_programs` is negative, or there is no such dialect.

    Examples:
        >>> list(generate_programs(2, seed=0)) == list(generate_programs(3, seed=0))[:2]
        True
    """
    if n_programs < 0:
        raise ValueError(f"n_programs is a count, 0 or more, got {n_programs}.")
    if dialect not in get_args(Dialect):
        raise ValueError(f"A dialect is one of {', '.join(get_args(Dialect))}, got {dialect!r}.")
    return (
        generate_program(Random(f"tl_sparse {seed} {index}"), dialect=dialect)
        for index in range(n_programs)
    )


def _opening(draft: Draft) -> None:
    """Write what stands at the top of a file: docstring, imports, or nothing."""
    if draft.chance(0.25):
        draft.write(f'"""{text(draft, draft.number(2, 7)).capitalize()}"""')
    if draft.chance(0.35):
        for _ in range(draft.number(1, 3)):
            if draft.chance(0.6):
                draft.write(f"import {draft.pick(MODULES)}")
            else:
                draft.write("from {} import {}".format(*draft.pick(IMPORTED_NAMES)))
        draft.lines.append("")


def _write_statements(draft: Draft, n_statements: int) -> None:
    """Write statements; below the second level only those without a body."""
    table, totals = (PLAIN, _PLAIN_TOTALS)
    if draft.depth < 3:
        table, totals = (ALL, _ALL_TOTALS) if draft.dialect == "plain" else (DENSE, _DENSE_TOTALS)
    for _ in range(n_statements):
        table[bisect_right(totals, draft.random() * totals[-1])][1](draft)


def _body(draft: Draft, n_statements: int) -> None:
    """Write statements one level deeper."""
    draft.depth += 1
    _write_statements(draft, n_statements)
    draft.depth -= 1


def _loop_body(draft: Draft, first: str | None = None) -> None:
    """Write the body of a loop, which may begin with a given line and end in `break`."""
    outer, draft.in_loop = draft.in_loop, True
    draft.depth += 1
    if first is not None:
        draft.write(first)
    _write_statements(draft, draft.number(0 if first else 1, 2))
    draft.depth -= 1
    draft.in_loop = outer


# Statements with a body -------------------------------------------------------------------------


def _accumulate(draft: Draft) -> None:
    """Write an empty set, string, list or number, then lines that add to it."""
    kind = draft.pick(("set", "set", "str", "str", "list", "int", "dict"))
    empty = {
        "set": "set()",
        "str": draft.pick(('""', "''")),
        "list": "[]",
        "int": "0",
        "dict": "{}",
    }
    source = draft.need("list") if draft.chance(0.7) else draft.pick(draft.nouns) + "s"
    u = draft.random()
    name = "current" if u < 0.3 else draft.pick(ACCUMULATORS) if u < 0.7 else variable_name(draft)
    draft.write(f"{draft.define(kind, name)} = {empty[kind]}")
    if draft.chance(0.3):
        draft.write(f"{draft.define('int')} = {integer(draft)}")
    item = variable_name(draft)
    while item in (name, source):
        item = variable_name(draft)
    draft.write(f"for {item} in {source}:")
    _loop_body(draft, first=statements.growth(draft, name, kind=kind, item=item))
    if draft.chance(0.3):
        draft.write(statements.growth(draft, name, kind=kind, item=None))


def _for(draft: Draft) -> None:
    """Write a loop: over a range, an enumeration, items of a dictionary, or a collection."""
    u = draft.random()
    if u < 0.36:
        source = draft.need("list") if draft.chance(0.3) else None
        bound = f"len({source})" if source else value(draft, "int")
        index = _index(draft, bound)
        draft.write(f"for {index} in range({bound}):")
    elif u < 0.68:
        source = draft.need("list")
        index = _index(draft, source)
        draft.write(f"for {index}, {draft.define('str')} in enumerate({source}):")
    elif u < 0.8:
        source = draft.need("dict")
        draft.write(f"for {draft.define('str')}, {draft.define('int')} in {source}.items():")
    else:
        source = draft.need(draft.pick(("list", "set")))
        draft.write(f"for {draft.define(draft.pick(('int', 'str')))} in {source}:")
    _loop_body(draft)


def _index(draft: Draft, source: str) -> str:
    """Define a loop counter that is not the name the loop runs over."""
    name = source
    while name == source:
        name = draft.pick(("i", "j", "k", variable_name(draft)))
    return draft.define("int", name)


def _while(draft: Draft) -> None:
    """Write a `while` loop: endless and left by `break`, or on a name or a comparison."""
    u = draft.random()
    if u < 0.3:
        draft.write("while True:")
        _loop_body(draft)
        draft.lines.append("    " * (draft.depth + 1) + f"if {variable_name(draft)}:")
        draft.lines.append("    " * (draft.depth + 2) + "break")
        return
    test = draft.need(draft.pick(("bool", "list", "int"))) if u < 0.7 else comparison(draft)
    draft.write(f"while {test}:")
    _loop_body(draft)


def _if(draft: Draft) -> None:
    """Write `if`, perhaps with `elif` and `else`."""
    test = condition(draft)
    draft.write(f"if {test}:")
    _body(draft, draft.number(1, 2))
    for _ in range(draft.pick((0, 0, 0, 1, 2))):
        # Not `need`: it would write a line between the branches.
        known = draft.known("int") or draft.pick(draft.nouns)
        draft.write(f"elif {known} {draft.pick(('==', '>', '<', '!='))} {integer(draft)}:")
        _body(draft, 1)
    if draft.chance(0.45):
        draft.write("else:")
        _body(draft, draft.number(1, 2))


def _with(draft: Draft) -> None:
    """Open a file by `with` and use it."""
    opened, mode = opened_file(draft)
    handle = draft.pick(("f", "f", "file", "handle", "stream", draft.pick(draft.nouns)))
    if mode == "w":
        draft.need("str")
    draft.write(f"with {opened} as {handle}:")
    draft.depth += 1
    draft.write(statements.use_of_file(draft, handle, mode))
    draft.depth -= 1


def _try(draft: Draft) -> None:
    """Write `try` and `except`."""
    draft.write("try:")
    _body(draft, draft.number(1, 2))
    draft.write(f"except {draft.pick(EXCEPTIONS)}:")
    _body(draft, 1)


# Functions and classes --------------------------------------------------------------------------


def _parameters(draft: Draft, n_parameters: int) -> list[str]:
    """Define parameters; from some point on, or from nowhere on, all have a default."""
    first_default = draft.number(0, n_parameters) if draft.chance(0.5) else n_parameters
    parameters = []
    for position in range(n_parameters):
        kind = draft.pick(("int", "str", "list", "int", "bool", "dict"))
        default = ""
        if position >= first_default:
            default = (
                "=None" if draft.chance(0.75) else f"={literal(draft, draft.pick(DEFAULT_KINDS))}"
            )
        parameters.append(draft.define(kind) + default)
    return parameters


def _function(draft: Draft) -> None:
    """Write a function with a scope of its own."""
    outer, draft.kinds = draft.kinds, {}
    name, parameters = function_name(draft), _parameters(draft, draft.number(0, 4))
    draft.write(f"def {name}({', '.join(parameters)}):")
    _function_body(draft, draft.number(1, 4))
    draft.kinds = outer
    draft.functions.append((name, len(parameters)))


def _function_body(draft: Draft, n_statements: int) -> None:
    """Write statements inside a function, mostly with a `return` at the end."""
    draft.depth += 1
    outer, draft.in_function, draft.in_loop = draft.in_function, True, False
    if draft.chance(0.2):
        draft.write(f'"""{text(draft, draft.number(2, 6)).capitalize()}"""')
    _write_statements(draft, n_statements)
    if draft.chance(0.75):
        statements.return_something(draft)
    draft.in_function = outer
    draft.depth -= 1


def _class(draft: Draft) -> None:
    """Write a class: `__init__` that stores its parameters, and perhaps methods."""
    outer, draft.kinds = draft.kinds, {}
    words = draft.pick(draft.nouns), draft.pick(draft.nouns)
    base = f"({draft.pick(draft.nouns).capitalize()})" if draft.chance(0.25) else ""
    draft.write(f"class {''.join(map(str.capitalize, words[: draft.number(1, 2)]))}{base}:")
    parameters = _parameters(draft, draft.number(1, 5))
    attributes = [parameter.partition("=")[0] for parameter in parameters]
    draft.depth = 1
    draft.write(f"def __init__(self, {', '.join(parameters)}):")
    draft.depth = 2
    for attribute in attributes:
        draft.write(f"self.{attribute} = {attribute}")
    if draft.chance(0.3):
        draft.write(f"self.{draft.pick(draft.nouns)} = {draft.pick(EMPTY)}")
    draft.depth = 1
    for _ in range(draft.pick((0, 1, 1, 2))):
        _method(draft, attributes)
    draft.depth = 0
    draft.kinds = outer


def _method(draft: Draft, attributes: list[str]) -> None:
    """Write a method that sets or returns attributes, or does something else."""
    draft.lines.append("")
    draft.kinds = {}
    parameters = ["self", *_parameters(draft, draft.number(0, 2))]
    draft.write(f"def {function_name(draft)}({', '.join(parameters)}):")
    attribute = draft.pick(attributes)
    draft.depth += 1
    u = draft.random()
    if u < 0.3:
        draft.write(f"return self.{attribute}")
    elif u < 0.55:
        draft.write(f"self.{attribute} = {value(draft, draft.pick(DEFAULT_KINDS))}")
    elif u < 0.75:
        draft.write(f"self.{attribute} += {integer(draft)}")
        draft.write(f"return self.{attribute}")
    draft.depth -= 1
    if u >= 0.75:
        _function_body(draft, draft.number(1, 3))


DEFAULT_KINDS = ("int", "str", "bool")

EMPTY = ("None", "0", "[]", "{}", "set()", "True", "False", '""', "''")

PLAIN: list[tuple[int, Statement]] = [
    (12, statements.assign),
    (6, statements.assign_list),
    (4, statements.assign_truth),
    (1, statements.assign_none),
    (4, statements.assign_number),
    (13, statements.print_something),
    (8, statements.call_something),
    (7, statements.assign_call),
    (4, statements.assign_fstring),
    (5, statements.swap),
    (4, statements.assign_ternary),
    (4, statements.assign_lambda),
    (4, statements.open_file),
    (8, statements.grow_something),
    (2, statements.comment),
    (2, statements.assign_comprehension),
    (3, statements.leave),
]
"""Statements without a body, with their weights."""

ALL: list[tuple[int, Statement]] = [
    *PLAIN,
    (9, _accumulate),
    (12, _for),
    (6, _while),
    (11, _if),
    (6, _with),
    (1, _try),
]
"""All statements, with their weights."""

DENSE: list[tuple[int, Statement]] = [
    *ALL,
    (34, _for),
    (10, _while),
    (10, statements.assign_lambda),
    (24, constructs.grow),
    (14, constructs.store_items),
    (14, constructs.choose_value),
    (8, constructs.compare_again),
    (10, constructs.exchange),
    (24, constructs.use_file),
    (8, constructs.format_text),
    (5, constructs.choose_parameter),
    (4, constructs.list_words_again),
]
"""All statements of the dialect `"tasks"`, with their weights."""

_PLAIN_TOTALS = list(accumulate(weight for weight, _ in PLAIN))
_ALL_TOTALS = list(accumulate(weight for weight, _ in ALL))
_DENSE_TOTALS = list(accumulate(weight for weight, _ in DENSE))
