"""How the commands fail: one line on stderr that says what to do, and an exit code.

0 is done, 1 an error, 2 a wrong command line or settings file, 130 stopped by Ctrl-C. Commands just
raise; what they raise is put into words here. `tl-sparse --debug ...` shows the traceback before.
"""

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperGroup

from tl_sparse.cli.settings import from_file
from tl_sparse.cli.speaking import Lines, errors, note

Command = TypeVar("Command", bound=Callable[..., Any])

_Usage: Any = typer.BadParameter.__base__
"""Click's UsageError, wherever this Typer keeps its Click."""

_EXPECTED = (ValueError, OSError, RuntimeError, ImportError, MemoryError)
"""What our own functions raise for users, and what the machine does to them."""

_REMEDIES = {
    errno.ENOSPC: "Free some space, or write to another disk; nothing half-written was kept.",
    errno.EDQUOT: "Free some space, or write to another disk; nothing half-written was kept.",
    errno.EACCES: "Choose a place that you may read and write.",
    errno.EPERM: "Choose a place that you may read and write.",
    errno.EROFS: "Choose a place that can be written.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "A part of the path is a file.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.EEXIST: "Choose another name.",
}


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with what became of the work."""


def if_stopped(message: str) -> Callable[[Command], Command]:
    """Say what Ctrl-C leaves behind; `{name}` in the message is the command's argument."""

    def mark(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return command(*args, **kwargs)
            except KeyboardInterrupt as stop:
                raise Stopped(message.format(**kwargs)) from stop

        marked: Any = run
        return marked

    return mark


class Commands(TyperGroup):
    """All commands; whatever one of them raises becomes one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _Usage):
            raise
        except BrokenPipeError:  # `| head` has seen enough
            _close_stdout()
            raise typer.Exit(0) from None
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params.get("debug"):
                errors.print(traceback.format_exc().rstrip(), markup=False)
            if isinstance(error, KeyboardInterrupt):
                note(str(error) or "Stopped.")
                raise typer.Exit(130) from None
            note(f"Error: {in_words(error)}")
            raise typer.Exit(1) from None

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line and leave the process with its exit code."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode is no error
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
        before, sys.stderr = sys.stderr, sys.stderr if sys.stderr.isatty() else Lines(sys.stderr)
        try:
            code = super().main(*args, standalone_mode=False, **extra)
            sys.stdout.flush()
        except _Usage as error:
            note(f"Error: {_usage_in_words(error)}")
            code = error.exit_code
        except BrokenPipeError:
            _close_stdout()
            code = 0
        finally:
            sys.stderr = before
        sys.exit(code if isinstance(code, int) else 0)


def in_words(error: BaseException) -> str:
    """Give an error in one line, with a remedy where one is known."""
    if not isinstance(error, _EXPECTED):
        return _joined(
            f"unexpected {type(error).__name__}: {error}. This is a mistake in tl-sparse: "
            "`tl-sparse --debug ...` shows where."
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"Out of memory. Take a smaller model or batch, or another device. {_joined(error)}"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, "")
        return _joined(f"{place}{error.strerror.rstrip('.')}. {remedy}")
    if isinstance(error, ModuleNotFoundError):
        return f"The library {error.name} is not installed: pip install {error.name}."
    return _joined(str(error) or type(error).__name__)


def _usage_in_words(error: Any) -> str:
    """Say what is wrong with a command line, or with the settings file that a value stands in."""
    message = _joined(error.format_message()).removesuffix(".")
    path = from_file(error)
    where = f" (in {path})" if path else ""
    command = error.ctx.command_path if error.ctx else "tl-sparse"
    end = "" if message.endswith("?") and not where else "."
    return f"{message}{where}{end} `{command} --help` says more."


def _joined(text: object) -> str:
    return " ".join(str(text).split())


def _close_stdout() -> None:
    """Let nothing more be written, at the process' end neither."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
