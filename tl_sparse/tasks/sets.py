r"""set_or_string and set_or_string_fixedvarname: what a variable was made to hold.

One pair, as an example (the paper's Table 1; answers `.add` and ` +=`):

    seen = set()                    seen = ""
    total = 4                       total = 4
    for item in rows:               for item in rows:
        seen                            seen
    -> .add                         ->  +=

The prompts differ only in the initialiser, `set()` against `""` or `''`. Whether these have equally
many tokens is the tokenizer's choice. In the second task the variable is always `current`, so that
the name can't tell. Held-out prompts grow it in a `while` loop, behind a condition, or at once.
"""

from collections.abc import Callable

from tl_sparse.tasks.contexts import INDENT, indent_of, plain, unfamiliar
from tl_sparse.tasks.templates import Answers, PairSpec, Sides, Template
from tl_sparse.tasks.words import Words


def _grown(w: Words, before: str, name: str, rest: str) -> Sides:
    """A set and a string, and the beginning of a line that adds to them."""
    start, string = f"{before}{indent_of(before)}{name} = ", w.pick(('""', "''"))
    return Sides((f"{start}set()\n{rest}{name}", f"{start}{string}\n{rest}{name}"))


def _in_a_loop(w: Words, name: str) -> Sides:
    before = plain(w, 0, 2, headers=False)
    middle = plain(w, 0, 2, headers=False, avoid=(name,))
    item, source = w.names(2, name)
    rest = f"{middle}for {item} in {source}:\n{INDENT}"
    if w.chance(0.3):
        rest += f"if {item} > {w.number()}:\n{INDENT * 2}"
    return _grown(w, before, name, rest)


def _in_a_while_loop(w: Words, name: str) -> Sides:
    middle = unfamiliar(w, 0, 1, headers=False, avoid=(name,))
    header = f"while {w.name(name)} < {w.number()}:\n{INDENT}"
    return _grown(w, unfamiliar(w, 0, 1, headers=False), name, middle + header)


def _behind_a_condition(w: Words, name: str) -> Sides:
    header = f"if {w.function()}({w.name(name)}):\n{INDENT}"
    return _grown(w, plain(w, 0, 2, headers=False), name, header)


def _at_once(w: Words, name: str) -> Sides:
    before = unfamiliar(w, 1, 2, headers=False)
    return _grown(w, before, name, plain(w, 0, 2, headers=False, avoid=(name,)))


Form = Callable[[Words, str], Sides]
"""A form of sentence around a name."""

_LOOPS, _OTHERS = (_in_a_loop,), (_in_a_while_loop, _behind_a_condition, _at_once)


def _with_any_name(form: Form) -> Template:
    return lambda w: form(w, w.name())


def _with_one_name(form: Form) -> Template:
    return lambda w: form(w, "current")


SET_OR_STRING = PairSpec(
    name="set_or_string",
    decides="grow a variable as the set or the string that it was made to hold",
    differ="the initialiser, `set()` against `\"\"` or `''`",
    answers=(Answers(".add", " +="), Answers(".", " +="), Answers(".", " ")),
    templates=tuple(map(_with_any_name, _LOOPS)),
    held_out=tuple(map(_with_any_name, _OTHERS)),
)

SET_OR_STRING_FIXEDVARNAME = PairSpec(
    name="set_or_string_fixedvarname",
    decides="the same with a variable that is always called `current`",
    differ=SET_OR_STRING.differ,
    answers=SET_OR_STRING.answers,
    templates=tuple(map(_with_one_name, _LOOPS)),
    held_out=tuple(map(_with_one_name, _OTHERS)),
)
