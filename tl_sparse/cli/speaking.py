"""How the commands speak: results to stdout, everything else to stderr, a line each."""

import json
from typing import IO, Any

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(line: str) -> None:
    """Print a line of the result as it is."""
    typer.echo(line)


def note(line: str) -> None:
    """Print a line that is no result, as it is, to stderr."""
    errors.print(line, markup=False)


def then(line: str, *, unless: bool = False) -> None:
    """Say what to do next, unless the result is for a script."""
    if not unless:
        note(f"Next: {line}")


def say_json(value: Any) -> None:
    """Print a value as JSON in one line; numbers that are not finite become null."""
    say(json.dumps(_finite(value), allow_nan=False))


def names(joined: str) -> tuple[str, ...]:
    """Split names that are joined by commas."""
    return tuple(name.strip() for name in joined.split(",") if name.strip())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


class Lines:
    """A stream that gives each drawing of a progress bar a line of its own, for files and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.after_bar = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text; one that begins by going back to the line's start is a drawn bar."""
        drawn = text.startswith("\r")
        if drawn and (bar := text.strip()):
            self.stream.write(bar + "\n")
        elif not drawn and not (self.after_bar and text == "\n"):
            self.stream.write(text)
        self.after_bar = drawn
        return len(text)
