"""Make a pair of the zoo from the models of a sweep: tl_sparse/zoo/python-tiny.

    tl-sparse sweep figure2 --preset laptop --seeds 0 --folder results/replication --workers 2
    python examples/make_zoo.py --seed 0

Takes the main sparse model and the dense one of nearest validation loss, with the circuits that the
sweep found in them, and rounds their bigram tables to half precision, so that the pair is small.
The table adds to the logits alone: the nodes' values, and the circuits' references, stay what they
are. Losses are measured again, and every circuit is audited on the rounded model.
"""

import argparse
import subprocess
from dataclasses import replace
from pathlib import Path

import torch

from tl_sparse import AuditConfig, Circuit, HookedSparseTransformer, audit, only_circuit, zoo
from tl_sparse.auditing import AuditReport
from tl_sparse.checkpoints import versions
from tl_sparse.data import Corpus
from tl_sparse.pruning import evaluate
from tl_sparse.sites import model_hash
from tl_sparse.sweeps import FIGURES, PRESETS, CircuitCell, ModelCell, Store
from tl_sparse.sweeps.results import Finished
from tl_sparse.tasks import PAPER_TASKS, Task, get

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Choose the models, find their circuits, write the pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "replication")
    parser.add_argument("--preset", default="laptop", choices=PRESETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="python-tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "tl_sparse" / "zoo")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "zoo")
    args = parser.parse_args()
    preset, store = replace(PRESETS[args.preset], seeds=(args.seed,)), Store(args.folder)
    text = preset.text(store.text_folder)
    done = Finished(FIGURES["figure2"](preset, text), store)
    (sparse,) = done.sparse()
    control = done.match(sparse)
    assert control is not None, "No dense model is done; run the sweep first."
    corpus = text.open(store.text_folder)
    models, circuits, audits, losses = {}, {}, {}, {}
    for arm, cell in (("sparse", sparse), ("control", control)):
        model = rounded(store, cell)
        models[arm] = model
        circuits[arm] = {c.task: carried_over(c, store, model) for c in done.tried(cell)}
        circuits[arm] = {name: each for name, each in circuits[arm].items() if each is not None}
        audits[arm] = audited(model, circuits[arm], corpus, args.work, args.seed)
        losses[arm] = {"validation_loss": done.loss(cell), "width": cell.width, "key": cell.key}
    card = {
        "command": f"tl-sparse sweep figure2 --preset {args.preset} --seeds {args.seed}; "
        f"python examples/make_zoo.py --seed {args.seed}",
        "commit": commit(), "corpus": corpus.hash, "models": losses,
        "tasks": {arm: accuracies(model) for arm, model in models.items()},
        "versions": versions(),
    }  # fmt: skip
    pair = zoo.Pair(args.name, models["sparse"], models["control"], circuits, audits, card)
    zoo.write(pair, args.out / args.name)
    size = sum(path.stat().st_size for path in (args.out / args.name).rglob("*"))
    print(f"{args.out / args.name}: {size / 1e6:.1f} MB")


def rounded(store: Store, cell: ModelCell) -> HookedSparseTransformer:
    """Load a model and round its bigram table to half precision."""
    model = HookedSparseTransformer.load(store.model_folder(cell))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("bigram."):
                parameter.copy_(parameter.half().float())
    return model


def carried_over(cell: CircuitCell, store: Store, model: HookedSparseTransformer) -> Circuit | None:
    """Take a circuit that was found before the rounding, and measure its losses again."""
    path = store.place(cell.model) / "circuits" / f"{cell.key}.json"
    if not path.is_file():
        return None
    circuit = replace(Circuit.load(path), model_hash=model_hash(model))
    task = get(cell.task, tokenizer=model.tokenizer)
    return replace(circuit, losses=losses_of(model, circuit, task))


def losses_of(model: HookedSparseTransformer, circuit: Circuit, task: Task) -> dict[str, float]:
    """Measure what `prune` notes of a circuit."""
    losses = {}
    for split in ("validation", "test"):
        losses[f"model_{split}"], accuracy = evaluate(model, task, split)
        with only_circuit(model, circuit):
            losses[split], alone = evaluate(model, task, split)
    return losses | {"model_test_accuracy": accuracy, "test_accuracy": alone}


def audited(
    model: HookedSparseTransformer,
    circuits: dict[str, Circuit],
    corpus: Corpus,
    work: Path,
    seed: int,
) -> dict[str, AuditReport]:
    """Audit every circuit that has a node; reports are kept in the work folder."""
    found = {}
    for name, circuit in circuits.items():
        if not circuit.nodes:
            continue
        kept = work / f"{circuit.model_hash[:12]}-{name}.json"
        if not kept.is_file():
            task = get(name, tokenizer=model.tokenizer)
            config = replace(AuditConfig.quick(), seed=seed)
            audit(model, circuit, task, corpus, config).save(kept)
        found[name] = AuditReport.load(kept)
        print(f"{name}: {circuit!r}", flush=True)
    return found


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
