"""Train on a Hugging Face data set, with a tokenizer of your own.

    python examples/own_dataset.py rows.parquet --column body    # or .json, .jsonl, .csv, .txt
    python examples/own_dataset.py saved_dataset/                # a folder that `datasets` saved
    python examples/own_dataset.py NAME_ON_THE_HUB               # where there is a network
    python examples/own_dataset.py ... --tokenizer FOLDER        # one that transformers saved
    python examples/own_dataset.py                               # a data set made on the spot

Without a data set it makes one of English, from the docstrings of this Python's library. Without a
tokenizer it trains one with the `tokenizers` library, which cuts numbers into digits, and saves it
as any tokenizer of transformers is saved. Any will do that has an end-of-text token. At the end it
opens the trained model again and shows that the tokenizer came with it. Two minutes of a core,
and `--tiny` takes seconds.
"""

import argparse
import ast
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tl_sparse import HookedSparseTransformer, SparsityConfig, TrainingConfig, data, train
from tl_sparse.presets import demo_shape

LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def open_dataset(name: str, split: str) -> Dataset:
    """Open a file, a saved folder, or a data set of the hub."""
    path = Path(name)
    if path.is_dir():
        saved = load_from_disk(name)
        return saved if isinstance(saved, Dataset) else saved[split]
    if path.is_file():
        return load_dataset(LOADERS[path.suffix], data_files=name, split="train")
    return load_dataset(name, split=split)


def docstrings() -> Iterator[dict[str, str]]:
    """Give the longer docstrings of the standard library, a row each."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for file in data.standard_library():
        for part in ast.walk(ast.parse(file.text)):
            text = ast.get_docstring(part) if isinstance(part, kinds) else None
            if text and len(text) > 100:
                yield {"file": file.name, "text": text}


def own_tokenizer(rows: Dataset, column: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE to which every digit is a token of its own."""
    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(rows[column], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def main() -> None:
    """Go from a data set and a tokenizer to a model that holds both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", help="a file, a saved folder, or a name of the hub")
    parser.add_argument("--split", default="train", help="which split, where there are several")
    parser.add_argument("--column", default="text", help="the column with the text")
    parser.add_argument("--tokenizer", help="a folder of transformers' save_pretrained")
    parser.add_argument("--out", type=Path, default=Path("my_dataset_model"), help="a folder")
    parser.add_argument("--tiny", action="store_true", help="the smallest size, in seconds")
    args = parser.parse_args()

    if args.dataset:
        rows = open_dataset(args.dataset, args.split)
    else:
        rows = Dataset.from_list(list(islice(docstrings(), 300 if args.tiny else None)))
    print(rows)

    if args.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    else:
        tokenizer = own_tokenizer(rows, args.column, vocab_size=400 if args.tiny else 1024)
        tokenizer.save_pretrained(args.out / "tokenizer")
    corpus = data.corpus(rows, tokenizer=tokenizer, column=args.column)
    print(corpus)

    shape = demo_shape(corpus.d_vocab, width=32 if args.tiny else 128)
    sparsity = SparsityConfig(weight_density=0.02, activation_density=0.25, bigram_table=True)
    model = HookedSparseTransformer(shape, corpus.tokenizer, sparsity=sparsity)
    training = TrainingConfig(
        n_tokens=40_000 if args.tiny else 1_000_000,
        batch_size=8, learning_rate=0.015, anneal="power", n_eval_windows=16 if args.tiny else 64,
    )  # fmt: skip
    history = train(model, corpus, training, folder=args.out)
    bits = history.validation_loss / math.log(2) / corpus.validation.bytes_per_token
    print(history)
    print(f"{bits:.3f} bits a byte, which can be compared between tokenizers; nats a token can't.")

    again = HookedSparseTransformer.load(args.out / "checkpoint" / "model")
    print(again)
    print(f"Its tokens of '12 files in 2026': {again.to_str_tokens('12 files in 2026')}")
    print(again.generate("Return ", max_new_tokens=60, temperature=0.7, verbose=False))


if __name__ == "__main__":
    main()
