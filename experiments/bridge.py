"""Tie a sparse model to the dense one of a demo, and steer the dense one by a node of it.

    tl-sparse demo --folder demo
    python experiments/bridge.py demo --out bridged        # half an hour on two cores

1. A dense model of the demo is opened: `--dense dense`, the one of equal width, or `width52` or the
   like, the control of equal loss that a demo with --full has.
2. A sparse model of the demo's recipe is trained from scratch with bridges to it (`bridged/run`; a
   stopped run goes on).
3. The quote task is pruned in the sparse model, and the nodes that its circuit reads are tried on
   validation pairs: which of them needs least strength to turn the dense model's answer?
4. That one's curve on test pairs is written as `bridged/curve.json`, with the figure in
   `bridged/bridge.md`.

`--tiny` shows the way through in a minute, with models too small to do the task.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_sparse import (
    HookedSparseTransformer,
    PruningConfig,
    TrainingConfig,
    data,
    prune,
    references,
)
from tl_sparse import tasks as all_tasks
from tl_sparse.bridges import (
    BridgeConfig,
    Bridges,
    StrengthCurve,
    rank_nodes,
    read_nodes,
    strength_curve,
    train_bridged,
)
from tl_sparse.circuit import Circuit, Node, Site
from tl_sparse.demo import TASK
from tl_sparse.files import write_text
from tl_sparse.history import History
from tl_sparse.presets import DEMO_PRUNING, DEMO_SPARSITY, DEMO_TRAINING, demo_shape
from tl_sparse.pruning import TaskGateError, UnreachableTargetError
from tl_sparse.tasks import PairTask


@dataclass(frozen=True)
class Size:
    """How much work is done."""

    width: int
    training: TrainingConfig
    pruning: PruningConfig
    n_reference_tokens: int
    n_tried: int
    """Nodes that are tried at most."""


NORMAL = Size(
    width=128,
    training=replace(DEMO_TRAINING, n_tokens=2_097_152),
    pruning=replace(DEMO_PRUNING, target_loss=0.15),
    n_reference_tokens=2**18,
    n_tried=512,
)
TINY = Size(
    width=32,
    training=TrainingConfig(n_tokens=20_000, batch_size=8, eval_every=20, n_eval_windows=8),
    pruning=PruningConfig(target_loss=0.8, n_steps=20, min_accuracy=0.0),
    n_reference_tokens=2**12,
    n_tried=4,
)


def open_demo(folder: Path, name: str) -> tuple[HookedSparseTransformer, data.Corpus]:
    """Open a dense model that a demo's folder holds, and the corpus."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    corpus = data.python_corpus(
        n_characters=settings["n_characters"], vocab_size=1024, cache_dir=folder / "corpus"
    )
    return HookedSparseTransformer.load(folder / name / "checkpoint" / "model"), corpus


def find_circuit(
    sparse: HookedSparseTransformer, task: PairTask, corpus: data.Corpus, size: Size, out: Path
) -> Circuit | None:
    """Prune the task in the sparse model, or say why that can't be done."""
    refs = references(sparse, corpus, size.n_reference_tokens)
    try:
        circuit = prune(sparse, task, refs, size.pruning)
    except (TaskGateError, UnreachableTargetError) as error:
        print(f"No circuit: {error}")
        return None
    circuit.save(out / "circuit.json")
    print(circuit)
    return circuit


def every_read(sparse: HookedSparseTransformer) -> tuple[Node, ...]:
    """Give all nodes that attention and MLPs read."""
    sites = [Site(n, name) for n in range(sparse.cfg.n_layers) for name in ("attn_in", "mlp_in")]
    return tuple(Node(site, channel) for site in sites for channel in range(sparse.cfg.d_model))


