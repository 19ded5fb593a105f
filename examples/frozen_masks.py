"""Fine-tune a sparse model on other text without moving a connection: its masks stay.

    python examples/frozen_masks.py                                  # a model that comes along
    python examples/frozen_masks.py notes/ --model my_model/checkpoint/model
    python examples/frozen_masks.py --regrow                         # the same with free masks

The weights that are not zero are trained on, those that are zero stay zero, so whatever was wired
together before is what can be wired together after. It says by how much the loss fell on the new
text and rose on the old, and how many weights changed place. With `--regrow` weights may: it is how
a sparse model is trained in the first place. Not everything has a mask: embeddings, biases and the
bigram table are dense in this model, and learn too. A minute of a core; `--tiny` takes seconds.
"""

import argparse
from pathlib import Path

from tl_sparse import HookedSparseTransformer, TrainingConfig, data, train, zoo
from tl_sparse.training import mean_loss


def main() -> None:
    """Open a model, train it on, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", type=Path, help="a file or folder of new text")
    parser.add_argument("--model", type=Path, help="a model folder; by default python-tiny's")
    parser.add_argument("--regrow", action="store_true", help="let zeroed weights come back")
    parser.add_argument("--out", type=Path, default=Path("my_tuned_model"), help="a folder")
    parser.add_argument("--tiny", action="store_true", help="a few steps, in seconds")
    args = parser.parse_args()

    model = (
        HookedSparseTransformer.load(args.model) if args.model else zoo.load("python-tiny").sparse
    )
    print(model)

    # Both texts in the tokens that the model knows. The old one is of the kind that it learned.
    texts = data.PathTexts([args.text]) if args.text else data.installed_package("transformer_lens")
    new = data.corpus(texts, tokenizer=model.tokenizer, max_tokens=60_000 if args.tiny else None)
    old = data.python_corpus(tokenizer=model.tokenizer, n_characters=400_000)
    n_ctx = model.cfg.n_ctx
    windows = {
        name: corpus.validation.windows(n_ctx, min(64, corpus.validation.n_tokens // n_ctx))
        for name, corpus in {"new": new, "old": old}.items()
    }
    before = {name: mean_loss(model, some) for name, some in windows.items()}
    matrices = [name for name in model.weight_masks if name.startswith("blocks") and "W_" in name]
    support = {name: model.get_parameter(name) != 0 for name in matrices}

    # A low rate, since the model is trained already, and no annealing, since it is sparse already.
    training = TrainingConfig(
        n_tokens=20_000 if args.tiny else 500_000,
        batch_size=8, learning_rate=0.003, anneal="none", regrow=args.regrow,
    )  # fmt: skip
    train(model, new, training)

    for name, some in windows.items():
        after = mean_loss(model, some)
        print(f"Loss a token on the {name} text: {before[name]:.3f} before, {after:.3f} after")
    were = sum(int(some.sum()) for some in support.values())
    came = sum(int((model.get_parameter(name) != 0)[~some].sum()) for name, some in support.items())
    print(f"{were:,} weights of the blocks were not zero; {came:,} that were zero are not any more")

    model.save(args.out)
    print(f"The model is {args.out}.")


if __name__ == "__main__":
    main()
