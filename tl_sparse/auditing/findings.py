"""What an audit says: findings, each of one claim, and the verdicts that follow from them.

No number sums them up: a claim holds only if each of its findings does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tl_sparse.checkpoints import read_json
from tl_sparse.files import write_text
from tl_sparse.rules import checks_itself

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

Verdict = Literal["holds", "fails", "not tested"]


@dataclass(frozen=True)
class Finding:
    """One measurement, with what it is compared with."""

    claim: Claim
    name: str
    value: float
    threshold: float
    """NaN where nothing is known to hold the value against: then the line is not tested."""
    at_most: bool
    """Whether the value has to be at most the threshold; otherwise at least."""
    why: str
    """Why the threshold is what it is."""
    control: float | None = None
    """The same measurement where the claim is known not to hold."""
    control_name: str = ""
    spread: tuple[float, float] | None = None
    """5th and 95th percentile over draws, of the value."""
    over_seeds: tuple[float, ...] = ()
    """The value on the circuits that other seeds of the pruner found."""

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of the threshold; NaN is on neither."""
        if math.isnan(self.value):
            return False
        return self.value <= self.threshold if self.at_most else self.value >= self.threshold

    @property
    def verdict(self) -> Verdict:
        """Whether the line holds, fails, or has no threshold to be tested by."""
        if math.isnan(self.threshold):
            return "not tested"
        return "holds" if self.holds else "fails"

    def __str__(self) -> str:
        """One line."""
        sign = "<=" if self.at_most else ">="
        threshold = f" {sign} {self.threshold:.3g}"
        spread = "" if self.spread is None else f" ({self.spread[0]:.3g} to {self.spread[1]:.3g})"
        control = "" if self.control is None else f"; {self.control_name}: {self.control:.3g}"
        verb = self.verdict.upper() if self.verdict == "fails" else self.verdict
        if self.verdict == "not tested":
            threshold = ""
        line = f"{verb}  {self.name}: {self.value:.3g}{spread}{threshold}{control}"
        if self.over_seeds:
            line += f"; on other seeds: {', '.join(f'{value:.3g}' for value in self.over_seeds)}"
        return line


@dataclass(frozen=True)
class Effect:
    """What one node or edge of the circuit is worth to the loss, in nats; positive helps."""

    part: str
    """The node or edge, as text."""
    ablation: float
    """How far the circuit's loss rises when this alone is taken out."""
    integrated: float
    """Its share of the fall from the empty circuit's loss, by integrated gradients."""


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
    measures: Mapping[str, float] = field(default_factory=dict)
    """Numbers that are no claim: MIB's CPR and CMD."""
    nodes: tuple[Effect, ...] = ()
    """What each node of the circuit is worth."""
    edges: tuple[Effect, ...] = ()
    """What each edge of the circuit is worth."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, circuit, settings and versions; JSON values only."""

    def verdicts(self) -> dict[Claim, Verdict]:
        """Give for each claim whether all of its findings hold; one that is not tested may fail."""
        found: dict[Claim, Verdict] = {}
        for claim in CLAIMS:
            mine = {finding.verdict for finding in self.of(claim)}
            found[claim] = "not tested" if not mine or "not tested" in mine else "holds"
            if "fails" in mine:
                found[claim] = "fails"
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
            "measures": dict(self.measures),
            "nodes": [asdict(each) for each in self.nodes],
            "edges": [asdict(each) for each in self.edges],
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON; numbers that are not finite become null."""
        plain = json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False)
        write_text(Path(path), plain + "\n")

    @classmethod
    @checks_itself
    def from_dict(cls, values: Mapping[str, Any]) -> "AuditReport":
        """Build from `to_dict`'s values or a saved report's; null is NaN, and verdicts come anew.

        Raises:
            ValueError: If the values are no audit's.
        """
        try:
            curves = {
                str(name): [(_number(x), _number(y)) for x, y in some]
                for name, some in values.get("curves", {}).items()
            }
            measures = values.get("measures", {}).items()
            return cls(
                str(values["task"]),
                tuple(_finding(each) for each in values["findings"]),
                curves,
                {str(name): _number(value) for name, value in measures},
                tuple(_effect(each) for each in values.get("nodes", ())),
                tuple(_effect(each) for each in values.get("edges", ())),
                dict(values.get("provenance", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"This is no audit: {what}. An AuditReport is built from what to_dict gives or "
                "save writes."
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> "AuditReport":
        """Read a report that `save` wrote.

        Raises:
            ValueError: If the file is missing or no audit's.
        """
        values = read_json(Path(path))
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _repr_html_(self) -> str:
        """Give what notebooks show: the claims with their verdicts, which open on their lines."""
        from tl_sparse.audit_page import audit_fragment

        return audit_fragment(self)

    def __str__(self) -> str:
        """Every claim in words, its verdict and the lines behind it."""
        lines = [f"Audit of the circuit for {self.task}"]
        for claim, verdict in self.verdicts().items():
            lines.append(f"{claim}: {verdict.upper()}. {CLAIMS[claim]}")
            lines += [f"    {finding}" for finding in self.of(claim)]
        lines += [f"{name}: {value:.3g}" for name, value in self.measures.items()]
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


def _finding(values: Mapping[str, Any]) -> Finding:
    """Build a finding from its plain values."""
    if values["claim"] not in CLAIMS:
        raise ValueError(f"there is no claim {values['claim']!r}")
    control, spread = values.get("control"), values.get("spread")
    value, at_most = _number(values["value"]), bool(values["at_most"])
    if values["value"] is None and values.get("holds"):  # saved as null; NaN never holds
        value = -math.inf if at_most else math.inf
    return Finding(
        values["claim"], str(values["name"]), value, _number(values["threshold"]), at_most,
        why=str(values["why"]),
        control=None if control is None else _number(control),
        control_name=str(values.get("control_name", "")),
        spread=None if spread is None else (_number(spread[0]), _number(spread[1])),
        over_seeds=tuple(_number(each) for each in values.get("over_seeds", ())),
    )  # fmt: skip


def _effect(values: Mapping[str, Any]) -> Effect:
    return Effect(str(values["part"]), _number(values["ablation"]), _number(values["integrated"]))


def _number(value: Any) -> float:
    """Give a number of a saved report, in which null stands for what is not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)
