"""Constructs of the dialect `"tasks"`: more of what the paper's tasks ask about.

Most stand in the plain dialect too, too seldom for a small model to learn from a few million
tokens. As there, nothing but the syntax tells what comes next: the two sides of a task are drawn
with equal chances from the same words.
"""

from tl_sparse.data.expressions import (
    Draft,
    call,
    decimal,
    function_name,
    integer,
    literal,
    opened_file,
    text,
    value,
    variable_name,
)
from tl_sparse.data.statements import assign_number, growth, print_something, use_of_file


def _names(draft: Draft, n: int) -> list[str]:
    """Different names that are not defined yet."""
    names: list[str] = []
    while len(names) < n:
        name = variable_name(draft)
        if name not in names and name not in draft.kinds:
            names.append(name)
    return names


def _test(draft: Draft, name: str) -> str:
    """A condition on a name."""
    return f"{name} {draft.pick(('==', '>', '<', '!='))} {integer(draft)}"


def grow(draft: Draft) -> None:
    """Write an empty set or string, perhaps other lines, and a loop that adds to it."""
    kind = draft.pick(("set", "str"))
    name, item, source = _names(draft, 3)
    if draft.chance(0.4):
        name = "current"
    empty = "set()" if kind == "set" else draft.pick(('""', "''"))
    draft.write(f"{draft.define(kind, name)} = {empty}")
    for _ in range(draft.pick((0, 0, 1, 2))):
        assign_number(draft)
    draft.write(f"for {item} in {source}:")
    draft.depth += 1
    if guarded := draft.chance(0.3):
        draft.write(f"if {_test(draft, item)}:")
    draft.depth += guarded
    draft.write(growth(draft, name, kind=kind, item=item))
    draft.depth -= 1 + guarded


def store_items(draft: Draft) -> None:
    """Write a dictionary or a list of the same items, which are numbers or names."""
    item = draft.pick((integer, integer, decimal, variable_name))
    n = draft.number(1, 4)
    if draft.chance(0.5):
        right = f"{{{', '.join(f'{item(draft)}: {integer(draft)}' for _ in range(n))}}}"
        draft.write(f"{draft.define('dict')} = {right}")
    else:
        right = f"[{', '.join(item(draft) for _ in range(2 * n))}]"
        draft.write(f"{draft.define('list')} = {right}")


def choose_value(draft: Draft) -> None:
    """Write a value with an `if` behind it, in the same line or in the next."""
    kind = draft.pick(("int", "str"))
    right = draft.pick((
        call(draft),
        f"[{integer(draft)}, {integer(draft)}]",
        f"{variable_name(draft)}[{integer(draft)}]",
    ))  # fmt: skip
    test = _test(draft, variable_name(draft)) if draft.chance(0.6) else variable_name(draft)
    if draft.chance(0.5):
        other = literal(draft, kind)
        draft.write(f"{draft.define(kind)} = {right} if {test} else {other}")
        return
    draft.write(f"{draft.define(kind)} = {right}")
    draft.write(f"if {test}:")
    draft.depth += 1
    print_something(draft)
    draft.depth -= 1


def compare_again(draft: Draft) -> None:
    """Write `if` and `elif` on one name, and `else`."""
    name = draft.need("int")
    draft.write(f"if {_test(draft, name)}:")
    branches = [f"elif {_test(draft, name)}:"] * draft.number(0, 2)
    for branch in (*branches, *(["else:"] * draft.chance(0.6))):
        draft.write(f"    {draft.pick(draft.nouns)} = {integer(draft)}")
        draft.write(branch)
    draft.write(f"    {draft.pick(draft.nouns)} = {integer(draft)}")


def exchange(draft: Draft) -> None:
    """Define two names and swap them."""
    kind = draft.pick(("int", "str", "list"))
    first, second = _names(draft, 2)
    for name in (first, second):
        if draft.chance(0.5):
            draft.write(f"{name} = {literal(draft, kind)}")
    draft.write(f"{first}, {second} = {second}, {first}")


def use_file(draft: Draft) -> None:
    """Open a file, half of the time by `with`."""
    opened, mode = opened_file(draft)
    handle = draft.pick(("f", "file", draft.pick(draft.nouns), draft.pick(draft.nouns)))
    if mode == "w":
        draft.need("str")
    by_with = draft.chance(0.5)
    draft.write(f"with {opened} as {handle}:" if by_with else f"{handle} = {opened}")
    draft.depth += by_with
    draft.write(use_of_file(draft, handle, mode))
    draft.depth -= by_with


def format_text(draft: Draft) -> None:
    """Print a formatted string, or the same words with a brace that inserts nothing."""
    words, name = text(draft, draft.number(1, 4)), draft.need("int")
    u = draft.random()
    if u < 0.5:
        draft.write(f'print(f"{words} {{{name}}}")')
    elif u < 0.9:
        draft.write(f'print("{words}")')
    else:
        draft.write(f'print("{words} {{{name}}} {text(draft, 1)}")')


def choose_parameter(draft: Draft) -> None:
    """Write a function that gives one of its two parameters for the other."""
    names = _names(draft, 2)
    asked, given = names if draft.chance(0.5) else names[::-1]
    default = draft.pick(("", "=None"))
    draft.write(f"def {function_name(draft)}({f'{default}, '.join(names)}{default}):")
    draft.depth += 1
    test = "is None" if draft.chance(0.5) else f"== {integer(draft)}"
    draft.write(f"if {asked} {test}:")
    draft.write(f"    return {given}")
    draft.write(f"return {value(draft, 'int') if draft.chance(0.3) else asked}")
    draft.depth -= 1


def list_words_again(draft: Draft) -> None:
    """Write a comment of words that come twice in the same order, and a line it belongs to."""
    words = [draft.pick(draft.nouns) for _ in range(draft.number(3, 7))]
    start = draft.number(0, len(words) - 2)
    draft.write(f"# {' '.join([*words, *words[start:]])}")
    assign_number(draft)
