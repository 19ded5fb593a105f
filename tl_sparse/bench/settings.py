"""What a run of the benchmark is asked for."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tl_sparse.bench.demo import check_folder
from tl_sparse.bench.sizes import DEFAULT_SIZES, SIZES
from tl_sparse.rules import (
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    check_fields,
    checks_itself,
    choice,
    make_plain_,
    maybe,
)

KIND_NAMES = (
    "training",
    "memory",
    "inference",
    "linear",
    "projection",
    "abstopk",
    "pruning",
    "audit",
    "compiled",
)
"""What can be measured."""


DEMO_KINDS = ("pruning", "compiled")
"""What is measured on a finished demo too."""


@checks_itself
@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured, at which sizes, how often, and where it is written.

    Raises:
        ValueError: If a setting can't work, before anything is measured.
    """

    only: tuple[str, ...] = KIND_NAMES
    """What to measure, of `KIND_NAMES`."""

    sizes: tuple[str, ...] = DEFAULT_SIZES
    """Names of `SIZES`."""

    demo: Path | None = None
    """The folder of a finished demo, on whose sparse model, task and circuit `DEMO_KINDS` are
    measured too."""

    repeats: int = 20
    """Rounds of each measurement at most."""

    seconds: float = 30.0
    """No new round of a measurement begins after so long; three are run in any case, if `repeats`
    allows."""

    threads: int | None = None
    """Threads of torch on the CPU; None leaves what is set."""

    device: str = "auto"
    """"cpu", "cuda", or "auto": cuda where there is one."""

    out: Path = Path("bench.json")
    """The file of the raw numbers; the table is written beside it, with the suffix .md."""

    def __post_init__(self) -> None:
        make_plain_(self)
        _check_names("only", self.only, KIND_NAMES)
        _check_names("sizes", self.sizes, tuple(SIZES))
        check_fields(self, POSITIVE_INTEGER, "repeats")
        check_fields(self, POSITIVE_NUMBER, "seconds")
        check_fields(self, maybe(POSITIVE_INTEGER), "threads")
        check_fields(self, choice("auto", "cpu", "cuda"), "device")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                'device="cuda" needs a GPU that this torch can use, and torch.cuda.is_available() '
                'is False. Use device="cpu", or install a CUDA build of torch.'
            )
        if self.demo is not None:
            object.__setattr__(self, "demo", Path(self.demo))
            self._check_demo(Path(self.demo))
        object.__setattr__(self, "seconds", float(self.seconds))
        out = Path(self.out)
        object.__setattr__(self, "out", out)
        if out.suffix != ".json" or out.is_dir():
            raise ValueError(
                f"out is a file whose name ends in .json, got {str(out)!r}; the table is written "
                f"beside it. Try {str(out.with_name((out.stem or 'bench') + '.json'))!r}."
            )

    def _check_demo(self, folder: Path) -> None:
        if not set(DEMO_KINDS) & set(self.only):
            raise ValueError(
                f"On a demo {' and '.join(DEMO_KINDS)} are measured, and only asks for "
                f"{', '.join(self.only)}. Add one of them, or leave demo out."
            )
        check_folder(folder)

    def resolved_device(self) -> torch.device:
        """Give the device that is measured."""
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(auto if self.device == "auto" else self.device)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        demo = None if self.demo is None else str(self.demo)
        return asdict(self) | {"out": str(self.out), "demo": demo}


def _check_names(field: str, given: Any, known: tuple[str, ...]) -> None:
    """Check a tuple of names: each is known and stands once."""
    if not isinstance(given, tuple) or not given:
        raise ValueError(f"{field} is a tuple of names, at least one, got {given!r}.")
    for name in given:
        if name not in known:
            raise ValueError(f"{field} takes names out of {', '.join(known)}; got {name!r}.")
        if given.count(name) > 1:
            raise ValueError(f"{field} takes each name once, got {name!r} twice. Leave one out.")
