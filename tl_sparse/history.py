"""What a training run logged: JSON lines, one record at each validation."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class History:
    """What a training run logged: one record at each validation, in order."""

    records: tuple[dict[str, Any], ...] = field(repr=False)
    """Each with step, tokens, loss (training, mean since the last record), validation_loss (nats
    per token), learning_rate, gradient_rms, weight_density, nonzero (entries by parameter),
    dead_neurons (by layer), tokens_per_second and seconds."""

    @property
    def validation_loss(self) -> float:
        """The last validation loss, in nats per token."""
        return self.records[-1]["validation_loss"] if self.records else math.nan

    @property
    def n_tokens(self) -> int:
        """Tokens trained on."""
        return self.records[-1]["tokens"] if self.records else 0

    def column(self, name: str) -> list[Any]:
        """Give one quantity of every record."""
        return [record[name] for record in self.records]

    def _repr_html_(self) -> str:
        """Give what notebooks show: where it ended, and its curves."""
        from tl_sparse.displays import history_fragment

        return history_fragment(self)

    def __repr__(self) -> str:
        """One line."""
        return f"History({self.n_tokens:,} tokens, validation loss {self.validation_loss:.3f})"

    @classmethod
    def load(cls, folder: str | Path) -> "History":
        """Read the log of a run's folder."""
        return cls(tuple(read_log(Path(folder) / "log.jsonl")))


@dataclass
class Sums:
    """Sums over the steps since the last record."""

    n_steps: int = 0
    loss: float = 0.0
    gradient_rms: float = 0.0
    learning_rate: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, loss: float, rms: float, rate: float, tokens: int, began: float) -> None:
        """Count one step that began at `began` (of `time.perf_counter`)."""
        self.n_steps += 1
        self.loss += loss
        self.gradient_rms += rms
        self.learning_rate = rate
        self.tokens += tokens
        self.seconds += time.perf_counter() - began

    def summary(self) -> dict[str, Any]:
        """Give the means that go into a record."""
        n = max(self.n_steps, 1)
        return {
            "loss": self.loss / n,
            "gradient_rms": self.gradient_rms / n,
            "learning_rate": self.learning_rate,
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9)),
        }


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log, up to a line that a killed process left unfinished."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the line that a killed process was writing
    return records
