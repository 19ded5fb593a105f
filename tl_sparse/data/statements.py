"""Statements of the generated Python that have no body: one function each, which writes its lines.

A statement first builds all its expressions and only then writes its own line, because an
expression may have to define a name first, on a line before it.
"""

from tl_sparse.data.expressions import (
    Draft,
    call,
    condition,
    fstring,
    function_name,
    integer,
    list_of_some_depth,
    literal,
    number_expression,
    opened_file,
    string,
    string_arguments,
    text,
    truth,
    value,
    variable_name,
)


def assign(draft: Draft) -> None:
    """Assign a literal to a new name, sometimes to one that held such a thing already."""
    kind = draft.pick(("int", "int", "str", "str", "float", "list", "list", "dict", "tuple", "set"))
    name = draft.known(kind) if draft.chance(0.15) else None
    right = literal(draft, kind)
    draft.write(f"{name or draft.define(kind)} = {right}")


def assign_list(draft: Draft) -> None:
    """Assign a list, flat or nested."""
    right = list_of_some_depth(draft)
    draft.write(f"{draft.define('list')} = {right}")


def assign_truth(draft: Draft) -> None:
    """Assign `True` or `False`."""
    name = draft.known("bool") if draft.chance(0.4) else None
    draft.write(f"{name or draft.define('bool')} = {truth(draft)}")


def assign_none(draft: Draft) -> None:
    """Assign `None`."""
    draft.write(f"{draft.define('none')} = None")


def assign_number(draft: Draft) -> None:
    """Assign a number or a sum, product ... of two."""
    right = number_expression(draft)
    draft.write(f"{draft.define('int')} = {right}")


def print_something(draft: Draft) -> None:
    """Print a string, a formatted string or a value, perhaps with a comment behind."""
    u = draft.random()
    if u < 0.6:
        arguments = string_arguments(draft)
    elif u < 0.85:
        arguments = fstring(draft)
    else:
        arguments = value(draft, draft.pick(("int", "str", "list", "dict")))
    line = f"print({arguments})"
    draft.write(line if draft.chance(0.7) else f"{line}  # {text(draft, draft.number(2, 5))}")


def call_something(draft: Draft) -> None:
    """Call something for its effect, perhaps under a condition or with a comment behind."""
    line = call(draft)
    u = draft.random()
    if u < 0.2:
        line = f"{line}  # {text(draft, draft.number(2, 5))}"
    elif u < 0.3:
        line = f"{line} {draft.pick(('and', 'or'))} {call(draft)}"
    draft.write(line)


def call_in_expression(draft: Draft) -> str:
    """A call, mostly with an operator, an alternative or a comment behind it."""
    left, u = call(draft), draft.random()
    if u < 0.35:
        return left
    if u < 0.55:
        return f"{left} {draft.pick(('+', '-', '*', '==', '+', '!='))} {value(draft, 'int')}"
    if u < 0.70:
        return f"{left} {draft.pick(('or', 'and'))} {value(draft, 'str')}"
    if u < 0.85:
        return f"{left} if {condition(draft)} else {literal(draft, 'int')}"
    return f"{left}  # {text(draft, draft.number(2, 5))}"


def assign_call(draft: Draft) -> None:
    """Assign the result of a call, or of an expression that begins with one."""
    right = call_in_expression(draft)
    draft.write(f"{draft.define(draft.pick(('int', 'str', 'object')))} = {right}")


def assign_fstring(draft: Draft) -> None:
    """Assign a formatted or a plain string."""
    right = fstring(draft) if draft.chance(0.6) else string(draft)
    draft.write(f"{draft.define('str')} = {right}")


def swap(draft: Draft) -> None:
    """Swap two names, perhaps right after defining both."""
    kind = draft.pick(("int", "str", "list"))
    first = draft.need(kind) if draft.chance(0.5) else variable_name(draft)
    second = variable_name(draft)
    while second == first:
        second = variable_name(draft)
    if draft.chance(0.4):
        draft.write(f"{first}, {second} = {literal(draft, kind)}, {literal(draft, kind)}")
    draft.write(f"{first}, {second} = {second}, {first}")


