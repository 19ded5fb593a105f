"""Wider models: the laptop's recipe at width 512, on one GPU, beside dense controls; wider.md.

    python experiments/wider.py --run       # what is not done: models, circuits, audits
    python experiments/wider.py             # write docs/results/wider.md from what is done
    python experiments/wider.py --pair      # and results/wider/pair, of the models of seed 0

Steps, nonzeros and pruner are those of `tl-sparse sweep figure3 --preset laptop`; only widths are
added that take a laptop hours a seed. Training takes a GPU; circuits are found on whatever there
is.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from make_zoo import write_pair
from replication import ROOT, text_of, write_between

from tl_sparse.sweeps import PRESETS, ModelCell, Store, Text, run_cells
from tl_sparse.sweeps.cells import CircuitCell
from tl_sparse.sweeps.figures import comparison, rows_in_markdown
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
    PRESETS["laptop"], widths=(256, 512), dense_widths=(80, 96), targets=(0.15,), tasks=TASKS,
    saes=None, device="cuda",
)  # fmt: skip
CONTROL = 80
"""The dense width whose loss is nearest at each of the seeds; the other one is not pruned."""

OTHER_RECIPE = {"anneal": "none", "warmup_fraction": 0.05}
"""Better than the recipe in runs of a quarter of the length (docs/results/ablations.md)."""
PAGE = ROOT / "docs" / "results" / "wider.md"
COMMAND = "python experiments/wider.py --run --pair"


def main() -> None:
    """Do what is missing if asked to, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "wider")
    parser.add_argument("--run", action="store_true", help="do what is not done yet")
    parser.add_argument("--pair", action="store_true", help="write the pair's folder, too")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    store = Store(args.folder)
    begun = any((store.folder / "cells").glob("*.json"))
    text = PRESET.text(store.text_folder) if args.run and not begun else text_of(store)
    main_models = [model for seed in PRESET.seeds for model in pair(text, seed)]
    narrower = [sparse_model(PRESET, text, seed=s, width=PRESET.widths[0]) for s in (1, 2)]
    pruned = [model for model in main_models if model.width in (PRESET.widths[1], CONTROL)]
    cells = [*main_models, *(cell for model in pruned for cell in circuits(model))]
    others = [*narrower, *other_recipe(text)]
    if args.run:
        print(run_cells([*cells, *others], store))
    if args.pair:
        done, (sparse, control) = Finished(cells, store), pruned[:2]
        if not all(store.model_folder(model).is_dir() for model in (sparse, control)):
            raise SystemExit(
                f"--pair takes trained models, and {args.folder} has only what was found in them. "
                "With --run a model is trained again if something of its own is not done yet."
            )
        write_pair(done, store, sparse, control, args.folder / "pair", command=COMMAND)
    table = rows_in_markdown(recipes([*main_models, *others], store))
    page = comparison(PRESET, text, cells, store).markdown()
    write_between(args.page, f"{page}\n\n## The recipe\n\n{table}")


def pair(text: Text, seed: int) -> list[ModelCell]:
    """Give the wide sparse model and the dense ones that may match it in loss."""
    dense = [dense_model(PRESET, text, seed=seed, width=width) for width in PRESET.dense_widths]
    return [sparse_model(PRESET, text, seed=seed), *dense]


def circuits(model: ModelCell) -> Iterator[CircuitCell]:
    """Give the cells of a model's circuits, of which some are audited."""
    for cell in circuits_of(PRESET, model):
        yield cell if cell.task in AUDITED else replace(cell, audit=None)


def other_recipe(text: Text) -> list[ModelCell]:
    """Give models without annealing, with a longer warm-up."""
    return [sparse_model(PRESET, text, seed=seed, **OTHER_RECIPE) for seed in (0, 1)]


def recipes(models: Sequence[ModelCell], store: Store) -> list[dict[str, object]]:
    """Give a row for each size and recipe: losses and dead neurons, seed by seed."""
    rows = []
    trained = [model for model in models if store.result(model) is not None]
    for some in by_recipe(trained).values():
        results = [store.result(model) for model in some]
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
