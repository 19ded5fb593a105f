"""Make a pair of the zoo from the models of a sweep: tl_sparse/zoo/python-tiny.

    tl-sparse sweep figure2 --preset laptop --seeds 0 --folder results/replication --workers 2
    python experiments/make_zoo.py --seed 0

Takes the main sparse model and the dense one of nearest validation loss, with the circuits that the
sweep found in them at the paper's target and the audits that it made of these. Nothing is trained,
pruned or audited here.
"""

import argparse
import subprocess
from dataclasses import replace
from pathlib import Path

from tl_sparse import Circuit, HookedSparseTransformer, zoo
from tl_sparse.auditing import AuditReport
from tl_sparse.checkpoints import versions
from tl_sparse.pruning import evaluate
from tl_sparse.sites import model_hash
from tl_sparse.sweeps import FIGURES, PRESETS, CircuitCell, ModelCell, Store
from tl_sparse.sweeps.figures.finished import Finished
from tl_sparse.tasks import PAPER_TASKS, get

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Choose the models, find their circuits, write the pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "replication")
    parser.add_argument("--preset", default="laptop", choices=PRESETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="python-tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "tl_sparse" / "zoo")
    args = parser.parse_args()
    preset, store = replace(PRESETS[args.preset], seeds=(args.seed,)), Store(args.folder)
    text = preset.text(store.text_folder)
    done = Finished(FIGURES["figure2"](preset, text), store)
    (sparse,) = done.sparse()
    control = done.match(sparse)
    assert control is not None, "No dense model is done; run the sweep first."
    command = (
        f"tl-sparse sweep figure2 --preset {args.preset} --seeds {args.seed}; "
        f"python experiments/make_zoo.py --seed {args.seed}"
    )
    write_pair(done, store, sparse, control, args.out / args.name, command=command)


def write_pair(
    done: Finished, store: Store, sparse: ModelCell, control: ModelCell, out: Path, *, command: str
) -> None:
    """Write two trained models, and what was found in them, as a pair's folder."""
    models, circuits, audits, losses = {}, {}, {}, {}
    for arm, cell in (("sparse", sparse), ("control", control)):
        model = models[arm] = HookedSparseTransformer.load(store.model_folder(cell))
        circuits[arm], audits[arm] = found(done.tried(cell), store)
        assert {c.model_hash for c in circuits[arm].values()} == {model_hash(model)}
        losses[arm] = {"validation_loss": done.loss(cell), "width": cell.width, "key": cell.key}
    card = {
        "command": command, "commit": commit(), "corpus": sparse.text.hash, "models": losses,
        "tasks": {arm: accuracies(model) for arm, model in models.items()},
        "versions": versions(),
    }  # fmt: skip
    pair = zoo.Pair(out.name, models["sparse"], models["control"], circuits, audits, card)
    zoo.write(pair, out)
    size = sum(path.stat().st_size for path in out.rglob("*"))
    print(f"{out}: {size / 1e6:.1f} MB")


def found(
    cells: list[CircuitCell], store: Store
) -> tuple[dict[str, Circuit], dict[str, AuditReport]]:
    """Open what the sweep found in a model and how it audited that, by task."""
    circuits, audits = {}, {}
    for cell in cells:
        place = store.place(cell.model)
        circuit = place / "circuits" / f"{cell.key}.json"
        report = place / "audits" / f"{cell.key}.json"
        if circuit.is_file():
            circuits[cell.task] = Circuit.load(circuit)
        if report.is_file():
            audits[cell.task] = AuditReport.load(report)
    return circuits, audits


def accuracies(model: HookedSparseTransformer) -> dict[str, float]:
    """Give the accuracy on the test prompts of each of the paper's tasks."""
    found = {}
    for name in PAPER_TASKS:
        _, found[name] = evaluate(model, get(name, tokenizer=model.tokenizer), "test")
    return found


def commit() -> str:
    """Give the commit of this tree."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
