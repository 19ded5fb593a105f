"""Make docs/results/concepts.md: concepts per node, best nodes, and bits per byte of a demo's arms.

    tl-sparse demo --folder demo
    python experiments/concept_results.py demo      # some ten minutes on one core

Reads the sparse and the dense model and the corpus of a finished demo, and writes nothing into its
folder. An SAE is trained on the dense model, by SAELens, into `--saes` (kept for the next run;
`--no-sae` leaves that arm out).
"""

import argparse
import json
import os
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tl_sparse import HookedSparseTransformer, TrainingConfig, capability, concepts
from tl_sparse.checkpoints import read_json
from tl_sparse.data import Corpus
from tl_sparse.data.corpora import open_cached
from tl_sparse.files import write_text
from tl_sparse.sae_baseline import token_dataset
from tl_sparse.sites import model_hash

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "concepts.md"
MARKS = ("<!-- tables: made by experiments/concept_results.py -->", "<!-- end of tables -->")
ARMS = ("sparse", "dense")
SAE_HOOK, D_SAE, K = "blocks.0.hook_resid_post", 1024, 16
N_SAE_WINDOWS = 4_000
THRESHOLDS = (0.1, 0.2, 0.3, 0.5)


def open_demo(folder: Path) -> tuple[Corpus, dict[str, Any]]:
    """Open the corpus of a finished demo, and its settings."""
    settings, summary = (read_json(folder / f"{name}.json") for name in ("settings", "summary"))
    corpus = open_cached(folder / "corpus" / summary["corpus"])
    if corpus is None:
        raise SystemExit(f"{folder} has no corpus {summary['corpus'][:12]}: is the demo finished?")
    return corpus, settings


