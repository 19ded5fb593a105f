"""The third arm: SAEs on a demo's dense model, chosen by a sweep, then pruned like channels.

    tl-sparse demo --folder demo
    python experiments/sae_arm.py --demo demo --out sae_arm.json

1. Load the demo's dense model (`--arm`, a folder of the demo) and its text.
2. Train SAEs of every architecture, width and L0 asked for, for all reads, writes and neurons, and
   score them; SAEs that `--folder` has are opened.
3. Take those with the lowest loss when all are spliced in, at an L0 of at most `--l0`.
4. Prune the quote task in the dense model, channels being nodes, and in the spliced one, latents
   and errors being nodes, by the same settings; audit both.
5. Write the JSON, and beside it a Markdown page with the three tables.

The default sweep is twelve sets of ten SAEs on the demo's two layers; at the minute or two for an
SAE of docs/results/saes.md that is hours, so give fewer, or let it run: it resumes SAE by SAE.
`--tiny` shows the way through in half a minute, on a model of its own.
"""

import argparse
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_sparse import (
    Circuit,
    HookedSparseTransformer,
    TrainingConfig,
    audit,
    data,
    prune,
    references,
    tasks,
)
from tl_sparse.config import AuditConfig, PruningConfig
from tl_sparse.demo import TASK, DemoSettings, arm_specs, counted, train_arm
from tl_sparse.files import write_text
from tl_sparse.presets import DEMO_PRUNING, DEMO_VOCABULARY
from tl_sparse.pruning import TaskGateError, UnreachableTargetError
from tl_sparse.sae_arm import (
    SAESettings,
    choose,
    edges_of_errors,
    load_saes,
    scores_table,
    splice,
    sweep_saes,
    sweep_table,
)
from tl_sparse.sae_arm.scores import markdown
from tl_sparse.sites import model_hash

ROOT = Path(__file__).resolve().parents[1]
TINY_TRAINING = TrainingConfig(n_tokens=20_000, batch_size=8, n_eval_windows=8)
TINY = DemoSettings(width=16, sparse_training=TINY_TRAINING, dense_training=TINY_TRAINING)


def opened(args: argparse.Namespace) -> tuple[HookedSparseTransformer, data.Corpus]:
    """Give the dense model and the text that it was trained on."""
    if args.tiny:
        texts = data.generate_programs(600, seed=11)
        corpus = data.corpus(texts, cache_dir=args.demo / "corpus", progress=False)
        spec = arm_specs(TINY)[1]
        model, _ = train_arm(spec, corpus, args.demo / spec.name, progress=False)
        return model, corpus
    settings = json.loads((args.demo / "settings.json").read_text(encoding="utf-8"))
    corpus = data.python_corpus(
        n_characters=settings["n_characters"],
        vocab_size=DEMO_VOCABULARY,
        cache_dir=args.demo / "corpus",
    )
    folder = args.demo / args.arm / "checkpoint" / "model"
    return HookedSparseTransformer.load(folder), corpus


def grid(args: argparse.Namespace) -> list[SAESettings]:
    """Give the settings of the sweep."""
    base = SAESettings(n_windows=args.windows, seed=args.seed)
    if args.tiny:
        base = replace(base, n_windows=16, batch_size=256)
    return [
        replace(base, architecture=architecture, expansion=expansion, l0=l0)
        for architecture in args.architectures
        for expansion in args.expansions
        for l0 in args.l0s
    ]


def arm(
    name: str,
    model: HookedSparseTransformer,
    corpus: data.Corpus,
    args: argparse.Namespace,
    config: PruningConfig,
) -> dict[str, Any]:
    """Prune and audit one arm, and give its row."""
    task = tasks.get(TASK, tokenizer=corpus.tokenizer)
    n_tokens = 2**12 if args.tiny else 2**18
    refs = references(model, corpus, n_tokens)
    row: dict[str, Any] = {"arm": name, "model": model_hash(model), "target": config.target_loss}
    try:
        circuit = prune(model, task, refs, config, force=args.tiny)
    except (TaskGateError, UnreachableTargetError) as error:
        return row | {"note": str(error), "losses": error.losses}
    circuit.save(args.folder / f"{name.replace(' ', '_')}.json")
    row |= {"nodes": circuit.n_nodes, "edges": circuit.n_edges, "losses": dict(circuit.losses)}
    row |= of_errors(circuit, model)
    if args.audit and circuit.nodes:
        report = audit(model, circuit, task, corpus, AuditConfig.quick())
        report.save(args.folder / f"{name.replace(' ', '_')}-audit.json")
        row["audit"] = counted(report)
    return row


