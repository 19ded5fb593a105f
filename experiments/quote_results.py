"""Make docs/results/quotes.md: sparse against dense on the quote task, several seeds.

    python experiments/quote_results.py --folder results --seeds 0 1 2  # three hours, two cores

For each seed a sparse model and a dense one of equal width are trained and pruned as in the demo
(pair). The width is searched at which a dense model's mean validation loss equals the sparse one's,
and those controls are pruned too (match). All arms are pruned with other settings of the pruner, so
that each can be judged by its own best one (prune). On the first seed the sparse arm is trained
with plain Adam instead of the paper's recipe (adam), and both arms at learning rates around the
demo's (rates). Every stage is kept in the folder: a second run goes on where the first was stopped.
`--stages` does only some of them, and leaves the page.
"""

import argparse
import json
import math
import os
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_sparse import data, prune, references, tasks
from tl_sparse.control import match_width
from tl_sparse.demo import TASK, ArmSpec, DemoSettings, arm_specs, dense_arm, run_demo, train_arm
from tl_sparse.files import write_text
from tl_sparse.presets import (
    DEMO_PRUNING,
    DEMO_SPARSITY,
    DEMO_VOCABULARY,
    DEMO_WIDTH,
    PLAIN_ADAM,
)
from tl_sparse.pruning import TaskGateError, UnreachableTargetError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PRESET = ROOT / "tl_sparse" / "matched_width.json"
STAGES = ("pair", "match", "prune", "adam", "rates")
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
RATES = {"sparse": (7.5e-3, 3e-2), "dense": (1e-3, 1e-2)}
PRUNINGS = {
    "price 0.001": replace(DEMO_PRUNING, k_coef=1e-3),
    "adaptive, rate 0.03": replace(DEMO_PRUNING, learning_rate=3e-2),
}
MARKS = ("<!-- tables: made by experiments/quote_results.py -->", "<!-- end of tables -->")


def settings(seed: int, **changes: Any) -> DemoSettings:
    """Give the demo's settings for a seed."""
    return replace(DemoSettings(seed=seed, audit=None), **changes)


def the_corpus(folder: Path) -> data.Corpus:
    """Open the demo's corpus, shared by all seeds."""
    return data.python_corpus(vocab_size=DEMO_VOCABULARY, cache_dir=folder / "corpus")


def demo_rows(folder: Path, seeds: list[int], **changes: Any) -> list[dict[str, Any]]:
    """Run the demo for each seed and give all arms' rows with their seed."""
    rows = []
    for seed in seeds:
        place = folder / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "corpus").exists():
            (place / "corpus").symlink_to((folder / "corpus").resolve())
        arms = run_demo(place, settings(seed, **changes), say=lambda line: print(line, flush=True))
        rows += [{"seed": seed} | arm.row() for arm in arms]
    return rows


