r"""for_while, enumerate_range and indent_for: loops, from their keyword to their first line.

for_while (answers ` in` and `:\n`; the prompts differ only in the keyword):

    size = 4                        size = 4
    for width                       while width
    ->  in                          -> :\n

enumerate_range (answers ` enumerate` and ` range`; side A has a second loop variable):

    for i, width in                 for i in
    ->  enumerate                   ->  range

indent_for (the answers are the indentation of a block one deeper, and of the same block, both
without the one space that most tokenizers give to the word behind it):

    def load(rows):                 def load(rows):
        for width in rows:              width = not rows
    -> (7 spaces)                   -> (3 spaces)

The prompts differ in the last line, which has the same names in both.
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
from tl_sparse.tasks.words import LETTERS, Words


def _keyword(before: str, name: str) -> Sides:
    indent = indent_of(before)
    return Sides((f"{before}{indent}for {name}", f"{before}{indent}while {name}"))


def _loop(w: Words) -> Sides:
    return _keyword(plain(w), w.name())


def _loop_elsewhere(w: Words) -> Sides:
    return _keyword(unfamiliar(w), w.name())


def _loop_in_a_method(w: Words) -> Sides:
    before = method_header(w)
    return _keyword(before + plain(w, 0, 2, indent=INDENT * 2), w.name())


FOR_WHILE = PairSpec(
    name="for_while",
    decides="go on with `in` behind `for`, end the line behind `while`",
    differ="the keyword",
    answers=(Answers(" in", ":\n"), Answers(" in", ":"), Answers(" ", ":")),
    templates=(_loop,),
    held_out=(_loop_elsewhere, _loop_in_a_method),
)


def _counted(w: Words, start: str) -> Sides:
    index = w.pick(LETTERS[w.pool]) if w.chance(0.5) else w.name()
    return Sides((f"{start}for {index}, {w.name(index)} in", f"{start}for {index} in"))


def _counting_loop(w: Words) -> Sides:
    before = plain(w)
    return _counted(w, before + indent_of(before))


def _comprehension(w: Words) -> Sides:
    before = plain(w)
    return _counted(w, f"{before}{indent_of(before)}{w.name()} = [{w.name()} ")


def _counting_loop_elsewhere(w: Words) -> Sides:
    before = unfamiliar(w)
    return _counted(w, before + indent_of(before))


ENUMERATE_RANGE = PairSpec(
    name="enumerate_range",
    decides="enumerate for two loop variables, count through a range for one",
    differ="the second loop variable, which side B does not have",
    answers=(
        Answers(" enumerate", " range"), Answers(" en", " range"), Answers("e", "r", tail=" "),
    ),
    templates=(_counting_loop,),
    held_out=(_comprehension, _counting_loop_elsewhere),
    aligned=False,
)  # fmt: skip


def _block(before: str, header: str, line: str) -> Sides:
    """A loop's header or a line of its own kind, and the indentation behind each."""
    indent = indent_of(before)
    same, deep = (len(level) - 1 for level in (indent, indent + INDENT))
    sides = f"{before}{indent}{header}:\n", f"{before}{indent}{line}\n"
    return Sides(sides, {"deep": " " * deep, "same": " " * same})


def _for(w: Words) -> Sides:
    before = function_header(w)
    before += plain(w, 0, 2, indent=INDENT)
    name, other = w.names(2)
    source = w.pick((other, f"{w.function()}({other})", f"{other}.{w.name()}"))
    line = w.pick((f"{name} = not {source}", f"assert {name} in {source}"))
    return _block(before, f"for {name} in {source}", line)


def _for_of_pairs(w: Words) -> Sides:
    before = function_header(w)
    before += plain(w, 0, 2, indent=INDENT)
    pair, source = ", ".join(w.names(2)), f"{w.function()}({w.name()})"
    return _block(before, f"for {pair} in {source}", f"assert {pair} in {source}")


def _for_elsewhere(w: Words) -> Sides:
    before = function_header(w)
    before += unfamiliar(w, 1, 2, indent=INDENT)
    name, other = w.names(2)
    return _block(before, f"for {name} in {other}", f"{name} = not {other}")


INDENT_FOR = PairSpec(
    name="indent_for",
    decides="indent the line behind the header of a loop",
    differ="the last line, a loop's header against a statement of the same names",
    answers=(Answers("<deep>", "<same>"), Answers("<deep> ", "<same> ")),
    templates=(_for,),
    held_out=(_for_of_pairs, _for_elsewhere),
)