def page(found: dict[str, Any], curve: StrengthCurve) -> str:
    """Write what came out as Markdown, with the figure."""
    log = found["training"]
    half = curve.strength_at(0.5)
    reached = "never" if half is None else f"at strength {half:.2f}"
    rows = "\n".join(f"| {name} | {log[name]:.3f} |" for name in log)
    tried = "\n".join(
        f"| {c['node']} | {max(c['probability']):.3f} | {_number(c['strength_at_half'])} |"
        for c in found["validation"][:10]
    )
    return (
        f"# {curve.task}: the dense model steered through bridges\n\n"
        f"Dense model: {found['dense']}. Node {curve.node} of the sparse model, chosen from "
        f"{found['candidates']}. On {curve.n_prompts} test prompts P(counterfactual answer) rises "
        f"from {curve.probability[0]:.3f} to {max(curve.probability):.3f} and reaches one half "
        f"{reached}.\n\n{curve.draw()}\n\n"
        f"| at the end of training | value |\n|---|---|\n{rows}\n\n"
        "| node, on validation pairs | highest P | strength at one half |\n"
        f"|---|---|---|\n{tried}\n"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def steer_by_the_best(
    dense: HookedSparseTransformer,
    sparse: HookedSparseTransformer,
    bridges: Bridges,
    task: PairTask,
    circuit: Circuit | None,
    n_tried: int,
) -> tuple[dict[str, Any], StrengthCurve]:
    """Choose a node on validation pairs and give its curve on test pairs."""
    nodes = () if circuit is None else read_nodes(circuit)
    candidates = "the circuit's reads" if nodes else "all reads, as no circuit has any"
    nodes = (nodes or every_read(sparse))[:n_tried]
    ranked = rank_nodes(dense, sparse, bridges, task, nodes)
    curve = strength_curve(dense, sparse, bridges, task, Node.parse(ranked[0].node))
    return {"candidates": candidates, "validation": [c.to_dict() for c in ranked]}, curve


def last_scores(history: History) -> dict[str, float]:
    """Give the last line of the log, as far as it is about the two models."""
    names = ("validation_loss", "encoder_nmse", "decoder_nmse", "kl_into_sparse", "kl_into_dense")
    return {name: history.records[-1][name] for name in names}


def main() -> None:
    """Train, prune, steer, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="a folder that `tl-sparse demo` filled")
    parser.add_argument("--dense", default="dense", help="which of its models")
    parser.add_argument("--out", type=Path, default=Path("bridged"), help="where results are kept")
    parser.add_argument("--tokens", type=int, help="training tokens, instead of two million")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="the smallest size, to see the way")
    args = parser.parse_args()
    size = TINY if args.tiny else NORMAL
    n_tokens = args.tokens or size.training.n_tokens
    training = replace(size.training, n_tokens=n_tokens, seed=args.seed)

    dense, corpus = open_demo(args.demo, args.dense)
    print(dense)
    sparse = HookedSparseTransformer(
        demo_shape(corpus.d_vocab, width=size.width, seed=args.seed),
        tokenizer=corpus.tokenizer,
        sparsity=DEMO_SPARSITY,
    )
    config = BridgeConfig(seed=args.seed)
    bridges, history = train_bridged(
        sparse, dense, corpus, training, config, folder=args.out / "run"
    )
    print(bridges, last_scores(history))

    task = all_tasks.get(TASK, tokenizer=corpus.tokenizer)
    circuit = find_circuit(sparse, task, corpus, size, args.out)
    found, curve = steer_by_the_best(dense, sparse, bridges, task, circuit, size.n_tried)
    found |= {"dense": f"{args.dense}, {dense!r}", "seed": args.seed}
    found["training"] = last_scores(history)
    curve.save(args.out / "curve.json")
    write_text(args.out / "found.json", json.dumps(found, indent=1) + "\n")
    write_text(args.out / "bridge.md", page(found, curve))
    print(f"{curve.node}: one half at strength {_number(curve.strength_at(0.5))}")
    print(f"Look at {args.out / 'bridge.md'}")


if __name__ == "__main__":
    main()