def of_errors(circuit: Circuit, model: Any) -> dict[str, int]:
    """Count the nodes that are errors and the edges that touch one."""
    coders = getattr(model, "coders", {})
    ends = {site: coder.n_latents for site, coder in coders.items() if coder.errors}
    return {
        "error nodes": sum(node.channel == ends.get(node.site) for node in circuit.nodes),
        "error edges": len(edges_of_errors(circuit, model)) if coders else 0,
    }


def circuits_table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Give the table of the circuits as text."""
    return [
        {
            "arm": row["arm"],
            "target": f"{row['target']:g}",
            "task loss, whole": f"{row['losses']['model_test']:.3f}",
            "task loss, circuit": f"{row['losses']['test']:.3f}" if "edges" in row else "-",
            "nodes": f"{row['nodes']:,}" if "edges" in row else "-",
            "of them errors": f"{row['error nodes']:,}" if "edges" in row else "-",
            "edges": f"{row['edges']:,}" if "edges" in row else "-",
            "of them at errors": f"{row['error edges']:,}" if "edges" in row else "-",
            "audit": row.get("audit", "-"),
        }
        for row in rows
    ]


def page(found: dict[str, Any], tables: dict[str, list[dict[str, str]]]) -> str:
    """Write the tables as a page."""
    lines = [
        "# SAEs on the dense model, pruned",
        "",
        f"Commit {found['commit']}, model {found['model'][:12]}, seed {found['seed']}; chosen: "
        f"{found['chosen']}. Made by experiments/sae_arm.py.",
    ]
    for title, rows in tables.items():
        lines += ["", f"## {title}", "", markdown(rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Sweep, choose, prune, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder of the demo")
    parser.add_argument("--arm", default="dense", help="which model of the demo")
    parser.add_argument("--folder", type=Path, default=Path("sae_arm"), help="SAEs and circuits")
    parser.add_argument("--out", type=Path, default=Path("sae_arm.json"))
    names = ["topk", "batchtopk", "jumprelu", "abstopk"]
    parser.add_argument("--architectures", nargs="+", default=names, choices=names)
    parser.add_argument("--expansions", type=int, nargs="+", default=[4])
    parser.add_argument("--l0s", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--l0", type=float, default=16, help="the L0 at which SAEs are chosen")
    parser.add_argument("--windows", type=int, default=4_000, help="that an SAE is trained on")
    parser.add_argument("--target", type=float, default=DEMO_PRUNING.target_loss)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-audit", dest="audit", action="store_false")
    parser.add_argument("--tiny", action="store_true", help="the smallest size, to see the way")
    args = parser.parse_args()
    model, corpus = opened(args)
    cells = sweep_saes(
        model, corpus, args.folder, grid(args), n_eval_windows=8 if args.tiny else 64
    )
    chosen = choose(cells, args.l0)
    config = replace(DEMO_PRUNING, target_loss=args.target, seed=args.seed)
    if args.tiny:
        config = replace(config, n_steps=10, n_edge_steps=10, drop_one=False, target_loss=1.0)
    spliced = splice(model, load_saes(chosen.folder))
    rows = [arm("channels", model, corpus, args, config)]
    rows.append(arm("latents", spliced, corpus, args, config))
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    found = {
        "commit": commit,
        "corpus": corpus.hash,
        "model": model_hash(model),
        "seed": args.seed,
        "sweep": [
            {"settings": cell.settings.to_dict(), "scores": cell.scores.to_dict()} for cell in cells
        ],
        "chosen": chosen.settings.name,
        "circuits": rows,
    }
    write_text(args.out, json.dumps(found, indent=1) + "\n")
    tables = {
        "The sweep": sweep_table(cells),
        "The SAEs that were chosen": scores_table(chosen.scores),
        "Circuits of the quote task": circuits_table(rows),
    }
    text = page(found, tables)
    write_text(args.out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
