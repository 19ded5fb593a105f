"""Make docs/results/circuits.md: every task that a model can do, sparse and dense, to single edges.

    python experiments/task_results.py --folder task-results --seeds 0  # some two hours, two cores

For each seed a sparse model is trained on four times the demo's tokens, and dense ones until one
has its validation loss (train). On each arm every one of the paper's twenty tasks is tried; those
that pass the gate are pruned at the target, stage by stage, and again by attribution scores in
place of learned masks (attribution). On the quotes all methods are swept over all sizes (curves).
The quote circuit of the sparse model is compiled and compared with
the model that has only the circuit left in (compile). Every stage is kept in the folder: a second
run goes on where the first was stopped. `--stages` does only some of them, and leaves the page.
"""

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tl_sparse import Circuit, HookedSparseTransformer, data, prune, references, tasks
from tl_sparse.ablation import References, only_circuit
from tl_sparse.control import match_width
from tl_sparse.curves import draw_curves
from tl_sparse.demo import DemoSettings, arm_specs, dense_arm, train_arm
from tl_sparse.files import write_text
from tl_sparse.presets import DEMO_PRUNING, DEMO_TRAINING, DEMO_VOCABULARY, DENSE_TRAINING
from tl_sparse.pruning import TaskGateError, UnreachableTargetError, evaluate, sweep

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "circuits.md"
MARKS = ("<!-- tables: made by experiments/task_results.py -->", "<!-- end of tables -->")
STAGES = ("train", "prune", "attribution", "curves", "compile")
N_TOKENS = 4 * DEMO_TRAINING.n_tokens
N_REFERENCE_TOKENS = 2**18
START_WIDTH = 50
ATTRIBUTION = replace(DEMO_PRUNING, method="attribution", edges=False, drop_one=False)
QUOTES = "single_double_quote"
METHODS = ("learned", "integrated_gradients", "attribution", "magnitude", "random")


def settings(seed: int) -> DemoSettings:
    """Give the demo's settings for a seed, with more tokens."""
    return DemoSettings(
        seed=seed,
        sparse_training=replace(DEMO_TRAINING, n_tokens=N_TOKENS),
        dense_training=replace(DENSE_TRAINING, n_tokens=N_TOKENS),
    )


def train_arms(
    folder: Path, corpus: data.Corpus, seed: int, width: int | None
) -> dict[str, tuple[HookedSparseTransformer, float]]:
    """Train a sparse model and the dense one of equal loss; give models and validation losses.

    The width is searched for the first seed if none is given; later ones take it over.
    """
    place = folder / f"seed{seed}"
    model, history = train_arm(arm_specs(settings(seed))[0], corpus, place / "sparse")
    arms = {"sparse": (model, history.validation_loss)}

    def loss_at(some_width: int, i: int) -> float:
        spec = dense_arm(settings(seed), some_width)
        _, found = train_arm(spec, corpus, place / spec.name)
        print(f"seed {seed}, width {some_width}: {found.validation_loss:.3f}", flush=True)
        return found.validation_loss

    if width is None:
        width = match_width(loss_at, [history.validation_loss], start=START_WIDTH).width
    spec = dense_arm(settings(seed), width)
    dense, found = train_arm(spec, corpus, place / spec.name)
    return arms | {f"dense, width {width}": (dense, found.validation_loss)}


def prune_task(
    model: HookedSparseTransformer, name: str, refs: References, seed: int, place: Path
) -> dict[str, Any]:
    """Prune one task on one model by learned masks, if the model can do it; kept in a file."""
    kept = place / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    task = tasks.get(name, tokenizer=model.tokenizer)
    loss, accuracy = evaluate(model, task, "test")
    row: dict[str, Any] = {"task": name, "accuracy": accuracy, "model loss": loss}
    began = time.perf_counter()
    try:
        circuit = prune(model, task, refs, replace(DEMO_PRUNING, seed=seed), progress=False)
    except TaskGateError:
        row["note"] = "can't do it"
    except UnreachableTargetError as error:
        row["note"] = f"the least loss on the path is {error.best_loss:.2f}"
    else:
        row["seconds"] = round(time.perf_counter() - began)
        circuit.save(place / f"{name}.circuit.json")
        row |= {"circuit loss": circuit.losses["test"], "nodes": circuit.n_nodes}
        counts = {stage["stage"]: stage["n_edges"] for stage in circuit.provenance["stages"]}
        row |= {"stage one": counts["nodes"], "stage two": counts["edges"]}
        row["clean-up"] = counts["clean_up"]
    write_text(kept, json.dumps(row))
    print(row, flush=True)
    return row


