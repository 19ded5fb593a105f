"""Cells: the pieces of work of a sweep, each a function of its own settings alone.

1. A cell is frozen data: what to train (`ModelCell`), SAEs of which model (`SAECell`), what to
   prune on which model, with or without SAEs (`CircuitCell`), whose nodes to score for concepts
   (`ConceptCell`), or what to score on held-out text, a model (`BitsCell`) or n-grams
   (`NGramCell`). Its `spec` says all of it as JSON, and the hash of that is its `key`.
2. `needs` are cells that have to be done before.
3. `work.do` does a cell and gives a small result, as JSON. The same cell gives the same result, bit
   for bit, on the same kind of machine: seeds are part of it, times are not.

Nothing here knows how cells are done, in which order, or where.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.rules import POSITIVE_INTEGER, WORD, check_fields, checks_itself, choice
from tl_sparse.sae_arm import SAESettings
from tl_sparse.sweeps.text import Text


class Cell(ABC):
    """One piece of work."""

    kind: ClassVar[str]

    @property
    def needs(self) -> "tuple[Cell, ...]":
        """The cells that have to be done before."""
        return ()

    @property
    @abstractmethod
    def label(self) -> str:
        """What is done, in a few words."""

    def spec(self) -> dict[str, Any]:
        """Give everything that the result hangs on, as plain JSON values."""
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        return json.loads(json.dumps({"kind": self.kind} | values))

    @cached_property
    def key(self) -> str:
        """The cell's name in a store: a hash of its spec."""
        text = json.dumps(self.spec(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Cell | Text):
        return value.spec()
    if isinstance(value, AuditConfig):
        # An option that came later and limits nothing leaves the names of older cells as they are.
        return {k: v for k, v in value.to_dict().items() if (k, v) != ("max_nodes", None)}
    return value.to_dict() if hasattr(value, "to_dict") else value


@checks_itself
@dataclass(frozen=True, kw_only=True)
class ModelCell(Cell):
    """Train one model: `train`, on a shape of `presets.demo_shape`."""

    kind: ClassVar[str] = "model"

    text: Text
    width: int
    """d_model; heads of 16, d_mlp = 4 x d_model."""
    n_layers: int = 2
    n_ctx: int = 128
    sparsity: SparsityConfig
    training: TrainingConfig
    """Its seed seeds the weights too."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_fields(self, POSITIVE_INTEGER, "width", "n_layers", "n_ctx")
        check_fields(self, choice("cpu", "cuda"), "device")

    @property
    def label(self) -> str:
        """Width, densities and seed."""
        density, activations = self.sparsity.weight_density, self.sparsity.site_density("attn_in")
        arm = "dense" if density == 1 else f"density {density:.3g}"
        arm += "" if activations == 1 else f", activations {activations:.3g}"
        return f"train width {self.width}, {arm}, seed {self.training.seed}"


@checks_itself
@dataclass(frozen=True, kw_only=True)
class SAECell(Cell):
    """Train a set of SAEs on one model, and score them: `sae_arm.train_saes`, `score_saes`."""

    kind: ClassVar[str] = "saes"

    model: ModelCell
    settings: SAESettings
    n_eval_windows: int = 64
    """Windows of the validation text that they are scored on."""

    def __post_init__(self) -> None:
        check_fields(self, POSITIVE_INTEGER, "n_eval_windows")

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The model."""
        return (self.model,)

    @property
    def label(self) -> str:
        """SAEs and model."""
        return f"train SAEs {self.settings.name}, {self.model.label.removeprefix('train ')}"


@checks_itself
@dataclass(frozen=True, kw_only=True)
class CircuitCell(Cell):
    """Prune one task on one model, and audit the circuit if asked to.

    Raises:
        ValueError: If the SAEs are another model's.
    """

    kind: ClassVar[str] = "circuit"

    model: ModelCell
    task: str
    pruning: PruningConfig
    n_reference_tokens: int = 2**18
    audit: AuditConfig | None = None
    saes: SAECell | None = None
    """SAEs to splice into the model first, so that nodes are latents. Without them they are not in
    the spec, so that the names of cells are what they were before there were any."""

    def __post_init__(self) -> None:
        check_fields(self, WORD, "task")
        check_fields(self, POSITIVE_INTEGER, "n_reference_tokens")
        _check_saes(self.model, self.saes)

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The model, and the SAEs if there are any."""
        return (self.model,) if self.saes is None else (self.model, self.saes)

    @property
    def label(self) -> str:
        """Task, target and model."""
        how = "" if self.pruning.method == "learned" else f" by {self.pruning.method}"
        on = self.model.label.removeprefix("train ")
        latents = "" if self.saes is None else f", SAEs {self.saes.settings.name}"
        return f"prune {self.task}{how} at {self.pruning.target_loss:g}, {on}{latents}"

    def spec(self) -> dict[str, Any]:
        """Give everything that the result hangs on; the model of the SAEs is said once."""
        return _without_twice(super().spec())


@checks_itself
@dataclass(frozen=True, kw_only=True)
class ConceptCell(Cell):
    """Score a model's nodes, or the latents of SAEs on it, for concepts: `concepts.score`.

    Raises:
        ValueError: If the SAEs are another model's.
    """

    kind: ClassVar[str] = "concepts"

    model: ModelCell
    saes: SAECell | None = None
    """SAEs whose latents to score in place of the model's nodes."""
    n_tokens: int = 200_000
    """Tokens of the validation text that are read."""

    def __post_init__(self) -> None:
        check_fields(self, POSITIVE_INTEGER, "n_tokens")
        _check_saes(self.model, self.saes)

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The model, and the SAEs if there are any."""
        return (self.model,) if self.saes is None else (self.model, self.saes)

    @property
    def label(self) -> str:
        """Model and SAEs."""
        latents = "" if self.saes is None else f", SAEs {self.saes.settings.name}"
        return f"concepts, {self.model.label.removeprefix('train ')}{latents}"

    def spec(self) -> dict[str, Any]:
        """Give everything that the result hangs on; the model of the SAEs is said once."""
        return _without_twice(super().spec())


def _check_saes(model: ModelCell, saes: SAECell | None) -> None:
    if saes is not None and saes.model != model:
        raise ValueError(
            f"saes are of the cell's own model, {model.label}; these are of {saes.model.label}."
        )


def _without_twice(spec: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a spec the model of its SAEs, which stands in it, or its SAEs if it has none."""
    saes = spec.pop("saes")
    if saes is None:
        return spec
    return spec | {"saes": {k: v for k, v in saes.items() if k != "model"}}


@checks_itself
@dataclass(frozen=True, kw_only=True)
class BitsCell(Cell):
    """Score one model on all of the validation text: `capability.capability_row`."""

    kind: ClassVar[str] = "bits"

    model: ModelCell

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The model."""
        return (self.model,)

    @property
    def label(self) -> str:
        """The model."""
        return f"bits per byte, {self.model.label.removeprefix('train ')}"


@checks_itself
@dataclass(frozen=True, kw_only=True)
class NGramCell(Cell):
    """Count n-grams on all of the training text, and score them as `BitsCell` scores models."""

    kind: ClassVar[str] = "n-grams"

    text: Text
    order: int
    """Tokens of the longest ones."""
    n_ctx: int = 128
    """Tokens of a window of validation text, as the models' that they stand beside."""

    def __post_init__(self) -> None:
        check_fields(self, POSITIVE_INTEGER, "order", "n_ctx")

    @property
    def label(self) -> str:
        """The order."""
        return f"bits per byte, {self.order}-grams"


def cell_of(spec: Mapping[str, Any]) -> Cell:
    """Build the cell that a spec describes.

    Raises:
        ValueError: If it describes none.
    """
    values = dict(spec)
    kind = values.pop("kind", None)
    builders = {
        "model": _model_of, "saes": _saes_of, "circuit": _circuit_of,
        "concepts": _concepts_of, "bits": _bits_of, "n-grams": _ngrams_of,
    }  # fmt: skip
    if kind not in builders:
        raise ValueError(f"A cell's kind is one of {', '.join(builders)}, got {kind!r}.")
    try:
        return builders[kind](values)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"This is no {kind} cell of this version: {error}. Remove its file; the sweep makes it "
            "anew."
        ) from error


