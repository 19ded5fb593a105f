"""Make docs/results/saes.md: SAEs of four architectures on a sparse model and on its dense control.

    python experiments/saes_on_both_arms.py --folder results --seeds 0 1 2    # an hour on one core

The models are the demo's: a sparse one and the dense one whose width gives the same validation
loss. They are trained into the folder, or opened if they are there: experiments/quote_results.py
leaves the same ones. The SAEs are SAELens' own, by its own runner, each on the same tokens at one
hook point; scores are over validation text. `--tiny` shows the way through in half a minute.
"""

import argparse
import json
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sae_lens
import torch

from tl_sparse import HookedSparseTransformer, TrainingConfig, data
from tl_sparse.control import matched_width_preset
from tl_sparse.demo import DemoSettings, arm_specs, dense_arm, train_arm
from tl_sparse.files import write_text
from tl_sparse.presets import DEMO_VOCABULARY
from tl_sparse.sae_baseline import evaluate_sae, token_dataset

HOOK = "blocks.0.hook_resid_post"
D_SAE, K, LR, BATCH = 1024, 16, 3e-3, 1024
N_WINDOWS, N_EVAL_WINDOWS, N_CTX = 4_000, 128, 128
CONTROL_WIDTH = 52  # where the control's loss matched; docs/results/quotes.md

TINY_TRAINING = TrainingConfig(n_tokens=20_000, batch_size=8, n_eval_windows=8)
TINY = DemoSettings(width=32, sparse_training=TINY_TRAINING, dense_training=TINY_TRAINING)
MARKS = ("<!-- table: made by experiments/saes_on_both_arms.py -->", "<!-- end of table -->")
ROOT = Path(__file__).resolve().parents[1]
SCORES = ("l0", "explained_variance", "loss", "loss_spliced", "loss_zeroed", "loss_recovered")


def sae_configs(d_in: int, d_sae: int) -> dict[str, Any]:
    """Give the four architectures, with about K latents on at a token in each."""
    same: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae}
    same |= {"normalize_activations": "expected_average_only_in"}
    return {
        "TopK": sae_lens.TopKTrainingSAEConfig(k=K, **same),
        "BatchTopK": sae_lens.BatchTopKTrainingSAEConfig(k=K, **same),
        "JumpReLU": sae_lens.JumpReLUTrainingSAEConfig(
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=K,
            jumprelu_init_threshold=0.2,
            jumprelu_bandwidth=0.5,
            **same,
        ),
        "AbsTopK": sae_lens.AbsTopKTrainingSAEConfig(k=K, **same),
    }


def train_sae(
    model: HookedSparseTransformer, config: Any, dataset: Any, folder: Path, seed: int
) -> sae_lens.SAE[Any]:
    """Train one SAE as SAELens' documentation has it."""
    torch.manual_seed(seed)  # the runner's own `seed` seeds nothing
    n_tokens = len(dataset) * N_CTX
    runner = sae_lens.LanguageModelSAERunnerConfig(
        sae=config, hook_name=HOOK, model_name="local", dataset_path="local", streaming=False,
        is_dataset_tokenized=True, context_size=N_CTX, prepend_bos=False, training_tokens=n_tokens,
        store_batch_size_prompts=16, n_batches_in_buffer=128, train_batch_size_tokens=BATCH, lr=LR,
        lr_decay_steps=n_tokens // BATCH // 5, n_batches_for_norm_estimate=20,
        dead_feature_window=200, output_path=str(folder), checkpoint_path=None, verbose=False,
        logger=sae_lens.LoggingConfig(log_to_wandb=False), model_from_pretrained_kwargs={},
    )  # fmt: skip
    sae_lens.LanguageModelSAETrainingRunner(
        runner, override_model=model, override_dataset=dataset
    ).run()
    return sae_lens.SAE.load_from_disk(folder)


def rows_of_seed(folder: Path, corpus: data.Corpus, seed: int, tiny: bool) -> list[dict[str, Any]]:
    """Train both arms of a seed, or open them, then four SAEs on each."""
    settings = replace(TINY if tiny else DemoSettings(), seed=seed)
    width = 24 if tiny else matched_width_preset(corpus.hash) or CONTROL_WIDTH
    dataset = token_dataset(corpus.train, N_CTX, n_windows=64 if tiny else N_WINDOWS, seed=seed)
    windows = corpus.validation.windows(N_CTX, 8 if tiny else N_EVAL_WINDOWS)
    rows = []
    for spec in (arm_specs(settings)[0], dense_arm(settings, width)):
        place = folder / f"seed{seed}" / spec.name
        model, _ = train_arm(spec, corpus, place, progress=False)
        for name, config in sae_configs(spec.width, 64 if tiny else D_SAE).items():
            began = time.perf_counter()
            sae = train_sae(model, config, dataset, place / "saes" / name, seed)
            seconds = time.perf_counter() - began
            scores = evaluate_sae(model, sae, windows)
            row = {"seed": seed, "arm": spec.title, "SAE": name, **asdict(scores)}
            rows.append(row | {"loss_recovered": scores.loss_recovered, "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Give a Markdown table: the mean over seeds, and the lowest and highest beside it."""
    columns = {name: name.replace("_", " ") for name in (*SCORES, "n_dead", "seconds")}
    lines = ["| arm | SAE | " + " | ".join(columns.values()) + " |", "|---" * 10 + "|"]
    for arm, name in dict.fromkeys((row["arm"], row["SAE"]) for row in rows):
        cells = []
        for column in columns:
            mine = [row[column] for row in rows if (row["arm"], row["SAE"]) == (arm, name)]
            known = [value for value in mine if value is not None]
            digits = {"n_dead": 0, "seconds": 0, "l0": 1}.get(column, 3)
            mean = f"{sum(known) / len(known):.{digits}f}" if known else "-"
            spread = f" ({min(known):.{digits}f} to {max(known):.{digits}f})" if known else ""
            cells.append(mean + spread * (len(known) > 1))
        lines.append(f"| {arm} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, score, and write the JSON and the page beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("results"), help="models and SAEs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "saes.json")
    parser.add_argument("--tiny", action="store_true", help="the smallest size, to see the way")
    args = parser.parse_args()
    if args.tiny:
        corpus = data.corpus(data.generate_programs(600, seed=11), cache_dir=args.folder / "corpus")
    else:
        corpus = data.python_corpus(vocab_size=DEMO_VOCABULARY, cache_dir=args.folder / "corpus")
    rows = [row for s in args.seeds for row in rows_of_seed(args.folder, corpus, s, args.tiny)]
    print(table(rows))
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    found = {"commit": commit, "corpus": corpus.hash, "hook": HOOK, "rows": rows}
    write_text(args.out, json.dumps(found, indent=1) + "\n")
    page = args.out.with_suffix(".md")
    if page.is_file():
        before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
        seeds = ", ".join(map(str, args.seeds))
        block = f"{MARKS[0]}\n\nCommit {commit}; seeds {seeds}.\n\n{table(rows)}\n\n{MARKS[1]}"
        write_text(page, before + block + rest.partition(MARKS[1])[2])


if __name__ == "__main__":
    main()
