"""How the commands speak: results to stdout, everything else to stderr, a line each."""

import json
from typing import Any

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
