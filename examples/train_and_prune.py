"""Train a sparse transformer on your own folder of text and read a circuit of it.

    python examples/train_and_prune.py path/to/folder --pattern "**/*.py"

Ten minutes on two cores as it stands; `--tiny` shows the way through in one minute, with a model
too small to do the task, so that its circuit is forced past the gate.
"""

import argparse
from pathlib import Path

from tl_sparse import (
    HookedSparseTransformer,
    PruningConfig,
    SparsityConfig,
    TrainingConfig,
    data,
    prune,
    references,
    tasks,
    train,
)
from tl_sparse.explain import explain
from tl_sparse.presets import demo_shape

SPARSITY = SparsityConfig(weight_density=0.02, activation_density=0.25, bigram_table=True)
TRAINING = TrainingConfig(n_tokens=5_000_000, batch_size=8, learning_rate=0.015, anneal="power")
PRUNING = PruningConfig(target_loss=0.15)

TINY_TRAINING = TrainingConfig(n_tokens=40_000, batch_size=8, eval_every=20, n_eval_windows=8)
TINY_PRUNING = PruningConfig(target_loss=0.8, n_steps=20, min_accuracy=0.0)


def main() -> None:
    """Go from a folder of text to a circuit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="a folder of text; the default mixture without")
    parser.add_argument("--pattern", default="**/*.py", help="which files of the folder")
    parser.add_argument("--out", type=Path, default=Path("my_run"), help="where results are kept")
    parser.add_argument("--tiny", action="store_true", help="the smallest size, to see the way")
    args = parser.parse_args()

    if args.folder:
        corpus = data.corpus(data.folder(args.folder, pattern=args.pattern))
    else:
        corpus = data.python_corpus(n_characters=1_000_000 if args.tiny else 24_000_000)
    print(corpus)

    model = HookedSparseTransformer(
        demo_shape(corpus.d_vocab, width=32 if args.tiny else 128),
        tokenizer=corpus.tokenizer,
        sparsity=SPARSITY,
    )
    train(model, corpus, TINY_TRAINING if args.tiny else TRAINING, folder=args.out)
    print(model.summary())

    task = tasks.get("single_double_quote", tokenizer=model.tokenizer)
    refs = references(model, corpus, n_tokens=2**14 if args.tiny else 2**18)
    circuit = prune(model, task, refs, TINY_PRUNING if args.tiny else PRUNING)
    circuit.save(args.out / "circuit.json")
    print(circuit)
    print(explain(circuit, model, task))


if __name__ == "__main__":
    main()
