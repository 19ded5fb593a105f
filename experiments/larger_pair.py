"""A larger pair: four layers, width 512, trained on one GPU, beside dense models; larger.md.

    python experiments/larger_pair.py --run      # what is not done: models, circuits, audits
    python experiments/larger_pair.py            # write docs/results/larger.md from what is done

The sparse model and the ladder of dense ones are those of `tl-sparse sweep --preset gpu`, and take
a GPU. The control in the comparison is a small dense model, trained on a CPU on fewer tokens until
its loss is about the sparse model's; circuits are found on whatever there is.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from replication import ROOT, text_of, write_between

from tl_sparse.presets import DENSE_SPARSITY, DENSE_TRAINING
from tl_sparse.sweeps import PRESETS, ModelCell, Store, Text, run_cells
from tl_sparse.sweeps.cells import Cell, CircuitCell
from tl_sparse.sweeps.figures import comparison, rows_in_markdown
from tl_sparse.sweeps.plans import circuits_of, dense_model, sparse_model

PRESET = replace(PRESETS["gpu"], seeds=(0,))
PAGE = ROOT / "docs" / "results" / "larger.md"
LADDER = (96, 136, 192)
CONTROL_WIDTH, CONTROL_TOKENS = 72, 36_000_000
"""Guessed from the ladder's losses, never by a circuit; it takes most of an hour of one core."""

AUDITED = ("single_double_quote", "indent_for", "set_or_string", "else_elif", "with_as", "var_swap")
"""Tasks whose circuits are audited, which takes as long again as pruning them."""


def main() -> None:
    """Do what is missing if asked to, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--run", action="store_true", help="do what is not done yet")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    store = Store(args.folder)
    text = PRESET.text(store.text_folder) if args.run else text_of(store)
    models = models_of(text)
    cells: list[Cell] = [*models, *circuits(models[0]), *circuits(models[-1])]
    if args.run:
        print(run_cells(cells, store))
    write_between(args.page, f"{ladder(models, store)}\n\n{pair(models, text, cells, store)}")


def models_of(text: Text) -> list[ModelCell]:
    """Give the sparse model, the dense ladder, and the control."""
    control = replace(
        dense_model(PRESET, text, seed=0, width=CONTROL_WIDTH),
        training=replace(DENSE_TRAINING, n_tokens=CONTROL_TOKENS, batch_size=16),
        device="cpu",
    )
    assert control.sparsity == DENSE_SPARSITY
    dense = [dense_model(PRESET, text, seed=0, width=width) for width in LADDER]
    return [sparse_model(PRESET, text, seed=0), *dense, control]


def circuits(model: ModelCell) -> Iterator[CircuitCell]:
    """Give the cells of a model's circuits, of which some are audited."""
    for cell in circuits_of(PRESET, model):
        yield cell if cell.task in AUDITED else replace(cell, audit=None)


def ladder(models: Sequence[ModelCell], store: Store) -> str:
    """List the models and their losses."""
    rows = []
    for cell in models:
        result = store.result(cell)
        if result is not None:
            rows.append(
                {
                    "model": cell.label.removeprefix("train ").removesuffix(", seed 0"),
                    "tokens, millions": round(cell.training.n_tokens / 1e6),
                    "trained on": {"cuda": "H100", "cpu": "one CPU core"}[cell.device],
                    "nonzeros in blocks": result["n_nonzero_blocks"],
                    "validation loss": round(result["validation_loss"], 3),
                    "dead neurons by layer": ", ".join(map(str, result["dead_neurons"])),
                }
            )
    return rows_in_markdown(rows)


def pair(models: Sequence[ModelCell], text: Text, cells: Sequence[Cell], store: Store) -> str:
    """Compare the sparse model's circuits with the control's."""
    both = {models[0], models[-1]}
    some = [cell for cell in cells if getattr(cell, "model", cell) in both]
    return comparison(PRESET, text, some, store).markdown()


if __name__ == "__main__":
    main()
