"""Train a sparse transformer on text of your own and keep it as a folder.

    python examples/own_text.py book.txt                        # one file
    python examples/own_text.py notes/ --pattern "**/*.md"      # a folder
    python examples/own_text.py                                 # this Python's own library

It trains a tokenizer on the text, then the model: of each weight matrix 2 % is not zero. At the end
it says how well the model predicts text that it was not trained on, beside counts of pairs and
triples of tokens in the same text, and lets it write. Two minutes of a core; `--tiny` takes
seconds, and its model is too small to be good.

Stop it with Ctrl-C, and the same command goes on from the last checkpoint.
"""

import argparse
from pathlib import Path

import torch

from tl_sparse import HookedSparseTransformer, SparsityConfig, TrainingConfig, data, train
from tl_sparse.capability import NGramModel, bits_per_byte
from tl_sparse.presets import demo_shape


def read(text: Path | None, pattern: str | None, *, tiny: bool) -> data.Corpus:
    """Tokenise the text; a second run with the same text opens the tokens of the first."""
    texts = data.PathTexts([text], pattern=pattern) if text else data.standard_library()
    return data.corpus(
        texts, vocab_size=512 if tiny else 1024, max_tokens=100_000 if tiny else None
    )


def main() -> None:
    """Go from text to a model folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", type=Path, help="a file or a folder of text")
    parser.add_argument("--pattern", help="which files of a folder; by default all text files")
    parser.add_argument("--tokens", type=int, help="how many tokens to train on, 1.5 million")
    parser.add_argument("--out", type=Path, default=Path("my_model"), help="the run's folder")
    parser.add_argument("--tiny", action="store_true", help="the smallest size, in seconds")
    args = parser.parse_args()

    corpus = read(args.text, args.pattern, tiny=args.tiny)
    print(corpus)

    # Any HookedTransformerConfig will do. This is a dict of one: 2 layers, 128 tokens of context.
    shape = demo_shape(corpus.d_vocab, width=32 if args.tiny else 128)
    sparsity = SparsityConfig(weight_density=0.02, activation_density=0.25, bigram_table=True)
    model = HookedSparseTransformer(shape, corpus.tokenizer, sparsity=sparsity)

    training = TrainingConfig(
        n_tokens=args.tokens or (40_000 if args.tiny else 1_500_000),
        batch_size=8, learning_rate=0.015, anneal="power", eval_every=20 if args.tiny else 100,
    )  # fmt: skip
    history = train(model, corpus, training, folder=args.out)
    print(f"{history.n_tokens / corpus.train.n_tokens:.1f} times through the text. {history}")
    print(model.summary())

    n_ctx = model.cfg.n_ctx
    n_windows = min(256, corpus.validation.n_tokens // n_ctx)
    print("Bits per byte of text that was not trained on:")
    print(f"  the model         {bits_per_byte(model, corpus, n_windows=n_windows).per_byte:.3f}")
    for order, name in ((2, "pairs"), (3, "triples")):
        counts = NGramModel.fit(corpus.train, corpus.d_vocab, order=order).log_probs
        theirs = bits_per_byte(counts, corpus, n_ctx=n_ctx, n_windows=n_windows)
        print(f"  counts of {name:<7} {theirs.per_byte:.3f}")

    start = str(corpus.tokenizer.decode(corpus.validation.windows(16, 1)[0]))
    for seed in range(2):
        print(f"--- sample {seed + 1}, begun with 16 tokens of the text")
        print(sample(model, start, seed))

    print(f"--- The model is {args.out}/checkpoint/model. Next:")
    print(f"tl-sparse info {args.out}                  # what is in it")
    print(f"tl-sparse tasks --model {args.out}         # which tasks it can do, if it reads Python")
    print(f"python examples/own_task.py pairs.jsonl --model {args.out}/checkpoint/model")


def sample(model: HookedSparseTransformer, start: str, seed: int) -> str:
    """Let the model go on with a text."""
    torch.manual_seed(seed)
    return str(model.generate(start, max_new_tokens=60, temperature=0.7, verbose=False))


if __name__ == "__main__":
    main()