def train_sae(model: HookedSparseTransformer, corpus: Corpus, folder: Path, n_windows: int) -> Any:
    """Train a TopK SAE on the dense model by SAELens, or open the one of an earlier run."""
    import sae_lens

    place = folder / model_hash(model)[:16]
    if not (place / "sae_weights.safetensors").is_file():
        torch.manual_seed(0)
        config = sae_lens.TopKTrainingSAEConfig(
            d_in=model.cfg.d_model, d_sae=D_SAE, k=K,
            normalize_activations="expected_average_only_in",
        )  # fmt: skip
        dataset = token_dataset(corpus.train, model.cfg.n_ctx, n_windows=n_windows)
        n_tokens = n_windows * model.cfg.n_ctx
        runner = sae_lens.LanguageModelSAERunnerConfig(
            sae=config, hook_name=SAE_HOOK, model_name="local", dataset_path="local",
            streaming=False, is_dataset_tokenized=True, context_size=model.cfg.n_ctx,
            prepend_bos=False, training_tokens=n_tokens, store_batch_size_prompts=16,
            n_batches_in_buffer=min(128, n_windows // 16), train_batch_size_tokens=1024, lr=3e-3,
            lr_decay_steps=n_tokens // 1024 // 5, dead_feature_window=200, output_path=str(place),
            checkpoint_path=None, verbose=False, model_from_pretrained_kwargs={},
            n_batches_for_norm_estimate=20, logger=sae_lens.LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        sae_lens.LanguageModelSAETrainingRunner(
            runner, override_model=model, override_dataset=dataset
        ).run()
    return sae_lens.SAE.load_from_disk(place)


def score_arms(
    models: dict[str, HookedSparseTransformer], corpus: Corpus, sae: Any,
    config: concepts.ConceptConfig,
) -> dict[str, concepts.ConceptReport]:  # fmt: skip
    """Score every arm for concepts."""
    reports = {name: concepts.score(model, corpus, config) for name, model in models.items()}
    if sae is not None:
        coders = {SAE_HOOK: sae}
        reports["SAE on dense"] = concepts.score(models["dense"], corpus, config, coders=coders)
    return reports


def capabilities(
    models: dict[str, HookedSparseTransformer], corpus: Corpus, settings: dict[str, Any],
    n_windows: int | None, n_counted: int | None,
) -> list[capability.CapabilityRow]:  # fmt: skip
    """Measure the models and n-grams of five orders on the same tokens."""
    rows = []
    for name, model in models.items():
        training = TrainingConfig(**settings[f"{name}_training"])
        rows.append(
            capability.capability_row(name, model, corpus, training=training, n_windows=n_windows)
        )
    n_ctx = models["sparse"].cfg.n_ctx
    as_many = settings["sparse_training"]["n_tokens"]
    for order, n_tokens in [*((order, n_counted) for order in range(1, 6)), (5, as_many)]:
        model = capability.NGramModel.fit(
            corpus.train, corpus.d_vocab, order=order, n_tokens=n_tokens
        )
        n_read = min(n_tokens or corpus.train.n_tokens, corpus.train.n_tokens)
        name = f"{order}-gram of {n_read:,} tokens"
        rows.append(
            capability.capability_row(name, model, corpus, n_ctx=n_ctx, n_windows=n_windows)
        )
    return rows


def write_results(
    page: Path, reports: dict[str, concepts.ConceptReport], rows: list[capability.CapabilityRow],
    facts: dict[str, Any],
) -> None:  # fmt: skip
    """Write the JSON, and the tables between the two marks of the page."""
    found = {
        **facts,
        "summaries": {name: report.summary() for name, report in reports.items()},
        "concepts": {
            name: [asdict(row) for row in report.concepts] for name, report in reports.items()
        },
        "at least": {
            name: {t: report.at_least(t) for t in THRESHOLDS} for name, report in reports.items()
        },
        "capability": [row.to_dict() for row in rows],
    }
    write_text(page.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    first = next(iter(reports.values()))
    tokens = " and ".join(f"{n:,}" for n in first.provenance["n_tokens"])
    parts = [
        f"Commit {facts['commit']}; seed {facts['seed']}; {facts['hardware']};"
        f" {facts['seconds']:.0f} s. Concepts: {tokens} tokens to choose and to score on, of"
        f" {first.provenance['n_documents']:,} documents"
        f" ({first.provenance['n_documents_skipped']} more are not Python that parses).",
        "### Concepts and nodes",
        concepts.arms_table(reports),
        "Share of the nodes whose gain for any concept is at least so much (the same on shifted"
        " labels), and for how many such a node is:",
        concepts.thresholds_table(reports, THRESHOLDS),
        f"Nodes by the number of concepts at gain {THRESHOLDS[1]:g}:",
        concepts.draw_tracked(reports, THRESHOLDS[1]),
        concepts.draw_best(reports),
        "### The best node of each concept",
        concepts.best_nodes_table(reports),
        f"Too rare in this text: {', '.join(first.left_out) or 'none'}.",
        "### Bits per byte",
        capability.capability_table(rows),
        f"{rows[0].n_tokens:,} validation tokens predicted.",
    ]
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    write_text(page, before + "\n\n".join([MARKS[0], *parts, MARKS[1]]) + after)


def commit() -> str:
    """Give the commit that the results are of."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def main() -> None:
    """Score, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of a finished `tl-sparse demo`")
    parser.add_argument("--n-tokens", type=int, default=200_000, help="for the concepts")
    parser.add_argument("--n-windows", type=int, help="for bits per byte; default: all")
    parser.add_argument("--n-counted", type=int, help="tokens for the n-grams; default: all")
    parser.add_argument("--saes", type=Path, default=Path("concept-saes"), help="kept there")
    parser.add_argument("--n-sae-windows", type=int, default=N_SAE_WINDOWS)
    parser.add_argument("--no-sae", action="store_true")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page, beside it the JSON")
    args = parser.parse_args()
    began = time.perf_counter()
    corpus, settings = open_demo(args.demo)
    models = {
        name: HookedSparseTransformer.load(args.demo / name / "checkpoint" / "model")
        for name in ARMS
    }
    sae = None
    if not args.no_sae:
        sae = train_sae(models["dense"], corpus, args.saes, args.n_sae_windows)
    config = concepts.ConceptConfig(n_tokens=args.n_tokens)
    reports = score_arms(models, corpus, sae, config)
    rows = capabilities(models, corpus, settings, args.n_windows, args.n_counted)
    facts = {
        "commit": commit(),
        "seed": settings["seed"],
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "seconds": time.perf_counter() - began,
        "corpus": corpus.hash,
        "config": asdict(config),
    }
    for name, report in reports.items():
        print(f"{name}: {report.summary()}\n{report}\n")
    print(capability.capability_table(rows))
    write_results(args.out, reports, rows, facts)


if __name__ == "__main__":
    main()
