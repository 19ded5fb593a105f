"""Audit circuits of several tasks in sparse and dense models, and look for a better pruner.

    python experiments/audit_results.py --folder audit-results --seeds 0 1 2   # hours on two cores

For each seed the demo's sparse model is trained, and the dense control of equal loss (train). Each
task that all of them can do is pruned and audited in both (audit). The nonsense task on quotes goes
through the same pruner (nonsense). In the sparse models the quotes are then pruned in other ways,
and audited again (changes): with stochastic ablation, under resampling from the corpus, and at a
third of the target. The sparse quote circuits are audited with control prunings (controls). Every
stage is kept in the folder: a second run goes on where the first was stopped, `--stages` does only
some of them, and several may run side by side on other seeds. `--write` makes the page's tables of
what the folder holds.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tl_sparse import (
    AuditConfig,
    AuditReport,
    Circuit,
    HookedSparseTransformer,
    audit,
    data,
    prune,
    references,
)
from tl_sparse import tasks as all_tasks
from tl_sparse.ablation import References, resampled_references
from tl_sparse.auditing import CLAIMS
from tl_sparse.config import PruningConfig
from tl_sparse.demo import DemoSettings, arm_specs, dense_arm, train_arm
from tl_sparse.files import write_text
from tl_sparse.presets import DEMO_PRUNING, DEMO_VOCABULARY
from tl_sparse.pruning import TaskGateError, UnreachableTargetError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "audits.md"
MARKS = ("<!-- tables: made by experiments/audit_results.py -->", "<!-- end of tables -->")
STAGES = ("prune", "nonsense", "changes", "audit", "controls")
QUOTES, NONSENSE = "single_double_quote", "nonsense_quotes"
TASKS = (QUOTES, "bracket_counting", "var_if", "while_return_true")
WIDTH = 52
N_REFERENCE_TOKENS = 2**18
BESIDE = replace(DEMO_PRUNING, n_surroundings=5)

Ablate = Callable[[HookedSparseTransformer, data.Corpus], References]


def means(model: HookedSparseTransformer, corpus: data.Corpus) -> References:
    """Ablate by the corpus mean, as everywhere else."""
    return references(model, corpus, N_REFERENCE_TOKENS, progress=False)


def other_text(model: HookedSparseTransformer, corpus: data.Corpus) -> References:
    """Ablate by values on other text."""
    return resampled_references(model, corpus)


CHANGES: dict[str, tuple[PruningConfig, Ablate]] = {
    "as it is": (DEMO_PRUNING, means),
    "stochastic ablation": (BESIDE, means),
    "resampled from the corpus": (DEMO_PRUNING, other_text),
    "a target of 0.05": (replace(DEMO_PRUNING, target_loss=0.05), means),
}
"""Ways to prune, by what the page calls them."""
LONGER = replace(DEMO_PRUNING, n_steps=5 * DEMO_PRUNING.n_steps)
"""Nonsense is also looked for with five times the steps."""


def arms_of(
    folder: Path, corpus: data.Corpus, seed: int
) -> dict[str, tuple[HookedSparseTransformer, float]]:
    """Train the two arms of a seed, or open them; give models and validation losses."""
    settings = DemoSettings(seed=seed)
    specs = {"sparse": arm_specs(settings)[0], "dense": dense_arm(settings, WIDTH)}
    found = {}
    for arm, spec in specs.items():
        model, history = train_arm(spec, corpus, folder / f"seed{seed}" / spec.name)
        found[arm] = (model, history.validation_loss)
    return found


def pruned(
    model: HookedSparseTransformer, name: str, corpus: data.Corpus, seed: int, place: Path,
    how: str = "as it is",
) -> dict[str, Any]:  # fmt: skip
    """Prune one task in one model; kept in files."""
    kept, (config, ablate) = place / f"{name}.json", CHANGES.get(how, (LONGER, means))
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    place.mkdir(parents=True, exist_ok=True)
    task = task_for(model, name)
    row: dict[str, Any] = {"task": name, "how": how}
    if name == NONSENSE:
        config = replace(config, min_accuracy=0.0)
    began = time.perf_counter()
    try:
        refs = ablate(model, corpus)
        circuit = prune(model, task, refs, replace(config, seed=seed), progress=False)
    except TaskGateError as error:
        row |= {"note": "can't do it", "accuracy": error.losses["model_test_accuracy"]}
    except UnreachableTargetError as error:
        row |= {"note": "not reached", "best": error.best_loss}
        row["accuracy"] = error.losses["model_test_accuracy"]
    else:
        circuit.save(place / f"{name}.circuit.json")
        row |= {"nodes": circuit.n_nodes, "edges": circuit.n_edges, "losses": circuit.losses}
        row["accuracy"] = circuit.losses["model_test_accuracy"]
    row["seconds"] = round(time.perf_counter() - began)
    write_text(kept, json.dumps(row))
    print(place.parent.name, place.name, row, flush=True)
    return row


def audited(
    model: HookedSparseTransformer, name: str, corpus: data.Corpus, seed: int, place: Path,
    *, n_control_seeds: int,
) -> None:  # fmt: skip
    """Audit a circuit if there is one; kept in a file."""
    found, out = place / f"{name}.circuit.json", place / f"{name}.audit.json"
    if not found.is_file():
        return
    if out.is_file():
        kept = AuditReport.load(out).provenance["audit"]
        if kept["n_control_seeds"] >= n_control_seeds:
            return
    circuit, began = Circuit.load(found), time.perf_counter()
    if circuit.nodes:
        config = AuditConfig(
            seed=seed, n_examples=64, max_edges=32, n_control_seeds=n_control_seeds
        )
        report = audit(model, circuit, task_for(model, name), corpus, config, progress=False)
        report.save(out)
        seconds = round(time.perf_counter() - began)
        print(place.parent.name, place.name, name, repr(report), seconds, "s", flush=True)


def task_for(model: HookedSparseTransformer, name: str) -> Any:
    """Give a task for a model."""
    return all_tasks.get(name, tokenizer=model.tokenizer, max_tokens=model.cfg.n_ctx)


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("audit-results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["sparse", "dense"])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--write", action="store_true", help="make the page of what is there")
    parser.add_argument("--commit", default=commit(), help="that the folder was made at")
    args = parser.parse_args()
    if args.write:
        write_results(args.folder, args.seeds, args.commit)
        return
    corpus = data.python_corpus(vocab_size=DEMO_VOCABULARY, cache_dir=args.folder / "corpus")
    for seed in args.seeds:
        here = args.folder / f"seed{seed}"
        arms = arms_of(args.folder, corpus, seed)
        write_text(here / "losses.json", json.dumps({arm: loss for arm, (_, loss) in arms.items()}))
        for arm in args.arms:
            model = arms[arm][0]
            for name, place, how in jobs(here, arm, args.tasks, args.stages):
                pruned(model, name, corpus, seed, place, how)
                demo = (name, place.name) == (QUOTES, "circuits of sparse")
                again = int("controls" in args.stages and demo)
                if "audit" in args.stages or again:
                    audited(model, name, corpus, seed, place, n_control_seeds=again)


def jobs(
    here: Path, arm: str, names: Sequence[str], stages: Sequence[str]
) -> Iterator[tuple[str, Path, str]]:
    """Give what is to be pruned in one arm of a seed: task, place, way."""
    for name in names if "prune" in stages else ():
        yield name, here / f"circuits of {arm}", "as it is"
    if "nonsense" in stages:
        yield NONSENSE, here / f"circuits of {arm}", "as it is"
        yield NONSENSE, here / f"longer search, {arm}", "longer search"
    for how in list(CHANGES)[1:] if "changes" in stages and arm == "sparse" else ():
        yield QUOTES, here / how, how


# -- the page -----------------------------------------------------------------------------------


def rows_of(folder: Path, seed: int, where: str) -> dict[str, dict[str, Any]]:
    """Give what was found in one place of a seed, by task, with its audit if there is one."""
    place, found = folder / f"seed{seed}" / where, {}
    for file in sorted(place.glob("*.json")):
        if "." not in file.stem:
            found[file.stem] = json.loads(file.read_text(encoding="utf-8"))
            report = place / f"{file.stem}.audit.json"
            if report.is_file():
                found[file.stem]["audit"] = json.loads(report.read_text(encoding="utf-8"))
    return found


def sizes(folder: Path, seeds: list[int]) -> Iterator[dict[str, str]]:
    """Give edges and test loss of every task, each arm's seeds in one cell, nonsense last."""
    found = {
        (arm, seed): rows_of(folder, seed, f"circuits of {arm}")
        for arm in ("sparse", "dense") for seed in seeds
    }  # fmt: skip
    for name in [*TASKS, NONSENSE, f"{NONSENSE}, {LONGER.n_steps} steps"]:
        row = {"task": name}
        for arm in ("sparse", "dense"):
            some = [found[arm, seed].get(name, {}) for seed in seeds]
            if "," in name:
                places = [rows_of(folder, seed, f"longer search, {arm}") for seed in seeds]
                some = [one.get(NONSENSE, {}) for one in places]
            row[f"{arm}: edges"] = ", ".join(str(one.get("edges", said(one))) for one in some)
            losses = [one["losses"]["test"] for one in some if "losses" in one]
            row[f"{arm}: loss"] = ", ".join(f"{loss:.3f}" for loss in losses)
        yield row


