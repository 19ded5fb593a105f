"""Make a pair of the zoo from the models of a sweep: tl_sparse/zoo/python-tiny.

    tl-sparse sweep figure2 --preset laptop --seeds 0 --folder results/replication --workers 2
    python examples/make_zoo.py --seed 0

Takes the main sparse model and the dense one of nearest validation loss, rounds their bigram tables
to half precision (so that the pair is small; nothing else is changed), and prunes and audits every
task of the paper that they do, on the rounded models. What is found is kept in the work folder, and
a second run goes on from there.
"""

import argparse
import subprocess
from dataclasses import replace
from pathlib import Path

import torch

from tl_sparse import AuditConfig, Circuit, HookedSparseTransformer, audit, prune, references, zoo
from tl_sparse.auditing import AuditReport
from tl_sparse.checkpoints import versions
from tl_sparse.config import PruningConfig
from tl_sparse.data import Corpus
from tl_sparse.pruning import TaskGateError, UnreachableTargetError, evaluate
from tl_sparse.sweeps import FIGURES, PRESETS, ModelCell, Store
from tl_sparse.sweeps.results import Finished
from tl_sparse.tasks import PAPER_TASKS, get

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Choose the models, find their circuits, write the pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "replication")
    parser.add_argument("--preset", default="laptop", choices=PRESETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="python-tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "tl_sparse" / "zoo")
    parser.add_argument("--work", type=Path, default=Path("zoo-work"))
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
        found = circuits_of(model, corpus, args.work / arm, args.seed)
        models[arm], circuits[arm], audits[arm] = model, *found
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


def circuits_of(
    model: HookedSparseTransformer, corpus: Corpus, work: Path, seed: int
) -> tuple[dict[str, Circuit], dict[str, AuditReport]]:
    """Prune and audit every task that the model does, or open what was found before."""
    circuits, audits = {}, {}
    refs = references(model, corpus, 2**18)
    for name in PAPER_TASKS:
        kept, kept_audit = work / f"{name}.json", work / f"{name}.audit.json"
        task = get(name, tokenizer=model.tokenizer)
        if not kept.is_file() or Circuit.load(kept).model_hash != refs.model_hash:
            try:
                circuit = prune(model, task, refs, PruningConfig(seed=seed))
            except (TaskGateError, UnreachableTargetError) as error:
                print(f"{name}: {error}", flush=True)
                continue
            if circuit.nodes:
                audit(model, circuit, task, corpus, AuditConfig(seed=seed)).save(kept_audit)
            circuit.save(kept)
        circuits[name] = Circuit.load(kept)
        if circuits[name].nodes:
            audits[name] = AuditReport.load(kept_audit)
        print(f"{name}: {circuits[name].n_edges} edges", flush=True)
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