def assign_ternary(draft: Draft) -> None:
    """Assign one value or another, by a condition."""
    kind = draft.pick(("int", "str", "float"))
    left, test, right = literal(draft, kind), condition(draft), literal(draft, kind)
    if draft.chance(0.25):
        left = f"{draft.pick(draft.verbs)}({string(draft)})"
    draft.write(f"{draft.define(kind)} = {left} if {test} else {right}")


def assign_lambda(draft: Draft) -> None:
    """Write a `lambda`, named or as a sorting key."""
    parameter = variable_name(draft)
    u = draft.random()
    if u < 0.6:
        result = f"{parameter} {draft.pick('+-*')} {integer(draft)}"
    elif u < 0.8:
        result = f"{parameter}.{draft.pick(draft.nouns)}"
    else:
        result = f"{parameter}[{integer(draft)}]"
    if draft.chance(0.2):
        draft.write(f"{draft.need('list')}.sort(key=lambda {parameter}: {result})")
    else:
        name = function_name(draft)
        draft.functions.append((name, 1))
        draft.write(f"{name} = lambda {parameter}: {result}")


def open_file(draft: Draft) -> None:
    """Open a file by plain assignment, use it, perhaps close it."""
    opened, mode = opened_file(draft)
    handle = draft.pick(("f", "f", "file", "handle", "stream", draft.pick(draft.nouns)))
    draft.write(f"{handle} = {opened}")
    draft.write(use_of_file(draft, handle, mode))
    if draft.chance(0.6):
        draft.write(f"{handle}.close()")


def use_of_file(draft: Draft, handle: str, mode: str) -> str:
    """A line that reads from a file open for reading, or writes to one open for writing."""
    if mode == "r":
        reader = draft.pick(("read", "read", "readlines", "readline"))
        return f"{draft.define('list' if reader == 'readlines' else 'str')} = {handle}.{reader}()"
    written = value(draft, "str") if draft.chance(0.6) else fstring(draft)
    return f"{handle}.write({written})"


def growth(draft: Draft, name: str, *, kind: str, item: str | None) -> str:
    """A line that adds to a set, string, list, dictionary or number."""
    if kind == "set":
        return f"{name}.add({item or value(draft, draft.pick(('int', 'str')))})"
    if kind == "str":
        return f"{name} += {item or value(draft, 'str')}"
    if kind == "list":
        return f"{name}.append({item or value(draft, draft.pick(('int', 'str')))})"
    if kind == "dict":
        return f"{name}[{item or string(draft, 1)}] = {value(draft, 'int')}"
    return f"{name} {draft.pick(('+=', '+=', '-=', '*='))} {item or value(draft, 'int')}"


def grow_something(draft: Draft) -> None:
    """Add to a known set, string, list, dictionary or number."""
    kind = draft.pick(("set", "set", "str", "str", "list", "dict", "int"))
    name = draft.need(kind)
    draft.write(growth(draft, name, kind=kind, item=None))


def comment(draft: Draft) -> None:
    """Write a comment and the line it belongs to: alone it would be no body."""
    following = draft.pick((assign, print_something, call_something, grow_something))
    draft.write(f"# {text(draft, draft.number(2, 8))}")
    following(draft)


def assign_comprehension(draft: Draft) -> None:
    """Assign a list comprehension over a known list."""
    name, source = variable_name(draft), draft.need("list")
    tail = (
        f" if {name} {draft.pick(('>', '<', '!='))} {integer(draft)}" if draft.chance(0.4) else ""
    )
    draft.write(
        f"{draft.define('list')} = [{name} * {integer(draft)} for {name} in {source}{tail}]"
    )


def leave(draft: Draft) -> None:
    """Write `return`, `break` or `continue` where it may stand, else another statement."""
    if draft.in_loop and draft.chance(0.6):
        draft.write(draft.pick(("break", "continue")))
    elif draft.in_function:
        return_something(draft)
    else:
        assign(draft)


def return_something(draft: Draft) -> None:
    """Write a `return`."""
    u = draft.random()
    if u < 0.25:
        result = truth(draft)
    elif u < 0.5:
        result = value(draft, draft.pick(("int", "str", "list", "set", "dict")))
    elif u < 0.75:
        result = call_in_expression(draft)
    elif u < 0.9:
        result = number_expression(draft)
    else:
        result = string(draft)
    draft.write(f"return {result}")
