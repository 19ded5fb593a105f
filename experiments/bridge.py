"""Tie a sparse model to the zoo's dense control, and steer the dense one by a node of it.

    python experiments/bridge.py --start trained --out bridged-trained    # half an hour on one core
    python experiments/bridge.py --start scratch --out bridged-scratch

1. The dense model is `zoo.load("python-tiny").control`, of width 48; the text is what it was
   trained on.
2. A sparse model is trained with bridges to it (`OUT/run`; a stopped run goes on): from scratch, as
   in the paper, or beginning with the zoo's trained sparse model, which is ours. Hybrids that end
   in the sparse model are left out (`kl_into_sparse_coef=0`): they are three fifths of a step's
   time, and steering does not use the encoders.
3. For each task: how far pushes at each read can get at all (`read_limits`); the task is pruned in
   the sparse model, and the nodes that its circuit reads are tried on validation pairs; the best
   one's curves on test pairs, among the two answers and among all tokens, and those of all the
   circuit's nodes at the same read together (ours: the paper moves one node).
4. `OUT/found.json` has all of it, `OUT/bridge.md` the tables and figures.

`--tiny` shows the way through in a minute, with models too small to do the tasks.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tl_sparse import (
    HookedSparseTransformer,
    PruningConfig,
    TrainingConfig,
    data,
    prune,
    references,
    zoo,
)
from tl_sparse import tasks as all_tasks
from tl_sparse.bridges import (
    BridgeConfig,
    Bridges,
    ReadLimit,
    StrengthCurve,
    rank_nodes,
    read_limits,
    read_nodes,
    strength_curve,
    train_bridged,
)
from tl_sparse.files import write_text
from tl_sparse.history import History
from tl_sparse.nodes import Node, Site
from tl_sparse.presets import DEMO_PRUNING, DEMO_SPARSITY, DEMO_TRAINING, demo_shape
from tl_sparse.pruning import TaskGateError, UnreachableTargetError
from tl_sparse.tasks import PairTask

SPARSITY = replace(DEMO_SPARSITY, embedding_density=1 / 16)
"""Of a model from scratch. With dense embeddings two tokens differ in every channel, so that no
channel alone says which quote it is; the paper's embeddings are sparse too."""

TASKS = ("single_double_quote", "while_return_true")
"""The two that the paper steers."""


@dataclass(frozen=True)
class Size:
    """How much work is done."""

    n_characters: int
    width: int
    training: TrainingConfig
    pruning: PruningConfig
    n_reference_tokens: int
    n_tried: int
    """Nodes that are tried at most."""


NORMAL = Size(
    n_characters=24_000_000,
    width=128,
    training=replace(DEMO_TRAINING, n_tokens=4_194_304),
    pruning=DEMO_PRUNING,
    n_reference_tokens=2**18,
    n_tried=512,
)
TINY = Size(
    n_characters=400_000,
    width=16,
    training=TrainingConfig(n_tokens=2_048, batch_size=8, eval_every=20, n_eval_windows=8),
    pruning=PruningConfig(target_loss=0.8, n_steps=20, min_accuracy=0.0),
    n_reference_tokens=2**12,
    n_tried=4,
)


def sparse_model(
    start: str, pair: zoo.Pair, training: TrainingConfig, size: Size
) -> tuple[HookedSparseTransformer, TrainingConfig]:
    """Give the sparse model as the training finds it, and how it is trained."""
    if start == "trained":
        return pair.sparse, replace(training, anneal="none")
    shape = demo_shape(pair.control.cfg.d_vocab, width=size.width, seed=training.seed)
    tokenizer = pair.control.tokenizer
    model = HookedSparseTransformer(shape, tokenizer=tokenizer, sparsity=SPARSITY)
    return model, replace(training, learning_rate=2 * training.learning_rate)


def candidates(
    sparse: HookedSparseTransformer, task: PairTask, corpus: data.Corpus, size: Size, out: Path
) -> tuple[str, tuple[Node, ...]]:
    """Give the nodes that a circuit of the task reads, or all reads if there is none."""
    refs = references(sparse, corpus, size.n_reference_tokens)
    try:
        circuit = prune(sparse, task, refs, size.pruning)
    except (TaskGateError, UnreachableTargetError) as error:
        print(f"No circuit: {error}")
    else:
        circuit.save(out / f"{task.name}.circuit.json")
        print(circuit)
        if nodes := read_nodes(circuit):
            return "the circuit's reads", nodes[: size.n_tried]
    sites = [Site(n, name) for n in range(sparse.cfg.n_layers) for name in ("attn_in", "mlp_in")]
    every = (Node(site, channel) for site in sites for channel in range(sparse.cfg.d_model))
    return "all reads, as no circuit has any", tuple(every)[: size.n_tried]


def steer_task(
    models: tuple[HookedSparseTransformer, HookedSparseTransformer, Bridges],
    task: PairTask,
    corpus: data.Corpus,
    size: Size,
    out: Path,
) -> dict[str, Any]:
    """Choose a node on validation pairs and give its curves on test pairs."""
    limits = read_limits(*models, task, among="answers")
    chosen_from, nodes = candidates(models[1], task, corpus, size, out)
    ranked = rank_nodes(*models, task, nodes, among="answers")
    best = Node.parse(ranked[0].node)
    beside = [node for node in nodes if node.site == best.site]
    curves = [
        strength_curve(*models, task, some, among=among)
        for some in (best, beside)
        for among in ("answers", "all")
    ]
    return {
        "limits": [asdict(limit) for limit in limits],
        "chosen_from": chosen_from,
        "validation": [curve.to_dict() for curve in ranked],
        "test": [curve.to_dict() for curve in curves],
    }


