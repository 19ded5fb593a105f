r"""with_as and with_open: files, what they are bound to and what they are opened for.

with_as (the answers are ` as` and a newline where the tokenizer keeps both apart from the bracket;
most join the bracket with the newline behind it, and then they are `')` and `')\n`):

    size = 4                            size = 4
    with open('rows.txt', 'r            handle = open('rows.txt', 'r
    -> ')                               -> ')\n

Behind the bracket `with` still needs ` as ...:`, and the assignment is done. The prompts differ in
the beginning of the last line, which an assignment has one token more in.

with_open (answers `r` and `w`):

    with open('input_rows.txt', '       with open('output_rows.txt', '
    -> r                                -> w

The prompts differ only in the first word of the file's name.
"""

from tl_sparse.tasks.contexts import indent_of, plain, unfamiliar
from tl_sparse.tasks.templates import Answers, PairSpec, Sides
from tl_sparse.tasks.words import Pool, Words

EXTENSIONS: dict[Pool, tuple[str, ...]] = {
    "train": ("txt", "csv", "log", "cfg"),
    "test": ("json", "dat", "md"),
}

READ: dict[Pool, tuple[str, ...]] = {
    "train": ("input", "source", "config", "template", "original", "schema", "request", "sample"),
    "test": ("settings", "dataset", "reader", "incoming", "query", "lesson", "story"),
}
"""Beginnings of names of files that one reads."""

WRITE: dict[Pool, tuple[str, ...]] = {
    "train": ("output", "log", "result", "report", "summary", "backup", "export", "invoice"),
    "test": ("outgoing", "reply", "history", "copy", "dump", "trace"),
}
"""Beginnings of names of files that one writes."""


def _opened(w: Words) -> tuple[str, str]:
    """The inside of a call that opens a file, and what closes it."""
    extension = w.pick(EXTENSIONS[w.pool])
    if w.chance(0.3):
        return f"{w.name()}_{extension}", ")"
    quote = w.pick("'\"")
    path = f"{quote}{w.name()}.{extension}{quote}"
    return f"{path}, {quote}{w.pick('rw')}", f"{quote})"


def _bound(w: Words, before: str, opener: str) -> Sides:
    indent, (inside, close) = indent_of(before), _opened(w)
    handle = w.name()
    return Sides(
        (
            f"{before}{indent}with {opener}({inside}",
            f"{before}{indent}{handle} = {opener}({inside}",
        ),
        {"close": close},
    )


def _with(w: Words) -> Sides:
    return _bound(w, plain(w), "open")


def _with_another_opener(w: Words) -> Sides:
    return _bound(w, plain(w), w.pick(("io.open", "gzip.open", "codecs.open", "tarfile.open")))


def _with_elsewhere(w: Words) -> Sides:
    return _bound(w, unfamiliar(w), "open")


WITH_AS = PairSpec(
    name="with_as",
    decides="bind an open file by `as` behind `with`, and not behind an assignment",
    differ="the beginning of the last line, `with` against `... =`",
    answers=(
        Answers(" as", "\n", tail="<close>"), Answers("<close>", "<close>\n"),
        Answers(" ", "\n", tail="<close>"),
    ),
    templates=(_with,),
    held_out=(_with_another_opener, _with_elsewhere),
    aligned=False,
)  # fmt: skip


def _mode(w: Words, start: str) -> Sides:
    """A file by name, up to the quote before its mode."""
    rest = f"_{w.name()}" if w.chance(0.6) else ""
    extension, quote = w.pick(EXTENSIONS[w.pool]), w.pick("'\"")
    read, write = (
        f"{start}open({quote}{w.pick(stems[w.pool])}{rest}.{extension}{quote}, {quote}"
        for stems in (READ, WRITE)
    )
    return Sides((read, write))


def _with_mode(w: Words) -> Sides:
    before = plain(w)
    return _mode(w, f"{before}{indent_of(before)}with ")


def _assigned_mode(w: Words) -> Sides:
    before = unfamiliar(w)
    return _mode(w, f"{before}{indent_of(before)}{w.name()} = ")


def _mode_of_a_path(w: Words) -> Sides:
    before, quote = unfamiliar(w), w.pick("'\"")
    start, end = f"{before}{indent_of(before)}with open(", f"_{w.name()}, {quote}"
    return Sides((f"{start}{w.pick(READ[w.pool])}{end}", f"{start}{w.pick(WRITE[w.pool])}{end}"))


WITH_OPEN = PairSpec(
    name="with_open",
    decides="open a file for reading or for writing, by its name",
    differ="the first word of the file's name",
    answers=(Answers("r", "w"),),
    templates=(_with_mode,),
    held_out=(_assigned_mode, _mode_of_a_path),
)