def _model_of(values: dict[str, Any]) -> ModelCell:
    values["text"] = Text(**values["text"])
    values["sparsity"] = SparsityConfig.from_dict(values["sparsity"])
    values["training"] = TrainingConfig.from_dict(values["training"])
    return ModelCell(**values)


def _model_in(values: dict[str, Any]) -> ModelCell:
    model = cell_of(values["model"])
    if not isinstance(model, ModelCell):
        raise TypeError("its model is none")
    return model


def _saes_of(values: dict[str, Any]) -> SAECell:
    values["model"] = _model_in(values)
    values["settings"] = SAESettings.from_dict(values["settings"])
    return SAECell(**values)


def _with_model_and_saes(values: dict[str, Any]) -> dict[str, Any]:
    found = values | {"model": _model_in(values)}
    if values.get("saes") is not None:
        found["saes"] = cell_of(values["saes"] | {"model": values["model"]})
        if not isinstance(found["saes"], SAECell):
            raise TypeError("its SAEs are none")
    return found


def _concepts_of(values: dict[str, Any]) -> ConceptCell:
    return ConceptCell(**_with_model_and_saes(values))


def _circuit_of(values: dict[str, Any]) -> CircuitCell:
    values = _with_model_and_saes(values)
    values["pruning"] = PruningConfig.from_dict(values["pruning"])
    if values["audit"] is not None:
        values["audit"] = AuditConfig.from_dict(values["audit"])
    return CircuitCell(**values)


def _bits_of(values: dict[str, Any]) -> BitsCell:
    values["model"] = _model_in(values)
    return BitsCell(**values)


def _ngrams_of(values: dict[str, Any]) -> NGramCell:
    values["text"] = Text(**values["text"])
    return NGramCell(**values)
