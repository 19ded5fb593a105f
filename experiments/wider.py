"""Wider models: the laptop's recipe at widths 512 and 1,024, on one GPU; docs/results/wider.md.

    python experiments/wider.py --run       # what is not done: models, circuits, audits
    python experiments/wider.py             # write docs/results/wider.md from what is done
    python experiments/wider.py --pair      # and results/wider/pair*, of the models of seed 0

Steps, nonzeros and pruner are those of `tl-sparse sweep figure3 --preset laptop`; only widths are
added that take a laptop hours a seed. Training takes a GPU; circuits are found on whatever there
is.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from make_zoo import write_pair
from replication import ROOT, text_of, write_between

from tl_sparse.config import AuditConfig
from tl_sparse.sweeps import PRESETS, ModelCell, Store, Text, run_cells
from tl_sparse.sweeps.cells import Cell, CircuitCell
from tl_sparse.sweeps.figures import comparison, rows_in_markdown
from tl_sparse.sweeps.figures.contents import TABLES
from tl_sparse.sweeps.figures.finished import Finished, by_recipe
from tl_sparse.sweeps.plans import circuits_of, dense_model, sparse_model

TASKS = (
    "single_double_quote", "set_or_string_fixedvarname", "enumerate_range", "bracket_counting",
    "while_return_true", "fstring_brace", "for_while", "indent_for", "var_if", "lambda_func",
    "final_kwarg", "if_ternary",
)  # fmt: skip
"""The tasks that both arms of the laptop's sweep have circuits for."""

AUDITED = ("single_double_quote", "indent_for")
"""Tasks whose circuits are audited, which takes as long again as pruning them."""

PRESET = replace(
    PRESETS["laptop"], widths=(256, 512, 1024), targets=(0.15,), tasks=TASKS, saes=None,
    device="cuda",
)  # fmt: skip
CONTROLS = {512: 80, 1024: 96}
"""By the width of a sparse model, the dense width whose loss is nearest at each of the seeds."""

FOLDERS = {512: "pair", 1024: "pair1024"}
"""Where the pair of seed 0 is written, by that width."""

FEWER = 4_000
"""Nonzeros of one more model of the last width, seed 0; its loss is that of the first control."""

BETTER = 112
"""A dense width that is better than every sparse model, and not pruned."""

IN_TF32 = (1024, BETTER)
"""Widths that were trained with products in TF32."""

SELDOM = {"checkpoint_every": 5_000, "eval_every": 500}
"""For the last width: while training, a checkpoint is 300 MB."""

OTHER_RECIPE = {"anneal": "none", "warmup_fraction": 0.05}
"""Better than the recipe in runs of a quarter of the length (docs/results/ablations.md)."""
PAGE = ROOT / "docs" / "results" / "wider.md"
COMMAND = "python experiments/wider.py --run --pair"
SHOWN = ("stages", "arms", "tasks")
"""The tables of a pair, besides those of all models."""