def said(row: dict[str, Any]) -> str:
    """Say why there is no circuit."""
    if "best" in row:
        return f"none ({row['best']:.2f})"
    return f"can't ({row['accuracy']:.0%})" if row else "-"


def verdicts(folder: Path, seeds: list[int]) -> Iterator[dict[str, str]]:
    """Give for each claim on how many seeds it holds, by task and arm."""
    for name in TASKS:
        for arm in ("sparse", "dense"):
            some = [rows_of(folder, seed, f"circuits of {arm}").get(name, {}) for seed in seeds]
            audits = [one["audit"]["verdicts"] for one in some if "audit" in one]
            row = {"task": name, "arm": arm}
            for claim in CLAIMS:
                tested = [one[claim] for one in audits if one[claim] != "not tested"]
                if tested:
                    row[claim] = f"{tested.count('holds')} of {len(tested)}"
            if audits:
                yield row


def lines_of(audits: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Give every line's values over some audits."""
    found: dict[str, dict[str, Any]] = {}
    for line in (line for one in audits for line in one["findings"]):
        entry = found.setdefault(line["name"], {"claim": line["claim"], "values": [], "holds": 0})
        entry["values"].append(math.nan if line["value"] is None else line["value"])
        entry["holds"] += line["holds"]
    return found


def spread_of(entry: dict[str, Any] | None) -> str:
    """Write a line's median and range, and on how many of its circuits it holds."""
    if not entry:
        return "-"
    values = sorted(entry["values"])
    many = f" ({values[0]:.2g} to {values[-1]:.2g})" if len(values) > 1 else ""
    return f"{median(values):.2g}{many}; {entry['holds']} of {len(values)}"


def by_line(columns: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, str]]:
    """Give one row for each line of the audit, one column for each set of audits."""
    found = {name: lines_of(audits) for name, audits in columns.items()}
    claims = {name: line["claim"] for lines in found.values() for name, line in lines.items()}
    for name, claim in sorted(claims.items(), key=lambda one: list(CLAIMS).index(one[1])):
        cells = {column: spread_of(lines.get(name)) for column, lines in found.items()}
        yield {"claim": claim, "line": name} | cells


