"""Trained pairs that come with the package: a sparse model, its dense control, their circuits.

```python
from tl_sparse import zoo

pair = zoo.load("python-tiny")
pair.sparse, pair.control                              # HookedSparseTransformers, same tokenizer
pair.circuits["sparse"]["single_double_quote"]         # a Circuit, shown as a drawing in a notebook
pair.audits["sparse"]["single_double_quote"]           # how it went to prove it wrong
print(pair.card["command"])                            # what made it
```

A pair is a folder beside this module, written by `experiments/make_zoo.py`: two model folders, a
JSON file for each circuit and audit, and `card.json` with the commands, losses and versions that it
came from. Circuits and audits belong to exactly these weights; `Circuit.model_hash` says so.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_sparse.auditing import AuditReport
from tl_sparse.checkpoints import read_json
from tl_sparse.circuit import Circuit
from tl_sparse.files import whole_folder
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.rules import checks_itself
from tl_sparse.sites import model_hash

ARMS = ("sparse", "control")

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pair:
    """A sparse model and its dense control, with what was found in them."""

    name: str
    sparse: HookedSparseTransformer
    control: HookedSparseTransformer = field(repr=False)
    circuits: dict[str, dict[str, Circuit]] = field(repr=False)
    """By arm, "sparse" or "control", and task."""
    audits: dict[str, dict[str, AuditReport]] = field(repr=False)
    """Likewise."""
    card: dict[str, Any] = field(repr=False)
    """Commands, validation losses, accuracies, versions."""


def names() -> tuple[str, ...]:
    """List the pairs that come with the package."""
    return tuple(sorted(path.parent.name for path in HERE.glob("*/card.json")))


@checks_itself
def load(name: str, *, device: str = "cpu") -> Pair:
    """Load a pair by name; needs no network.

    Raises:
        ValueError: If there is no pair of that name, or its files are damaged.
    """
    if name not in names():
        raise ValueError(f"There is no pair {name!r}; there are: {', '.join(names()) or 'none'}.")
    return load_folder(HERE / name, device=device)


def load_folder(folder: str | Path, *, device: str = "cpu") -> Pair:
    """Load a pair from a folder of one's own, as `write` left it.

    Raises:
        ValueError: If the folder is no pair's, or damaged, or a circuit is of another model.
    """
    folder = Path(folder)
    models = {arm: HookedSparseTransformer.load(folder / arm, device=device) for arm in ARMS}
    circuits = {
        arm: {p.stem: Circuit.load(p) for p in sorted((folder / "circuits" / arm).glob("*.json"))}
        for arm in ARMS
    }
    for arm, model in models.items():
        own_hash = model_hash(model)
        for task, circuit in circuits[arm].items():
            if circuit.model_hash != own_hash:
                raise ValueError(
                    f"{folder} does not fit together: the circuit {task} was found in another "
                    f"model than {folder / arm}. Copy the whole folder again, or write it anew."
                )
    audits = {
        arm: {p.stem: AuditReport.load(p) for p in sorted((folder / "audits" / arm).glob("*.json"))}
        for arm in ARMS
    }
    card = read_json(folder / "card.json")
    return Pair(folder.name, models["sparse"], models["control"], circuits, audits, card)


def write(pair: Pair, folder: str | Path) -> None:
    """Write a pair into a folder, whole or not at all.

    Raises:
        OSError: If it can't be written; what stood there is untouched.
    """
    with whole_folder(folder) as place:
        for arm, model in (("sparse", pair.sparse), ("control", pair.control)):
            model.save(place / arm)
            for task, circuit in pair.circuits[arm].items():
                circuit.save(place / "circuits" / arm / f"{task}.json")
            for task, report in pair.audits[arm].items():
                report.save(place / "audits" / arm / f"{task}.json")
        (place / "card.json").write_text(json.dumps(pair.card, indent=1) + "\n", encoding="utf-8")