def section(name: str, found: dict[str, Any]) -> str:
    """Write what came out for a task as Markdown, with the figure."""
    curves = [StrengthCurve.from_dict(values) for values in found["test"]]
    if curves[0].node == curves[2].node:
        curves = curves[:2]
    answers, sets = curves[0], curves[::2]
    lines = [
        f"## {name}",
        "",
        f"Node {answers.node} of the sparse model, chosen from {found['chosen_from']}; "
        f"{answers.n_prompts} test prompts. All pushed: {sets[-1].node.replace('+', ', ')}.",
        "",
        "\n\n".join(curve.draw() for curve in sets),
        "",
        "| P(counterfactual answer) | pushed by | unsteered | at full strength "
        "| one half at strength | random | backwards | the counterfactual prompt itself |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for curve in curves:
        what = "of the two answers" if curve.among == "answers" else "of all tokens"
        together = curve.node.count("+") + 1
        by = curve.node if together == 1 else f"{together} nodes of {Node.parse(answers.node).site}"
        numbers = [curve.probability[0], curve.probability[-1], curve.strength_at(0.5)]
        numbers += [curve.random[-1], curve.reverse[-1], curve.counterfactual]
        lines.append(f"| {what} | {by} | " + " | ".join(map(_number, numbers)) + " |")
    lines += [
        "",
        "| read (validation, of the two answers) | one half at strength, own difference | P at 1 "
        "| one half, all nodes decoded | P at 1 | P at 1, random directions | cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for values in found["limits"]:
        limit = ReadLimit(**values)
        numbers = [limit.strength_at(0.5), limit.own[-1]]
        numbers += [limit.strength_at(0.5, decoded=True), limit.decoded[-1], limit.random[-1]]
        numbers += [limit.cosine]
        lines.append(f"| {limit.site} | " + " | ".join(map(_number, numbers)) + " |")
    lines += ["", "| node (validation) | P at 1 | one half at strength |", "|---|---|---|"]
    lines += [
        f"| {c['node']} | {c['probability'][-1]:.3f} | {_number(c['strength_at_half'])} |"
        for c in found["validation"][:6]
    ]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2g}"


def page(found: dict[str, Any]) -> str:
    """Write a run's results as Markdown."""
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in found["training"].items())
    sections = "\n".join(section(name, some) for name, some in found["tasks"].items())
    return (
        f"# Steering through bridges, sparse model from {found['start']}, seed {found['seed']}\n\n"
        f"| at the end of training | value |\n|---|---|\n{rows}\n\n{sections}"
    )


def last_scores(history: History) -> dict[str, float]:
    """Give the last line of the log, as far as it is about the two models."""
    names = ("validation_loss", "encoder_nmse", "decoder_nmse", "kl_into_sparse", "kl_into_dense")
    return {name: history.records[-1][name] for name in names}


def main() -> None:
    """Train, prune, steer, and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", choices=("scratch", "trained"), default="scratch")
    parser.add_argument("--out", type=Path, default=Path("bridged"), help="where results are kept")
    parser.add_argument("--cache", type=Path, help="where tokens are kept")
    parser.add_argument("--tokens", type=int, help="training tokens, instead of four million")
    parser.add_argument("--nmse", type=float, default=1.0, help="coefficient of both NMSEs")
    parser.add_argument("--tasks", nargs="+", choices=all_tasks.names(), default=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="the smallest size, to see the way")
    args = parser.parse_args()
    size = TINY if args.tiny else NORMAL
    n_tokens = args.tokens or size.training.n_tokens
    training = replace(size.training, n_tokens=n_tokens, seed=args.seed)

    pair = zoo.load("python-tiny")
    dense, tokenizer = pair.control, pair.control.tokenizer
    corpus = data.python_corpus(
        n_characters=size.n_characters, dialect="tasks", tokenizer=tokenizer, cache_dir=args.cache
    )
    sparse, training = sparse_model(args.start, pair, training, size)
    config = BridgeConfig(
        kl_into_sparse_coef=0.0, encoder_nmse_coef=args.nmse, decoder_nmse_coef=args.nmse,
        seed=args.seed,
    )  # fmt: skip
    bridges, history = train_bridged(
        sparse, dense, corpus, training, config, folder=args.out / "run"
    )
    print(sparse, bridges, last_scores(history))
    found: dict[str, Any] = {"start": args.start, "seed": args.seed, "sparse": repr(sparse)}
    found |= {"training": last_scores(history), "tasks": {}}
    for name in args.tasks:
        task = all_tasks.get(name, tokenizer=tokenizer)
        models = dense, sparse, bridges
        found["tasks"][name] = steer_task(models, task, corpus, size, args.out)
        write_text(args.out / "found.json", json.dumps(found, indent=1) + "\n")
        write_text(args.out / "bridge.md", page(found))
    print(f"Look at {args.out / 'bridge.md'}")


if __name__ == "__main__":
    main()
