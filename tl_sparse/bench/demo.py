"""Pruning and a compiled circuit, on the sparse model and the task of a finished demo.

The circuit's file says how it was pruned and holds the reference value of every node, which is all
that `prune` needs: the text that the model was trained on is not read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tl_sparse.ablation import References
from tl_sparse.bench.circuits import answer_candidates, evaluation
from tl_sparse.bench.timing import Candidate, Measurement, Run
from tl_sparse.circuit import Circuit
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.config import PruningConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import prune
from tl_sparse.pruning.trial import spread_over
from tl_sparse.tasks import PairTask, get

MODEL, CIRCUIT = Path("sparse/checkpoint/model"), Path("sparse/circuit.json")
"""Where a demo's folder has them; the circuit is written at the end."""

N_PROMPTS = 1024


def check_folder(folder: Path) -> None:
    """Check that a folder holds a demo that ran to its end, without reading it.

    Raises:
        ValueError: If model or circuit is absent.
    """
    for part in (MODEL, CIRCUIT):
        if not (folder / part).exists():
            raise ValueError(
                f"demo is the folder of a finished demo, and {str(folder)!r} has no {part}. Run "
                f"`tl-sparse demo --folder {folder}` to its end, or leave demo out."
            )


@dataclass(frozen=True)
class Demo:
    """What is measured on: the sparse arm of a demo."""

    folder: Path
    circuit: Circuit
    task: PairTask

    @classmethod
    def open(cls, folder: Path) -> "Demo":
        """Read a demo's folder.

        Raises:
            ValueError: If it is no finished demo's, or its circuit is not its model's.
        """
        check_folder(folder)
        circuit = Circuit.load(folder / CIRCUIT)
        model = HookedSparseTransformer.load(folder / MODEL)
        check_circuit(circuit, model)
        task = get(circuit.task, tokenizer=model.tokenizer)
        assert isinstance(task, PairTask)
        return cls(folder, circuit, task)

    def kinds(self) -> dict[str, Callable[[torch.device], list[Measurement]]]:
        """Give what can be measured on it, by kind."""
        return {"pruning": self.pruning, "compiled": self.compiled}

    def model(self, device: torch.device) -> HookedSparseTransformer:
        """Load the model anew: the candidates of a measurement must not share one."""
        return HookedSparseTransformer.load(self.folder / MODEL, device=str(device))

    def pruning(self, device: torch.device) -> list[Measurement]:
        """Measure the whole of `prune` with the demo's settings, twice at most."""
        candidates = (
            Candidate("model on the validation pairs", partial(self._evaluation, device)),
            Candidate("prune", partial(self._prune, device)),
        )
        case = f"{self.task.name}, the whole call"
        return [
            Measurement(kind="pruning", size="demo", case=case, candidates=candidates, max_rounds=2)
        ]

    @contextmanager
    def _evaluation(self, device: torch.device) -> Iterator[Run]:
        with evaluation(self.model(device), self.task, "validation") as run:
            yield run

    @contextmanager
    def _prune(self, device: torch.device) -> Iterator[Run]:
        model, circuit = self.model(device), self.circuit
        config = PruningConfig.from_dict(circuit.provenance["pruning"])
        values = {
            site: torch.tensor(some, dtype=model.cfg.dtype, device=device)
            for site, some in circuit.references.items()
        }
        provenance = circuit.provenance["references"]
        references = References(values, circuit.ablation, circuit.model_hash, provenance)
        yield lambda: prune(model, self.task, references, config, progress=False)

    def compiled(self, device: torch.device) -> list[Measurement]:
        """Measure the answers to 1,024 prompts of the task, spread over its training pairs."""
        pairs = spread_over(self.task, "train", N_PROMPTS // 2)
        candidates = answer_candidates(
            self.model, lambda model: self.circuit, self.task, device, pairs
        )
        case = f"{self.task.name}, {self.circuit.n_edges} edges"
        return [Measurement(kind="compiled", size="demo", case=case, candidates=candidates)]
