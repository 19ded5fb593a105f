"""A text of Python while it is labelled: where its lines begin, which characters have a concept.

`tokenize` gives places as (row, character), `ast` as (row, byte); here both become an offset in
characters. What is found is kept as half-open spans of characters, by concept.
"""

import io
from bisect import bisect_left
from itertools import accumulate

Spans = dict[str, list[tuple[int, int]]]
"""Spans of characters, [start, end), by the concept that holds in them."""


class NotPythonError(ValueError):
    """A text that Python's own parser refuses."""


class Source:
    """A text, its lines, its brackets, and the spans found so far."""

    def __init__(self, text: str) -> None:
        """Split a text into lines as `tokenize` does.

        Raises:
            NotPythonError: If lines end in a carriage return alone, which `tokenize` and `ast`
                count differently.
        """
        if "\r" in text.replace("\r\n", "\n"):
            raise NotPythonError("A line ends in a carriage return alone. Convert it to \\n.")
        self.text = text
        self.lines = list(io.StringIO(text, newline=""))
        self.starts = [0, *accumulate(map(len, self.lines))]
        self.spans: Spans = {}
        self.openers: dict[int, int] = {}
        """Where each closing bracket's opening one is."""
        self.closers: dict[int, int] = {}
        """Where each opening bracket's closing one is."""
        self.signs: dict[str, list[int]] = {}
        """Where the operators and brackets outside strings and comments end, by last character."""

    def at(self, row: int, column: int) -> int:
        """Give the offset of a place that counts characters, as in `tokenize`; rows from 1."""
        return min(self.starts[row - 1] + column, len(self.text))

    def at_byte(self, row: int, column: int) -> int:
        """Give the offset of a place that counts UTF-8 bytes, as in `ast`; rows from 1."""
        line = self.lines[row - 1]
        if not line.isascii():
            column = len(line.encode()[:column].decode())
        return self.starts[row - 1] + column

    def sign(self, sign: str, start: int) -> int:
        """Give the first place from `start` on of a sign that is no part of a string or comment."""
        found = self.signs[sign]
        return found[bisect_left(found, start)]

    def sign_before(self, sign: str, end: int) -> int:
        """Give the last place before `end` of a sign that is no part of a string or comment."""
        found = self.signs[sign]
        return found[bisect_left(found, end) - 1]

    def mark(self, concept: str, start: int, end: int) -> None:
        """Note that a concept holds in [start, end); an empty span is none."""
        if end > start:
            self.spans.setdefault(concept, []).append((start, end))
