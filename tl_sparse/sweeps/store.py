"""The store: a folder that holds what is done, a small JSON file for each cell.

    folder/cells/<key>.json     spec and result of a finished cell: what is committed
    folder/models/<key>/        a model's checkpoint and log, SAEs, references, circuits, audits:
                                large, made again where missing and something still needs it
    folder/seconds/<key>.json   how long the cell took, outside of its result
    folder/text/                the tokens

A cell's file appears whole or not at all, and only when the cell is done. So a sweep that is killed
at any moment goes on from the finished cells, and training from its last checkpoint.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tl_sparse.files import write_text
from tl_sparse.sae_arm import missing_sites
from tl_sparse.sweeps.cells import Cell, ModelCell, SAECell
from tl_sparse.training import stopped_early

FORMAT = "tl_sparse.cell/1"

HASHES = ("model_hash", "saes_hash")
"""What a result says of the weights that it came of; `saes_hash` is of the model with its SAEs."""


class Store:
    """The finished cells in a folder, which need not be there yet.

    Raises:
        ValueError: If there is a file in its place.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"folder is where cells, models and text are kept, and {str(folder)!r} is a file. "
                "Give another name."
            )

    def __repr__(self) -> str:
        """Folder and count."""
        n = len(list((self.folder / "cells").glob("*.json")))
        return f"Store({str(self.folder)!r}, {n} cells done)"

    @property
    def text_folder(self) -> Path:
        """Where the tokens are."""
        return self.folder / "text"

    def place(self, cell: ModelCell) -> Path:
        """Give the folder for what a model leaves beside its result."""
        return self.folder / "models" / cell.key

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Give the result of a cell, or None if it is not done.

        A circuit or SAEs of a model that was since trained to other weights, on another machine,
        count as not done; so does a circuit of other SAEs.

        Raises:
            ValueError: If its file can't be read.
        """
        found = self._read(cell)
        if found is None:
            return None
        for needed in cell.needs:
            given = self._read(needed)
            if given is None or any(given[h] != found.get(h) for h in HASHES if h in given):
                return None
        return found

    def _read(self, cell: Cell) -> dict[str, Any] | None:
        path = self.file(cell)
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            good = kept["format"] == FORMAT and kept["cell"] == cell.spec()
            result = dict(kept["result"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no cell's file: {error}. Remove it.") from error
        if not good:
            raise ValueError(f"{path} holds another cell than its name says. Remove it.")
        return result

    def keep(self, cell: Cell, result: Mapping[str, Any], *, seconds: float) -> None:
        """Write down that a cell is done.

        Raises:
            OSError: If the disk is full; nothing half-written is left.
        """
        whole = {"format": FORMAT, "cell": cell.spec(), "result": dict(result)}
        taken = {"cell": cell.label, "seconds": round(seconds, 1)}
        write_text(self.folder / "seconds" / f"{cell.key}.json", json.dumps(taken) + "\n")
        write_text(self.file(cell), json.dumps(whole, indent=1, sort_keys=True) + "\n")

    def n_made_from(self, cell: Cell) -> int:
        """Count the finished cells, of any plan, that are made from the weights of a finished one.

        Those are a model's SAEs, circuits and scores, and a set of SAEs' circuits and scores.
        """
        made = self._read(cell) or {}
        weights = {name: made[name] for name in HASHES if made.get(name)}
        if not weights:
            return 0
        others = (p for p in (self.folder / "cells").glob("*.json") if p != self.file(cell))
        results = (json.loads(path.read_text(encoding="utf-8"))["result"] for path in others)
        return sum(weights.items() <= result.items() for result in results)

    def seconds(self, cells: Iterable[Cell]) -> float:
        """Add up the seconds that cells took on the machines that they ran on."""
        total = 0.0
        for cell in cells:
            path = self.folder / "seconds" / f"{cell.key}.json"
            if path.is_file():
                total += json.loads(path.read_text(encoding="utf-8"))["seconds"]
        return total

    def pending(self, cells: Iterable[Cell]) -> list[Cell]:
        """List what is to be done for some cells, each after what it needs.

        A model or SAEs that are done are trained again only where they are gone, or half trained
        anew, and a cell that is not done needs them.
        """
        found: dict[str, Cell] = {}

        def add(cell: Cell) -> None:
            if cell.key in found:
                return
            for needed in cell.needs:
                if self.result(needed) is None or not self._is_here(needed):
                    add(needed)
            found[cell.key] = cell

        for cell in cells:
            if self.result(cell) is None:
                add(cell)
        return list(found.values())

    def _is_here(self, cell: Cell) -> bool:
        if isinstance(cell, SAECell):
            return missing_sites(self.saes_folder(cell)) == []
        if isinstance(cell, ModelCell):
            return self.model_folder(cell).is_dir() and not stopped_early(self.place(cell))
        return True

    def model_folder(self, cell: ModelCell) -> Path:
        """Give the folder of the trained model."""
        return self.place(cell) / "checkpoint" / "model"

    def saes_folder(self, cell: SAECell) -> Path:
        """Give the folder of the SAEs: another one for other weights of the model."""
        model = self._read(cell.model)
        weights = "untrained" if model is None else model["model_hash"][:16]
        return self.place(cell.model) / "saes" / f"{cell.key}-{weights}"

    def file(self, cell: Cell) -> Path:
        """Give the file of a finished cell."""
        return self.folder / "cells" / f"{cell.key}.json"
