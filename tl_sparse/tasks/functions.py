r"""final_kwarg, class_init and lambda_func: parameters, and what holds them.

final_kwarg (answers `=None` and `):\n`):

    def load_rows(path, size=None, limit        def load_rows(path, size_name, limit
    -> =None                                    -> ):\n

A parameter behind one with a default needs a default too. The prompts differ in the endings of the
parameters in the middle, `=None` against a part of the name, a token each.

class_init (the answers are two parameters' names):

    class Reader:                               class Reader:
        def __init__(self, width, color):           def __init__(self, width, color):
            self.width =                                self.color =
    ->  width                                   ->  color

The prompts differ only in the name of the attribute.

lambda_func (answers `:` and `(`):

    load = lambda width                         def width
    -> :                                        -> (

The prompts differ in what stands before the last name, so they are not of one length.
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


def _parameters(w: Words, header: str, first: str = "") -> Sides:
    """Parameters without a default, one to three that have one on side A, and the last."""
    n_before, n_middle = w.between(0 if first else 1, 2), w.pick((1, 1, 2, 3))
    names = w.plain_names(n_before + n_middle + 1)
    given, middle = [first] * bool(first) + names[:n_before], names[n_before:-1]
    with_defaults = [*given, *(f"{name}=None" for name in middle), names[-1]]
    without = [*given, *(f"{name}{w.suffix()}" for name in middle), names[-1]]
    return Sides((header + ", ".join(with_defaults), header + ", ".join(without)))


def _function(w: Words) -> Sides:
    return _parameters(w, f"{plain(w, headers=False)}def {w.function()}(")


def _method(w: Words) -> Sides:
    header = method_header(w)
    header += f"{INDENT * 2}return {w.name()}\n\n{INDENT}def {w.function()}("
    return _parameters(w, header, first="self")


def _coroutine(w: Words) -> Sides:
    return _parameters(w, f"{unfamiliar(w, 1, 2, headers=False)}async def {w.function()}(")


FINAL_KWARG = PairSpec(
    name="final_kwarg",
    decides="give the last parameter a default where the one before has one",
    differ="the endings of the parameters before, `=None` against a part of the name",
    answers=(Answers("=None", "):\n"), Answers("=", "):\n"), Answers("=", ")")),
    templates=(_function,),
    held_out=(_method, _coroutine),
)


def _stored(w: Words, before: str, indent: str, *extra: str) -> Sides:
    """Parameters stored one after the other, up to the sign behind one of two attributes."""
    n_before, n_behind = w.between(0, 2), w.between(0, 1)
    names = w.copied(2)
    done, left = w.names(n_before, *names), w.names(n_behind, *names)
    given = done + w.rng.sample(names, 2) + left
    lines = "".join(f"{indent}self.{name} = {name}\n" for name in done)
    start = f"{before}{', '.join([*given, *extra])}):\n{lines}{indent}self."
    return Sides((f"{start}{names[0]} =", f"{start}{names[1]} ="), {"a": names[0], "b": names[1]})


def _init(w: Words) -> Sides:
    before = plain(w, 0, 2, headers=False)
    before += f"class {w.class_name()}:\n{INDENT}def __init__(self, "
    return _stored(w, before, INDENT * 2)


def _init_of_a_subclass(w: Words) -> Sides:
    before = f"class {w.class_name()}({w.class_name()}):\n{INDENT}def __init__(self, "
    return _stored(w, before, INDENT * 2, f"{w.name()}=None")


def _setter(w: Words) -> Sides:
    before = unfamiliar(w, 1, 2, headers=False)
    return _stored(w, f"{before}def {w.function()}(self, ", INDENT)


CLASS_INIT = PairSpec(
    name="class_init",
    decides="store each parameter in the attribute of its name",
    differ="the attribute's name in the last line",
    answers=(Answers(" <a>", " <b>"), Answers("<a>", "<b>", tail=" ")),
    templates=(_init,),
    held_out=(_init_of_a_subclass, _setter),
    copies=COPYABLE,
)


def _named(w: Words) -> Sides:
    before = plain(w)
    indent, name = indent_of(before), w.name()
    return Sides((f"{before}{indent}{w.name(name)} = lambda {name}", f"{before}{indent}def {name}"))


def _returned(w: Words) -> Sides:
    before = function_header(w)
    before += unfamiliar(w, indent=indent_of(before), headers=False)
    name = w.name()
    return Sides((f"{before}{INDENT}return lambda {name}", f"{before}{INDENT}def {name}"))


def _argument(w: Words) -> Sides:
    before, name = unfamiliar(w), w.name()
    indent = indent_of(before)
    return Sides(
        (f"{before}{indent}{w.callee()}({w.name(name)}, lambda {name}",
         f"{before}{indent}async def {name}")
    )  # fmt: skip


LAMBDA_FUNC = PairSpec(
    name="lambda_func",
    decides="go on with a colon behind `lambda`, with a bracket behind `def`",
    differ="what stands before the last name, `... = lambda` against `def`",
    answers=(Answers(":", "("),),
    templates=(_named,),
    held_out=(_returned, _argument),
    aligned=False,
)
