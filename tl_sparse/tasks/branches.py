r"""else_elif, if_ternary, if_equals, var_if, while_return_true: what follows a condition.

else_elif (answers `:\n` and the name that the first condition asks about):

    if width > 3:                   if width > 3:
        size = 4                        size = 4
    else                            elif
    -> :\n                          ->  width

if_ternary (answers `:\n` and ` else`; the prompts differ in one newline against one space):

    size = load(rows)               size = load(rows) if width > 3
    if width > 3
    -> :\n                          ->  else

if_equals (answers ` ==` and ` =`; the prompts differ in `if`, so they are not of one length):

    if width                        width
    ->  ==                          ->  =

var_if (answers `:\n` and a newline; the prompts differ in `if` and `==` against `=`):

    if width == True                width = True
    -> :\n                          -> \n

while_return_true (answers `:\n` and a newline; the prompts differ only in the keyword):

    def load(rows):                 def load(rows):
        while True                      return True
    -> :\n                          -> \n
"""

from tl_sparse.tasks.contexts import (
    INDENT,
    function_header,
    indent_of,
    method_header,
    plain,
    unfamiliar,
)
from tl_sparse.tasks.templates import Answers, PairSpec, Sides
from tl_sparse.tasks.words import COPYABLE, Words


def _test(w: Words) -> str:
    """A condition that ends in a word or a number."""
    return w.pick((
        f"{w.name()} {w.pick(('>', '<', '==', '!='))} {w.number()}",
        f"not {w.name()}",
        w.name(),
        f"{w.name()} in {w.name()}",
    ))  # fmt: skip


def _branch(w: Words, before: str, test: str, body: str) -> Sides:
    """An `if` about a name that can be asked for, its body, and the next branch's keyword."""
    indent, name = indent_of(before), w.copied(1)[0]
    lines = f"{before}{indent}if {name}{test}:\n{body.replace('<indent>', indent + INDENT)}"
    return Sides((f"{lines}{indent}else", f"{lines}{indent}elif"), {"name": name})


def _else(w: Words) -> Sides:
    test = f" {w.pick(('>', '<', '==', '!='))} {w.number()}"
    return _branch(w, plain(w, 0, 2), test, f"<indent>{w.name()} = {w.number()}\n")


def _else_behind_a_return(w: Words) -> Sides:
    before = function_header(w)
    before += unfamiliar(w, 0, 1, indent=INDENT, headers=False)
    return _branch(w, before, f".{w.function()}()", f"<indent>return {w.name()}\n")


def _else_behind_more_lines(w: Words) -> Sides:
    body = f"<indent>{w.callee()}({w.name()})\n<indent>del {w.name()}\n"
    return _branch(w, unfamiliar(w), f" is {w.name()}", body)


ELSE_ELIF = PairSpec(
    name="else_elif",
    decides="end the line behind `else`, ask again behind `elif`",
    differ="the keyword",
    answers=(
        Answers(":\n", " <name>"), Answers(":", " <name>"), Answers(":", " "),
    ),
    templates=(_else,),
    held_out=(_else_behind_a_return, _else_behind_more_lines),
    copies=COPYABLE,
)  # fmt: skip


def _value(w: Words) -> str:
    """A value that ends in a bracket."""
    return w.pick((
        f"{w.callee()}({w.name()})",
        f"[{w.number()}, {w.number()}]",
        f"{w.name()}[{w.number()}]",
        f"({w.name()}, {w.name()})",
    ))  # fmt: skip


def _ternary(before: str, start: str, test: str) -> Sides:
    return Sides((f"{before}{start}\nif {test}", f"{before}{start} if {test}"))


def _assigned_ternary(w: Words) -> Sides:
    return _ternary(plain(w, headers=False), f"{w.name()} = {_value(w)}", _test(w))


def _grown_ternary(w: Words) -> Sides:
    before = unfamiliar(w, 1, 2, headers=False)
    return _ternary(before, f"{w.name()} += {_value(w)}", _test(w))


def _ternary_of_an_attribute(w: Words) -> Sides:
    before = plain(w, 1, 2, headers=False)
    return _ternary(before, f"{w.name()}.{w.name()} = {_value(w)}", f"{w.name()}.{w.name()}")


IF_TERNARY = PairSpec(
    name="if_ternary",
    decides="end the line behind an `if` of its own, go on with `else` inside an expression",
    differ="one newline against one space before `if`",
    answers=(Answers(":\n", " else"), Answers(":", " else"), Answers(":", " ")),
    templates=(_assigned_ternary,),
    held_out=(_grown_ternary, _ternary_of_an_attribute),
)


def _after(before: str, a: str, b: str) -> Sides:
    indent = indent_of(before)
    return Sides((f"{before}{indent}{a}", f"{before}{indent}{b}"))


def _if(w: Words) -> Sides:
    name = w.name()
    return _after(plain(w), f"if {name}", name)


def _other_tests(w: Words) -> Sides:
    name = w.name()
    return _after(unfamiliar(w), f"{w.pick(('while', 'assert'))} {name}", name)


def _if_elsewhere(w: Words) -> Sides:
    name = w.name()
    return _after(unfamiliar(w), f"if {name}", name)


IF_EQUALS = PairSpec(
    name="if_equals",
    decides="compare behind `if`, assign at the beginning of a line",
    differ="`if`, which side B does not have",
    answers=(Answers(" ==", " ="), Answers("==", "=", tail=" "), Answers("=", " ", tail=" =")),
    templates=(_if,),
    held_out=(_other_tests, _if_elsewhere),
    aligned=False,
)


def _compared(w: Words) -> Sides:
    name, value = w.name(), w.pick(("True", "False"))
    return _after(plain(w), f"if {name} == {value}", f"{name} = {value}")


def _compared_elsewhere(w: Words) -> Sides:
    name, value = w.name(), w.pick(("True", "False"))
    return _after(unfamiliar(w), f"if {name} == {value}", f"{name} = {value}")


def _compared_in_a_loop(w: Words) -> Sides:
    name, value = w.name(), w.pick(("True", "False"))
    return _after(unfamiliar(w), f"while {name} == {value}", f"{name} = {value}")


VAR_IF = PairSpec(
    name="var_if",
    decides="end a comparison behind `if` with a colon, an assignment without",
    differ="`if` and `==` against `=`",
    answers=(Answers(":\n", "\n"), Answers(":", "\n")),
    templates=(_compared,),
    held_out=(_compared_elsewhere, _compared_in_a_loop),
    aligned=False,
)


def _while_true(w: Words) -> Sides:
    before = function_header(w)
    return _after(before + plain(w, 1, 3, indent=INDENT), "while True", "return True")


def _while_true_in_a_method(w: Words) -> Sides:
    before = method_header(w)
    return _after(before + plain(w, 0, 2, indent=INDENT * 2), "while True", "return True")


def _while_true_elsewhere(w: Words) -> Sides:
    before = function_header(w)
    return _after(before + unfamiliar(w, 1, 3, indent=INDENT), "while True", "return True")


WHILE_RETURN_TRUE = PairSpec(
    name="while_return_true",
    decides="end `while True` with a colon, `return True` without",
    differ="the keyword",
    answers=(Answers(":\n", "\n"), Answers(":", "\n")),
    templates=(_while_true,),
    held_out=(_while_true_in_a_method, _while_true_elsewhere),
)
