"""Checkpoints of a training run: written whole or not at all, read back to the same bits."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import Parameter

from tl_sparse.checkpoints import (
    config_to_dict,
    read_json,
    read_tensors,
    versions,
    write_tensors,
)
from tl_sparse.config import TrainingConfig
from tl_sparse.data import Corpus
from tl_sparse.files import recover_folder, whole_folder, write_text
from tl_sparse.history import Sums, read_log
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.training.objective import Objective


def stopped_early(folder: Path) -> bool:
    """Tell whether a folder holds a run that was stopped before its last step.

    A model that was put there without its run counts as finished.
    """
    done, total = steps_done(folder)
    return done != total


def steps_done(folder: Path) -> tuple[int, int]:
    """Give how many steps the run in a folder has done, and how many it is to do; 0, 0 if none is.

    Raises:
        ValueError: If the checkpoint is damaged.
    """
    place = folder / "checkpoint" / "state.json"
    if not place.is_file():
        return 0, 0
    state = read_json(place)
    return state.get("step", 0), state.get("total", 0)


class SavedRun:
    """What a training run writes down, and how it takes that up again."""

    model: HookedSparseTransformer
    objective: Objective
    corpus: Corpus
    config: TrainingConfig
    folder: Path | None
    total: int
    """Steps of the whole run."""
    step: int
    """Steps that are done."""
    seconds: float
    sums: Sums
    records: list[dict[str, Any]]
    """Lines of the log."""
    parameters: dict[str, Parameter]
    optimizer: Any
    accelerator: Accelerator
    all_to_live: float
    """Norm of the last gradient for all weights, over that of its part for live ones."""
    scaler_state: dict[str, Any] | None = None

    def write_checkpoint(self, place: Path) -> None:
        """Write model, moments and position in the run, whole or not at all."""
        state, scaler = self.optimizer.state, self.accelerator.scaler
        moments = {
            f"{name}/{key}": state[parameter][key]
            for name, parameter in self.parameters.items()
            for key in ("exp_avg", "exp_avg_sq", "step")
            if key in state[parameter]
        }
        position = self.identity() | {
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums.__dict__,
            "all_to_live": self.all_to_live,
            "scaler": None if scaler is None else scaler.state_dict(),
            "versions": versions(),
        }
        with whole_folder(place) as new:
            self.model.save(new / "model")
            self.objective.save(new)
            write_tensors(new / "moments.safetensors", moments)
            (new / "state.json").write_text(json.dumps(position, indent=1), encoding="utf-8")

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on."""
        return {
            "config": json.loads(json.dumps(self.config.to_dict())),
            "sparsity": self.model.sparsity.to_dict(),
            "shape": config_to_dict(self.model.cfg),
            "corpus": self.corpus.hash,
            "total": self.total,
            "objective": self.objective.identity(),
        }

    def resume(self) -> bool:
        """Take up the run that the folder holds, if there is one."""
        if self.folder is None:
            return False
        place = self.folder / "checkpoint"
        recover_folder(place)
        if not place.is_dir():
            (self.folder / "log.jsonl").unlink(missing_ok=True)
            return False
        state = read_json(place / "state.json")
        for key, mine in self.identity().items():
            if state.get(key) != mine:
                raise ValueError(
                    f"{self.folder} holds a run with another {key}: {state.get(key)} there, {mine} "
                    "now. Give another folder, or remove it to start anew."
                )
        saved = HookedSparseTransformer.load(place / "model")
        moments = read_tensors(place / "moments.safetensors")
        with torch.no_grad():
            theirs = dict(saved.named_parameters())
            for name, parameter in self.model.named_parameters():
                parameter.copy_(theirs[name])
        for name, mask in saved.weight_masks.items():
            self.model.weight_masks.set_(name, mask)
        self.objective.load_(place)
        for name, parameter in self.parameters.items():
            keys = [key for key in ("exp_avg", "exp_avg_sq", "step") if f"{name}/{key}" in moments]
            self.optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].to(parameter.device) for key in keys
            }
        try:
            self.step, self.seconds = state["step"], state["seconds"]
            self.sums, self.scaler_state = Sums(**state["sums"]), state["scaler"]
            self.all_to_live = state["all_to_live"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place / 'state.json'} is damaged: {error!r}.") from None
        log = self.folder / "log.jsonl"
        self.records = [record for record in read_log(log) if record["step"] <= self.step]
        write_text(log, "".join(json.dumps(record) + "\n" for record in self.records))
        return True
