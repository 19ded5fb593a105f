r"""Train in several processes, a GPU each, or on CPUs: the same run, to rounding, as in one.

    accelerate launch --multi_gpu --num_machines 1 --num_processes 8 --mixed_precision no \
        --dynamo_backend no examples/multi_gpu.py
    torchrun --standalone --nproc-per-node 8 examples/multi_gpu.py      # the same
    python examples/multi_gpu.py                                        # one process

Without a GPU the same commands start processes on the CPU. Use them with 2 there; `--multi_gpu` is
right for CPUs too, while `accelerate launch --cpu` starts one process and does not say so. **GPUs
were not tried**: this was run with two processes on a CPU.

Each process holds the whole model and takes its share of each batch; `train` averages the
gradients. So the script says nothing about processes but for who prints. The loss that it prints
depends on `--batch-size`, not on the number of processes. Two minutes of a core; `--tiny` takes
seconds.
"""

import argparse
import os
from pathlib import Path

import torch

from tl_sparse import HookedSparseTransformer, SparsityConfig, TrainingConfig, data, train
from tl_sparse.presets import demo_shape


def main() -> None:
    """Train one model in all processes, and say how it went in one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=32, help="sequences, over all processes")
    parser.add_argument("--out", type=Path, default=Path("my_run"), help="a folder that all see")
    parser.add_argument("--tiny", action="store_true", help="the smallest size, in seconds")
    args = parser.parse_args()

    n_processes = int(os.environ.get("WORLD_SIZE", "1"))  # the launcher sets both
    is_main = os.environ.get("RANK", "0") == "0"

    # Whoever comes first makes the tokens, the others find them.
    corpus = data.python_corpus(
        n_characters=200_000 if args.tiny else 4_000_000,
        vocab_size=512 if args.tiny else 1024,
        progress=is_main,
    )

    # On a GPU bf16 halves the memory of most activations; `train` puts each process on its own.
    on_gpu = torch.cuda.is_available()
    shape = demo_shape(corpus.d_vocab, width=32 if args.tiny else 128)
    shape["device"] = "cuda" if on_gpu else "cpu"
    sparsity = SparsityConfig(weight_density=0.02, activation_density=0.25, bigram_table=True)
    model = HookedSparseTransformer(shape, corpus.tokenizer, sparsity=sparsity)
    training = TrainingConfig(
        n_tokens=40_960 if args.tiny else 1_000_000,
        batch_size=args.batch_size,
        precision="bf16" if on_gpu else "float32",
        eval_every=5 if args.tiny else 50,
    )
    history = train(model, corpus, training, folder=args.out)

    if is_main:
        speed = history.records[-1]["tokens_per_second"]
        print(f"{n_processes} processes on {'GPUs' if on_gpu else 'CPUs'}: {history}")
        print(f"{speed:,} tokens a second, all together. The model is {args.out}/checkpoint/model.")


if __name__ == "__main__":
    main()