def attribute_task(
    model: HookedSparseTransformer, name: str, refs: References, seed: int, place: Path
) -> int | None:
    """Count the edges when nodes are ranked by attribution, all else as in stage one."""
    kept = place / f"{name}.attribution.json"
    if not kept.is_file():
        task = tasks.get(name, tokenizer=model.tokenizer)
        config = replace(ATTRIBUTION, seed=seed)
        try:
            n_edges = prune(model, task, refs, config, progress=False).n_edges
        except UnreachableTargetError:
            n_edges = None
        write_text(kept, json.dumps(n_edges))
        print(name, "by attribution:", n_edges, flush=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def prune_arm(
    folder: Path, corpus: data.Corpus, seed: int, arm: str, model: HookedSparseTransformer,
    *, attribution: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Prune every task on one arm of a seed."""
    place, rows = folder / f"seed{seed}" / f"circuits of {arm}", []
    place.mkdir(parents=True, exist_ok=True)
    refs = references(model, corpus, N_REFERENCE_TOKENS, progress=False)
    for name in tasks.PAPER_TASKS:
        row = {"seed": seed, "arm": arm} | prune_task(model, name, refs, seed, place)
        if attribution and row.get("clean-up"):
            row["attribution"] = attribute_task(model, name, refs, seed, place)
        rows.append(row)
    return rows


def sweep_methods(
    folder: Path, corpus: data.Corpus, seed: int, arm: str, model: HookedSparseTransformer
) -> dict[str, list[list[float]]]:
    """Give the curve of every method on the quotes, as (edges, loss), best so far; kept in files.

    Losses are those of the validation prompts, by which `prune` chooses sizes.
    """
    place, curves = folder / f"seed{seed}" / f"circuits of {arm}", {}
    task = tasks.get(QUOTES, tokenizer=model.tokenizer)
    refs = references(model, corpus, N_REFERENCE_TOKENS, progress=False)
    for method in METHODS:
        kept = place / f"{QUOTES}.{method}.curve.json"
        if not kept.is_file():
            config = replace(DEMO_PRUNING, seed=seed, method=method)
            found = sweep(model, task, refs, config, split="validation", progress=False)
            best = [[point.n_edges, point.loss] for point in found.running_minimum()]
            write_text(kept, json.dumps(best))
            print(arm, method, best[-1], flush=True)
        curves[method.replace("_", " ")] = json.loads(kept.read_text(encoding="utf-8"))
    return curves


@torch.no_grad()
def compile_quotes(folder: Path, seed: int, model: HookedSparseTransformer) -> dict[str, Any]:
    """Compile the sparse model's quote circuit and compare it with the circuit in its model."""
    circuit = Circuit.load(folder / f"seed{seed}" / "circuits of sparse" / f"{QUOTES}.circuit.json")
    task = tasks.get(QUOTES, tokenizer=model.tokenizer)
    double = copy.deepcopy(model).to(torch.float64)
    double.cfg.dtype = torch.float64
    found: dict[str, Any] = {"seed": seed, "prompts": 0, "close calls": 0}
    gaps: dict[str, list[float]] = {"float64": [0.0], "float32": [0.0]}
    for each, name in ((double, "float64"), (model, "float32")):
        compiled = circuit.compile(each)
        for split in ("train", "validation", "test"):
            batch = task.batch(split)
            with only_circuit(each, circuit):
                logits = task.logits(each, batch)[:, list(compiled.answers.values())]
            gap = (compiled(batch.tokens, batch.last) - logits).abs().amax(-1)
            clear = compiled.margin(batch.tokens) > (1e-6 if name == "float32" else 0)
            gaps[name].append(gap[clear].max().item())
            found["prompts"] += len(gap) if name == "float64" else 0
            found["close calls"] += int((~clear).sum()) if name == "float32" else 0
        found["size"] = compiled.n_parameters
        text = str(compiled)
    found |= {name: max(values) for name, values in gaps.items()}
    print(found, flush=True)
    return found | {"equations": text}


def geometric_mean(values: list[float]) -> float:
    """Give the geometric mean, or NaN of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def summaries(rows: list[dict[str, Any]], losses: dict[str, float]) -> list[dict[str, Any]]:
    """Sum up each arm of each seed: counts, geometric means and the ratios that matter."""
    found = []
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["seed"], row["arm"]) == (seed, arm)]
        done = [row for row in mine if row.get("clean-up")]
        cut = [row["clean-up"] / row["stage one"] for row in done]
        scored = [row["stage one"] / row["attribution"] for row in done if row.get("attribution")]
        found.append(
            {
                "seed": seed,
                "arm": arm,
                "validation loss": losses[f"{seed} {arm}"],
                "tasks done": sum(row["accuracy"] >= DEMO_PRUNING.min_accuracy for row in mine),
                "pruned": len(done),
                "edges": geometric_mean([row["clean-up"] for row in done]),
                "of stage one": geometric_mean(cut),
                "learned / attribution": geometric_mean(scored),
            }
        )
    return found


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Write rows as a Markdown table."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "-" if math.isnan(value) else f"{value:.3f}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(text(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def write_results(found: dict[str, Any]) -> None:
    """Write the JSON, and the tables between the two marks of the page."""
    write_text(PAGE.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    seeds = ", ".join(map(str, found["seeds"]))
    parts = [f"Commit {found['commit']}; seeds {seeds}; {found['hardware']}."]
    rows = found["rows"]
    sums = summaries(rows, found["losses"])
    parts.append(table(sums, list(sums[0])))
    names = ["task", "accuracy", "model loss", "circuit loss", "nodes", "stage one", "stage two"]
    names += ["clean-up", "attribution", "seconds"]
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["seed"], row["arm"]) == (seed, arm)]
        parts.append(f"### Seed {seed}, {arm}")
        parts.append(table([row for row in mine if row.get("clean-up")], names))
        empty = [row["task"] for row in mine if row.get("clean-up") == 0]
        parts.append(
            f"Done without any edge, by the last token alone: {', '.join(empty) or 'none'}."
        )
        short = [f"{r['task']} ({r['accuracy']:.1%}; {r['note']})" for r in mine if r.get("note")]
        parts.append(f"Not pruned, with the model's accuracy: {', '.join(short) or 'none'}.")
    for each in found["curves"]:
        curves = {method: [(x, y) for x, y in some] for method, some in each["methods"].items()}
        parts += [
            f"### The quotes by every method, seed {each['seed']}, {each['arm']}",
            draw_curves(curves, x_label="edges", y_label="loss (nats)", log_x=True, log_y=True),
        ]
    for each in found["compiled"]:
        size = ", ".join(f"{n:,} {name}" for name, n in each["size"].items())
        parts += [
            f"### The quote circuit of seed {each['seed']}, compiled",
            f"{size}. Largest difference of an answer logit over {each['prompts']:,} prompts: "
            f"{each['float64']:.1e} in float64; {each['float32']:.1e} in float32, where "
            f"{each['close calls']} prompts with a margin of AbsTopK under 1e-6 are left out.",
            f"```text\n{each['equations']}\n```",
        ]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    write_text(PAGE, before + "\n\n".join([MARKS[0], *parts, MARKS[1]]) + after)


def commit() -> str:
    """Give the commit that the results are of."""
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("task-results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--width", type=int, help="of the dense control; default: searched")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--commit", default=commit(), help="that the folder was made at")
    args = parser.parse_args()
    corpus = data.python_corpus(vocab_size=DEMO_VOCABULARY, cache_dir=args.folder / "corpus")
    hardware = f"{os.cpu_count()} cores, {platform.machine()}, no GPU"
    found: dict[str, Any] = {"commit": args.commit, "seeds": args.seeds, "hardware": hardware}
    found |= {"rows": [], "losses": {}, "curves": [], "compiled": []}
    width = args.width
    for seed in args.seeds:
        arms = train_arms(args.folder, corpus, seed, width)
        width = int(list(arms)[1].rpartition(" ")[2])
        for arm, (model, loss) in arms.items() if "prune" in args.stages else ():
            found["losses"][f"{seed} {arm}"] = loss
            scores = "attribution" in args.stages
            found["rows"] += prune_arm(args.folder, corpus, seed, arm, model, attribution=scores)
        for arm, (model, _) in arms.items() if "curves" in args.stages else ():
            curves = sweep_methods(args.folder, corpus, seed, arm, model)
            found["curves"].append({"seed": seed, "arm": arm, "methods": curves})
        if "compile" in args.stages:
            found["compiled"].append(compile_quotes(args.folder, seed, arms["sparse"][0]))
    if set(args.stages) == set(STAGES):
        write_results(found)


if __name__ == "__main__":
    main()
