"""How the commands speak: results to stdout, errors to stderr."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False)


def names(joined: str) -> tuple[str, ...]:
    """Split names that are joined by commas."""
    return tuple(name.strip() for name in joined.split(",") if name.strip())
