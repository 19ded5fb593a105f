"""What an audit says: findings, each of one claim, and the verdicts that follow from them.

No number sums them up: a claim holds only if each of its findings does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tl_sparse.files import write_text

Claim = Literal[
    "sufficient", "necessary", "robust", "same mechanism", "general", "better than chance",
    "minimal", "stable",
]  # fmt: skip

CLAIMS: dict[Claim, str] = {
    "sufficient": "The circuit alone does the task, and no better than its model.",
    "necessary": "The model without the circuit does not do the task.",
    "robust": "The circuit does the task whatever part of the rest is there.",
    "same mechanism": "The circuit's nodes and edges do in the model what they do alone.",
    "general": "On prompts of other forms the circuit answers as the model does.",
    "better than chance": "Pruning finds nothing of the size where there is nothing to find.",
    "minimal": "Nothing in the circuit can go.",
    "stable": "Other seeds and data give the same circuit.",
}
"""What each claim says."""


@dataclass(frozen=True)
class Finding:
    """One measurement, with what it is compared with."""

    claim: Claim
    name: str
    value: float
    threshold: float
    at_most: bool
    """Whether the value has to be at most the threshold; otherwise at least."""
    why: str
    """Why the threshold is what it is."""
    control: float | None = None
    """The same measurement where the claim is known not to hold."""
    control_name: str = ""
    spread: tuple[float, float] | None = None
    """5th and 95th percentile over draws, of the value."""

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of the threshold; NaN is on neither."""
        if math.isnan(self.value):
            return False
        return self.value <= self.threshold if self.at_most else self.value >= self.threshold

    def __str__(self) -> str:
        """One line."""
        sign = "<=" if self.at_most else ">="
        spread = "" if self.spread is None else f" ({self.spread[0]:.3g} to {self.spread[1]:.3g})"
        control = "" if self.control is None else f"; {self.control_name}: {self.control:.3g}"
        verb = "holds" if self.holds else "FAILS"
        return f"{verb}  {self.name}: {self.value:.3g}{spread} {sign} {self.threshold:.3g}{control}"


@dataclass(frozen=True)
class AuditReport:
    """All findings on one circuit.

    Examples:
        >>> found = Finding("necessary", "damage", 0.9, 0.5, at_most=False, why="half")
        >>> report = AuditReport("quotes", (found,))
        >>> report.verdicts()["necessary"], report.verdicts()["minimal"]
        ('holds', 'not tested')
    """

    task: str
    findings: tuple[Finding, ...]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Curves behind findings, as (x, y)."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, circuit, settings and versions; JSON values only."""

    def verdicts(self) -> dict[Claim, Literal["holds", "fails", "not tested"]]:
        """Give for each claim whether all of its findings hold."""
        found: dict[Claim, Literal["holds", "fails", "not tested"]] = {}
        for claim in CLAIMS:
            mine = self.of(claim)
            held = "holds" if all(finding.holds for finding in mine) else "fails"
            found[claim] = held if mine else "not tested"
        return found

    def of(self, claim: Claim) -> list[Finding]:
        """Give the findings on one claim."""
        return [finding for finding in self.findings if finding.claim == claim]

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values, verdicts included."""
        findings = [asdict(each) | {"holds": each.holds} for each in self.findings]
        curves = {name: [list(point) for point in some] for name, some in self.curves.items()}
        return {
            "task": self.task,
            "verdicts": self.verdicts(),
            "findings": findings,
            "curves": curves,
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON; numbers that are not finite become null."""
        plain = json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False)
        write_text(Path(path), plain + "\n")

    def __str__(self) -> str:
        """Every claim in words, its verdict and the lines behind it."""
        lines = [f"Audit of the circuit for {self.task}"]
        for claim, verdict in self.verdicts().items():
            lines.append(f"{claim}: {verdict.upper()}. {CLAIMS[claim]}")
            lines += [f"    {finding}" for finding in self.of(claim)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """One line."""
        counts = list(self.verdicts().values())
        said = ", ".join(f"{counts.count(v)} {v}" for v in ("holds", "fails", "not tested"))
        return f"AuditReport({self.task}: {said})"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
