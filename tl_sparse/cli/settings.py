"""Settings of a command from one TOML, YAML or JSON file, and back into its results.

A key is a flag's name without the dashes, `batch-size` or `batch_size`; arguments go by their names
too. Keys stand at the top of the file or in a table with the command's name, and tables of other
commands are left alone. What is said on the command line wins. A value is read as the text of the
flag would be, so that TOML, YAML and the command line mean the same and fail alike.

`asked` gives the settings that a command ran with; as JSON they are such a file again.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tl_sparse.rules import checks_itself

_NOT_SETTINGS = frozenset({"help", "config"})
_NOT_KEPT = frozenset({"json", "quiet"})
"""How a command shows its result is no part of the result."""

_HERE = "tl_sparse.settings_file"
"""Where a context keeps the path of its settings file."""


@checks_itself
def take_settings(ctx: typer.Context, value: Path | None) -> Path | None:
    """Make the values of a settings file the defaults of the command."""
    if value is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **read_settings(value, ctx)}
        ctx.meta[_HERE] = value
    return value


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=take_settings,
        is_eager=True,
        help="Settings from a .toml, .yaml or .json file: flags' names as keys; flags win.",
    ),
]


def read_settings(path: Path, ctx: Any) -> dict[str, Any]:
    """Read what a settings file says to the command of a context.

    Raises:
        typer.BadParameter: If it can't be read, has an unknown key or a value of a wrong type.
    """
    content, command = _parsed(path), str(ctx.info_name)
    group: Any = ctx.parent.command if ctx.parent is not None else ctx.command
    others = set(getattr(group, "commands", {}))
    found: dict[str, Any] = {}
    known = _parameters(ctx)
    for key, value in content.items():
        if isinstance(value, Mapping) and key in others:
            if key == command:
                found |= {str(inner): value[inner] for inner in value}
        else:
            found[str(key)] = value
    settings = {}
    for key, value in found.items():
        parameter = known.get(key.replace("-", "_"))
        if parameter is None:
            raise typer.BadParameter(
                f"{path} has {key!r}, and {command} knows {', '.join(sorted(known))}"
            )
        if value is not None:
            settings[parameter.name] = _as_on_the_command_line(key, value, parameter, path)
    return settings


def asked(ctx: Any) -> dict[str, Any]:
    """Give what a command was asked for, defaults included: a settings file as JSON values."""
    kept = {key: p.name for key, p in _parameters(ctx).items() if key not in _NOT_KEPT}
    return {str(ctx.info_name): {key: _plain(ctx.params.get(name)) for key, name in kept.items()}}


def from_file(error: Any) -> Path | None:
    """Give the settings file that a refused value stands in, if it stands in one."""
    ctx, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if ctx is None or parameter is None:
        return None
    source = ctx.get_parameter_source(parameter.name)
    return ctx.meta.get(_HERE) if source is not None and source.name == "DEFAULT_MAP" else None


def _parameters(ctx: Any) -> dict[str, Any]:
    """Give the command's parameters by key: the flag's name, or the argument's."""
    found = {}
    for parameter in ctx.command.params:
        long = [opt.removeprefix("--") for opt in parameter.opts if opt.startswith("--")]
        key = (long[0] if long else str(parameter.name)).replace("-", "_")
        if key not in _NOT_SETTINGS:
            found[key] = parameter
    return found


def _parsed(path: Path) -> Mapping[str, Any]:
    readers = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": json.loads}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise typer.BadParameter(f"A settings file ends in .toml, .yaml or .json, got {path}")
    try:
        content = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise typer.BadParameter(f"{path} can't be read: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise typer.BadParameter(f"{path} holds no keys with values")
    return content


def _toml(text: str) -> Any:
    return tomllib.loads(text)


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _as_on_the_command_line(key: str, value: Any, parameter: Any, path: Path) -> Any:
    """Turn a value of a file into what the same words would be as a flag."""
    switch = bool(getattr(parameter, "is_flag", False))
    if switch != isinstance(value, bool) or isinstance(value, Mapping):
        wants = "is true or false" if switch else "takes a number or words"
        raise typer.BadParameter(f"{path}: {key} {wants}, got {value!r}")
    if switch:
        return value
    if isinstance(value, list | tuple):
        if any(isinstance(one, bool | Mapping | list | None) for one in value):
            raise typer.BadParameter(f"{path}: {key} takes numbers or words, got {value!r}")
        words = [str(one) for one in value]
        return words if parameter.multiple or parameter.nargs != 1 else ",".join(words)
    return [str(value)] if parameter.multiple or parameter.nargs != 1 else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