def changes(folder: Path, seeds: list[int]) -> Iterator[dict[str, str]]:
    """Give the quote circuit's size and audit under every way to prune."""
    places = {how: "circuits of sparse" if how == "as it is" else how for how in CHANGES}
    rows = {
        how: [row for s in seeds if (row := rows_of(folder, s, place).get(QUOTES)) is not None]
        for how, place in places.items()
    }
    edges = {
        how: ", ".join(str(r.get("edges", said(r))) for r in some) for how, some in rows.items()
    }
    yield {"claim": "", "line": "edges"} | edges
    audits = {how: [row["audit"] for row in some if "audit" in row] for how, some in rows.items()}
    yield from by_line(audits)


def table(rows: list[dict[str, str]]) -> str:
    """Write rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row.get(name, "-") for name in names) + " |" for row in rows]
    return "\n".join(lines)


def in_short(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out of an audit what the folder has: curves, single nodes and edges, reasons."""
    if "audit" not in row:
        return row
    kept = ("claim", "name", "value", "threshold", "holds", "control", "spread", "over_seeds")
    report = row["audit"]
    findings = [{name: line[name] for name in kept} for line in report["findings"]]
    short = {"verdicts": report["verdicts"], "findings": findings, "measures": report["measures"]}
    return row | {"audit": short}


def write_results(folder: Path, seeds: list[int], made_at: str) -> None:
    """Write the tables between the two marks of the page, and all lines as JSON."""
    losses = [
        json.loads((folder / f"seed{seed}" / "losses.json").read_text(encoding="utf-8"))
        for seed in seeds
    ]
    of_arms = {
        arm: [
            row["audit"]
            for seed in seeds for row in rows_of(folder, seed, f"circuits of {arm}").values()
            if "audit" in row and row["task"] != NONSENSE
        ]
        for arm in ("sparse", "dense")
    }  # fmt: skip
    said_of = "; ".join(
        f"{arm} {', '.join(f'{one[arm]:.3f}' for one in losses)}" for arm in losses[0]
    )
    hardware = f"{os.cpu_count()} cores, {platform.machine()}, no GPU"
    parts = [
        f"Commit {made_at}; seeds {', '.join(map(str, seeds))}; {hardware}. Validation losses: "
        f"{said_of}.",
        "### Sizes", table(list(sizes(folder, seeds))),
        "### Verdicts: on how many seeds each claim holds", table(list(verdicts(folder, seeds))),
        "### Every line, over all tasks and seeds: median (range); on how many it holds",
        table(list(by_line(of_arms))),
        "### Other ways to prune, quotes, sparse models", table(list(changes(folder, seeds))),
    ]  # fmt: skip
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    write_text(PAGE, before + "\n\n".join([MARKS[0], *parts, MARKS[1]]) + after)
    everything = {
        str(seed): {
            place.name: {k: in_short(row) for k, row in rows_of(folder, seed, place.name).items()}
            for place in sorted((folder / f"seed{seed}").iterdir())
            if place.name in CHANGES or place.name.startswith(("circuits", "longer"))
        }
        for seed in seeds
    }
    write_text(PAGE.with_suffix(".json"), json.dumps(everything) + "\n")


def commit() -> str:
    """Give the commit that the results are of."""
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
