r"""Ask a model a question of your own: accuracy, the circuit, its audit, and a page to look at.

    python examples/own_task.py                                        # a model that comes along
    python examples/own_task.py pairs.jsonl --model my_model/checkpoint/model

A task is a file with a pair a line: two prompts that differ in what decides, and the token that
each should be followed by. Forty pairs are enough to begin with.

    {"prompts": ["a = [b, c", "a = (b, c"], "answers": ["]\n", ")\n"], "split": "train"}

`split` may be left out of all lines. Without a file it takes `pairs.jsonl` beside this script:
close a list with its bracket and a tuple with its own. The page is one HTML file that needs no
network. Half a minute of a core; `--tiny` prunes and audits with fewer steps.
"""

import argparse
from pathlib import Path

from tl_sparse import (
    AuditConfig,
    HookedSparseTransformer,
    PruningConfig,
    audit,
    data,
    prune,
    references,
    tasks,
    viewer,
    zoo,
)
from tl_sparse.gate import task_score

PAIRS = Path(__file__).with_name("pairs.jsonl")


def main() -> None:
    """Go from a file of pairs to an audited circuit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="?", type=Path, default=PAIRS, help="a file of pairs")
    parser.add_argument("--model", type=Path, help="a model folder; by default python-tiny's")
    parser.add_argument("--out", type=Path, default=Path("my_task"), help="where results are kept")
    parser.add_argument("--tiny", action="store_true", help="few steps, in seconds")
    args = parser.parse_args()

    model = (
        HookedSparseTransformer.load(args.model) if args.model else zoo.load("python-tiny").sparse
    )
    task = tasks.from_jsonl(args.pairs, tokenizer=model.tokenizer)
    print(task)
    for example in task.examples(2):
        print(f"  {example.prompts} -> {example.answers}")

    # No circuit of what a model can't do: `prune` refuses below `PruningConfig.min_accuracy`.
    score = task_score(model, task)
    print(f"Accuracy on the test pairs {score.accuracy:.0%} (a coin: 50%), loss {score.loss:.3f}")

    # What is cut takes its mean over text: the model's own kind of text, in its own tokens.
    n_characters = 100_000 if args.tiny else 400_000
    corpus = data.python_corpus(tokenizer=model.tokenizer, n_characters=n_characters)
    refs = references(model, corpus, n_tokens=2**14 if args.tiny else 2**17)

    pruning, auditing = PruningConfig(target_loss=0.15), AuditConfig.quick()
    if args.tiny:
        pruning = PruningConfig(target_loss=0.15, n_steps=30, n_edge_steps=30, exchange=False)
        auditing = AuditConfig(
            n_random=2, n_subsets=2, n_adversarial_steps=2, n_examples=8, max_edges=2
        )
    circuit = prune(model, task, refs, pruning)
    circuit.save(args.out / "circuit.json")
    print(circuit)
    print(circuit.explain(model, task))

    report = audit(model, circuit, task, corpus, auditing)
    report.save(args.out / "audit.json")
    print(report)

    seen = viewer.scene(model, circuit, task, corpus, report, n_windows=32 if args.tiny else 512)
    viewer.write_viewer(args.out / "circuit.html", seen)
    print(f"Open {args.out / 'circuit.html'} in a browser.")


if __name__ == "__main__":
    main()