def matched_width(folder: Path, seeds: list[int], sparse_losses: list[float]) -> dict[str, Any]:
    """Search the width of the dense control of equal loss, over all seeds, and keep it."""
    corpus = the_corpus(folder)

    def loss_at(width: int, i: int) -> float:
        spec = dense_arm(settings(seeds[i]), width)
        _, history = train_arm(spec, corpus, folder / f"seed{seeds[i]}" / spec.name)
        print(f"width {width}, seed {seeds[i]}: {history.validation_loss:.3f}", flush=True)
        return history.validation_loss

    match = match_width(loss_at, sparse_losses, start=DEMO_WIDTH * 3 // 8)
    preset = match.to_dict() | {"corpus": corpus.hash}
    write_text(PRESET, json.dumps(preset, indent=1) + "\n")
    return preset


def pruning_rows(
    folder: Path, rows: list[dict[str, Any]], width: int | None
) -> list[dict[str, Any]]:
    """Count every arm's edges with other settings of the pruner, beside the demo's."""
    corpus, found = the_corpus(folder), []
    task = tasks.get(TASK, tokenizer=corpus.tokenizer)
    for row in rows:
        mine = settings(row["seed"])
        specs = [*arm_specs(mine), *([dense_arm(mine, width)] if width else [])]
        spec = next(spec for spec in specs if spec.title == row["arm"])
        place = folder / f"seed{row['seed']}" / spec.name
        model, _ = train_arm(spec, corpus, place)
        refs = references(model, corpus, mine.n_reference_tokens)
        edges = {"adaptive price": row["edges"]}
        for name, config in PRUNINGS.items():
            kept = place / f"edges {name}.json"
            if not kept.is_file():
                try:
                    n_edges = prune(model, task, refs, replace(config, seed=row["seed"])).n_edges
                except (TaskGateError, UnreachableTargetError):
                    n_edges = None
                write_text(kept, json.dumps(n_edges))
            edges[name] = json.loads(kept.read_text(encoding="utf-8"))
        found.append({"seed": row["seed"], "arm": row["arm"]} | edges)
        print(found[-1], flush=True)
    return found


def rate_rows(folder: Path, seed: int, losses: dict[str, float]) -> list[dict[str, Any]]:
    """Train both arms of equal width at learning rates around the demo's."""
    corpus, rows = the_corpus(folder), []
    for spec in arm_specs(settings(seed)):
        found = {spec.training.learning_rate: losses[spec.title]}
        for rate in RATES[spec.name]:
            training = replace(spec.training, learning_rate=rate)
            other = replace(spec, name=f"{spec.name}-lr{rate:g}", training=training)
            _, history = train_arm(other, corpus, folder / f"seed{seed}" / other.name)
            found[rate] = history.validation_loss
        rows += [
            {"arm": spec.title, "learning rate": f"{rate:g}", "validation loss": found[rate]}
            for rate in sorted(found)
        ]
    return rows


def adam_rows(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Train the sparse arm with plain Adam at a few learning rates."""
    corpus, rows = the_corpus(folder), []
    for rate in ADAM_RATES:
        training = replace(PLAIN_ADAM, learning_rate=rate, seed=seed)
        spec = ArmSpec(
            f"adam{rate:g}", f"plain Adam, {rate:g}", DEMO_WIDTH, DEMO_SPARSITY, training
        )
        _, history = train_arm(spec, corpus, folder / f"seed{seed}" / spec.name)
        rows.append({"recipe": spec.title, "validation loss": history.validation_loss})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Write rows as a Markdown table."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "-" if math.isnan(value) else f"{value:.3f}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    names = [name for name in rows[0] if any(row.get(name) not in (None, "") for row in rows)]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(text(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def commit() -> str:
    """Give the commit that the results are of."""
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"


def write_results(found: dict[str, Any]) -> None:
    """Write the JSON, and the tables between the two marks of the page."""
    write_text(RESULTS / "quotes.json", json.dumps(found, indent=1) + "\n")
    seeds = ", ".join(map(str, found["seeds"]))
    parts = [f"Commit {found['commit']}; seeds {seeds}; {found['hardware']}.", table(found["rows"])]
    if found.get("match"):
        match = found["match"]
        gaps = ", ".join(f"{gap:+.3f}" for gap in match["gaps"])
        parts.append(f"Matched width {match['width']}: dense minus sparse loss by seed {gaps}.")
    if found.get("prunings"):
        parts.append(
            "Edges with other settings of the pruner, all else equal (-: no circuit found):"
        )
        parts.append(table(found["prunings"]))
    parts += [table(found[name]) for name in ("recipes", "rates") if found.get(name)]
    page = RESULTS / "quotes.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    block = "\n\n".join([MARKS[0], *parts, MARKS[1]])
    write_text(page, before + block + after)


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--commit", default=commit(), help="that the folder was made at")
    args = parser.parse_args()
    the_corpus(args.folder)
    found: dict[str, Any] = {
        "commit": args.commit,
        "seeds": args.seeds,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
    }
    found["rows"] = demo_rows(args.folder, args.seeds)
    sparse = [row["validation loss"] for row in found["rows"] if row["arm"] == "sparse"]
    width = None
    if "match" in args.stages:
        found["match"] = matched_width(args.folder, args.seeds, sparse)
        width = found["match"]["width"]
        found["rows"] = demo_rows(args.folder, args.seeds, full=True, matched_width=width)
    if "prune" in args.stages:
        found["prunings"] = pruning_rows(args.folder, found["rows"], width)
    seed = args.seeds[0]
    if "adam" in args.stages:
        paper = {"recipe": "the paper's", "validation loss": sparse[0]}
        found["recipes"] = [paper, *adam_rows(args.folder, seed)]
    if "rates" in args.stages:
        losses = {r["arm"]: r["validation loss"] for r in found["rows"] if r["seed"] == seed}
        found["rates"] = rate_rows(args.folder, seed, losses)
    if set(args.stages) == set(STAGES):
        write_results(found)


if __name__ == "__main__":
    main()