def main() -> None:
    """Do what is missing if asked to, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "wider")
    parser.add_argument("--run", action="store_true", help="do what is not done yet")
    parser.add_argument("--pair", action="store_true", help="write the folders of pairs, too")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    store = Store(args.folder)
    begun = any((store.folder / "cells").glob("*.json"))
    text = PRESET.text(store.text_folder) if args.run and not begun else text_of(store)
    pairs = {width: pairs_of(text, width) for width in CONTROLS}
    fewer = sparse(text, 0, 1024, nonzeros=FEWER)
    better = [dense_model(PRESET, text, seed=seed, width=BETTER) for seed in PRESET.seeds]
    cells = [*(c for some in pairs.values() for c in some), fewer, *circuits(fewer, ()), *better]
    others = [*(sparse(text, seed, 256) for seed in (1, 2)), *other_recipe(text)]
    if args.run:
        run([*cells, *others], store)
    if args.pair:
        for width in CONTROLS:
            write_folder(pairs[width], store, args.folder / FOLDERS[width])
    parts = [comparison(PRESET, text, cells, store, figure="figure3").markdown()]
    for width, some in pairs.items():
        tables = comparison(PRESET, text, some, store).tables
        parts.append(f"## Width {width:,} beside dense models of {CONTROLS[width]} channels\n")
        parts += [f"{TABLES[name]}:\n\n{rows_in_markdown(tables[name])}\n" for name in SHOWN]
    models = [cell for cell in cells if isinstance(cell, ModelCell)]
    parts.append(f"## The recipe\n\n{rows_in_markdown(recipes([*models, *others], store))}")
    write_between(args.page, "\n".join(parts))


def run(cells: Sequence[Cell], store: Store) -> None:
    """Do cells, first the models that take products in TF32."""
    matmul = torch.backends.cuda.matmul
    some = [cell for cell in cells if isinstance(cell, ModelCell) and cell.width in IN_TF32]
    matmul.allow_tf32 = True
    print(run_cells(some, store))
    matmul.allow_tf32 = False
    print(run_cells(cells, store))


def sparse(text: Text, seed: int, width: int, nonzeros: int | None = None) -> ModelCell:
    """Give a sparse model of the laptop's recipe, with its 8,000 nonzeros if none are given."""
    changes = SELDOM if width == 1024 else {}
    wanted = nonzeros or PRESET.nonzeros[1]
    return sparse_model(PRESET, text, seed=seed, width=width, nonzeros=wanted, **changes)


def pairs_of(text: Text, width: int) -> list[Cell]:
    """Give the sparse models of a width, their controls, and the circuits of both."""
    models = [
        model
        for seed in PRESET.seeds
        for model in (
            sparse(text, seed, width),
            dense_model(PRESET, text, seed=seed, width=CONTROLS[width]),
        )
    ]
    return [*models, *(cell for model in models for cell in circuits(model))]


def circuits(model: ModelCell, audited: Sequence[str] = AUDITED) -> Iterator[CircuitCell]:
    """Give the cells of a model's circuits, of which some are audited."""
    for cell in circuits_of(PRESET, model):
        yield replace(cell, audit=AuditConfig.quick() if cell.task in audited else None)


def other_recipe(text: Text) -> list[ModelCell]:
    """Give models without annealing, with a longer warm-up."""
    return [sparse_model(PRESET, text, seed=seed, width=512, **OTHER_RECIPE) for seed in (0, 1)]


def write_folder(cells: Sequence[Cell], store: Store, folder: Path) -> None:
    """Write the pair of seed 0 as a folder that `zoo.load_folder` opens."""
    first, control = [cell for cell in cells if isinstance(cell, ModelCell)][:2]
    if not all(store.model_folder(model).is_dir() for model in (first, control)):
        raise SystemExit(
            f"--pair takes trained models, and {store.folder} has only what was found in them. "
            "With --run a model is trained again if something of its own is not done yet."
        )
    write_pair(Finished(cells, store), store, first, control, folder, command=COMMAND)


def recipes(models: Sequence[ModelCell], store: Store) -> list[dict[str, object]]:
    """Give a row for each size and recipe: losses and dead neurons, seed by seed."""
    rows = []
    done = {m.key: (m, result) for m in models if (result := store.result(m)) is not None}
    for some in by_recipe([model for model, _ in done.values()]).values():
        results = [done[model.key][1] for model in some]
        training = some[0].training
        rows.append(
            {
                "model": some[0].label.removeprefix("train ").rpartition(", seed")[0],
                "annealing": training.anneal,
                "warm-up": f"{training.warmup_fraction:.0%}",
                "seeds": ", ".join(str(model.training.seed) for model in some),
                "validation loss": ", ".join(f"{r['validation_loss']:.3f}" for r in results),
                "mean": round(mean(r["validation_loss"] for r in results), 3),
                "dead neurons by layer": "; ".join(
                    ", ".join(map(str, r["dead_neurons"])) for r in results
                ),
            }
        )
    return rows


if __name__ == "__main__":
    main()
