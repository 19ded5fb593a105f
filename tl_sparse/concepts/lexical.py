"""What `tokenize` tells about the characters of a source: strings, brackets, words, layout.

A string or bracket is *open* from its first quote or bracket, included, to its last, excluded: what
is open behind a character is what a reader has to keep in mind there. Fields of f-strings are part
of the string, as in Python 3.11; the tokens that later versions find in them are passed over.
"""

import io
import keyword
import token as kinds
import tokenize
from tokenize import TokenInfo

from tl_sparse.concepts.source import NotPythonError, Source

F_START = getattr(kinds, "FSTRING_START", -1)
F_END = getattr(kinds, "FSTRING_END", -1)
COMPARISONS = frozenset({"==", "!=", "<", ">", "<=", ">="})
PREFIXES = "rRbBuUfF"


def mark_lexical(source: Source) -> None:
    """Mark the spans of all concepts that need no parser, and the brackets and signs, in place.

    Raises:
        NotPythonError: If the text is not made of Python's tokens.
    """
    read = io.StringIO(source.text, newline="").readline
    try:
        tokens = list(tokenize.generate_tokens(read))
    except (tokenize.TokenError, SyntaxError) as error:
        raise NotPythonError(f"The text is not Python: {error}.") from error
    scanner = _Scanner(source)
    for token in tokens:
        scanner.take(token)


class _Scanner:
    """What is open at the current token."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.brackets: list[int] = []
        self.f_strings: list[tuple[int, str]] = []
        self.seen: set[str] = set()
        self.level = 0
        self.statement: int | None = None
        """Where the open statement began."""
        self.blank: int | None = None
        """Where the line ended behind which nothing has come yet."""
        self.last_end = 0
        """Where the last token ended that is neither layout nor comment."""

    def take(self, token: TokenInfo) -> None:
        """Go on by one token."""
        start, end = self.source.at(*token.start), self.source.at(*token.end)
        if self.f_strings and token.type not in (F_START, F_END):
            return
        if token.type in (kinds.INDENT, kinds.DEDENT, kinds.NEWLINE, kinds.NL):
            self.layout(token.type, start, end)
            return
        if self.blank is not None:
            self.source.mark("line_start", self.blank, start)
            self.blank = None
        if token.type == kinds.COMMENT:
            self.source.mark("comment", start, end)
        elif token.type != kinds.ENDMARKER:
            if self.statement is None:
                self.statement = start
            self.last_end = end
            self.word(token.type, token.string, start, end)

    def layout(self, kind: int, start: int, end: int) -> None:
        """Take a token that stands for indentation or the end of a line."""
        if kind == kinds.INDENT:
            self.level += 1
            self.source.mark("block_start", self.last_end - 1, end)
        elif kind == kinds.DEDENT:
            self.level -= 1
        elif not self.brackets:
            self.blank = start if self.blank is None else self.blank
            if kind == kinds.NEWLINE and self.statement is not None:
                if self.level:
                    self.source.mark(f"indent_{min(self.level, 3)}", self.statement, start)
                self.statement = None

    def word(self, kind: int, text: str, start: int, end: int) -> None:
        """Take a token with a meaning of its own."""
        if kind == kinds.STRING:
            opening = text[: len(text) - len(text.lstrip(PREFIXES))]
            body = text[len(opening) :]
            n_quotes = 3 if body.startswith(('"""', "'''")) else 1
            self.string(opening + body[:n_quotes], start, end - n_quotes)
        elif kind == F_START:
            self.f_strings.append((start, text))
        elif kind == F_END:
            begin, opening = self.f_strings.pop()
            if not self.f_strings:
                self.string(opening, begin, start)
        elif kind == kinds.OP:
            self.operator(text, start, end)
        elif kind == kinds.NUMBER:
            self.source.mark("number", start, end)
        elif kind == kinds.NAME and keyword.iskeyword(text):
            self.source.mark("keyword", start, end)
        elif kind == kinds.NAME:
            if text in self.seen:
                self.source.mark("seen_name", start, end)
            self.seen.add(text)

    def string(self, opening: str, start: int, close: int) -> None:
        """Take a string that begins with a prefix and quotes, and whose last quotes are known."""
        quotes = opening.lstrip(PREFIXES)
        prefix = opening[: len(opening) - len(quotes)]
        start += len(prefix)
        name = {"'": "single_quoted", '"': "double_quoted"}.get(quotes, "triple_quoted")
        for concept in ("string", name, *(["f_string"] if "f" in prefix.lower() else [])):
            self.source.mark(concept, start, close)

    def operator(self, text: str, start: int, end: int) -> None:
        """Take a bracket or a sign."""
        self.source.signs.setdefault(text[-1], []).append(end - 1)
        if text in "([{":
            self.brackets.append(start)
        elif text in ")]}":
            if not self.brackets:
                raise NotPythonError("The text is not Python: a bracket closes that none opened.")
            opener = self.brackets.pop()
            self.source.openers[start], self.source.closers[opener] = opener, start
            depth = len(self.brackets) + 1
            if depth <= 3:
                self.source.mark(f"depth_{depth}", opener, start)
        elif text in COMPARISONS:
            self.source.mark("comparison", start, end)
