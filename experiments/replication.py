"""Make replication.md, concepts.md and ablations.md in docs/results from finished cells of sweeps.

    tl-sparse sweep figure2,figure3,activation,concepts,capability --folder results/replication
    tl-sparse sweep optimizer,methods --folder results/ablations
    python experiments/replication.py

The first two do what is not done yet and take hours; the last takes a moment and writes whatever is
done. The two folders are of two kinds of processor. The paper's numbers beside ours are read off
its figures (Gao et al. 2025).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tl_sparse.files import write_text
from tl_sparse.sweeps import FIGURES, PRESETS, Preset, Store, Text, summarise
from tl_sparse.sweeps.figures import rows_in_markdown

ROOT = Path(__file__).resolve().parents[1]
PAGES_FOLDER = ROOT / "docs" / "results"
PAGES = {
    "replication.md": ("replication", ("figure2", "figure3", "activation")),
    "concepts.md": ("replication", ("concepts", "capability")),
    "ablations.md": ("ablations", ("optimizer", "methods")),
}
"""The folder of cells in results, and the figures, of each page."""
MARKS = ("<!-- made by experiments/replication.py -->", "<!-- end -->")

PAPER_FIGURE_2 = [
    {"target loss": 0.5, "sparse edges": 128, "dense edges": 2929, "dense / sparse": 23},
    {"target loss": 0.15, "sparse edges": 240, "dense edges": 5798, "dense / sparse": 24},
    {"target loss": 0.05, "sparse edges": 386, "dense edges": 8199, "dense / sparse": 21},
]
PAPER_FIGURE_3 = [
    {"parameters": total, "nonzeros": nonzeros, "pretraining loss": loss, "edges": edges}
    for total, row in {
        "7.4M": ((7.4, 1.225, 4360), (3.7, 1.238, 2617), (1.9, 1.273, 2350), (0.9, 1.325, 1395)),
        "29.7M": ((7.4, 1.074, 2004), (3.7, 1.107, 1845), (1.9, 1.153, 802), (0.9, 1.213, 481)),
        "118.8M": ((7.4, 0.987, 2041), (3.7, 1.026, 1212), (1.9, 1.080, 947), (0.9, 1.156, 601)),
        "475M": ((7.4, 0.949, 1920), (3.7, 0.995, 1205), (1.9, 1.056, 828), (0.9, 1.162, 496)),
    }.items()
    for nonzeros, loss, edges in ((f"{n}M", *rest) for n, *rest in row)
]
PAPER_OPTIMIZER = [
    {"change": change, "width 256": narrow, "width 512": middle, "width 1,024": wide}
    for change, narrow, middle, wide in (
        ("as it is", 1.325, 1.202, 1.156),
        ("no gradient clip", 1.397, 1.294, "off the scale"),
        ("no learning-rate decay", 1.413, 1.296, 1.241),
        ("no warm-up", 1.305, 1.200, 1.164),
        ("warm-up over 5 %", 1.304, 1.200, 1.149),
        ("no annealing of the density", 1.310, 1.227, 1.208),
        ("no 1/sqrt(L0) factor", 1.327, 1.210, 1.175),
        ("eps 1", 1.335, 1.212, 1.164),
        ("eps 0.01", 1.336, 1.223, 1.188),
        ("eps 0.001", 1.385, 1.298, 1.276),
        ("beta2 0.99", 1.303, 1.216, 1.181),
        ("beta2 0.999", 1.316, 1.247, 1.275),
        ("beta1 0.8", 1.338, 1.212, 1.175),
        ("beta1 0.95", 1.297, 1.199, 1.149),
        ("weight decay 0.03", 1.308, 1.214, 1.164),
        ("weight decay 0.3", 1.325, 1.197, 1.156),
    )
]
"""Figures 13 to 30: loss at the best of five learning rates, each change with its own best."""
PAPER_METHODS = [
    {"target loss": target, "edges, learned": learned, "edges, attribution": attribution,
     "attribution / learned": round(attribution / learned)}
    for target, learned, attribution in (
        (0.5, 151, 32_000), (0.15, 309, 97_000), (0.05, 426, 178_000),
    )
]  # fmt: skip
"""Figure 31."""
PAPER = {
    "figure2": PAPER_FIGURE_2,
    "figure3": PAPER_FIGURE_3,
    "optimizer": PAPER_OPTIMIZER,
    "methods": PAPER_METHODS,
}


def main() -> None:
    """Read the cells and write each page between its marks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "results", help="where the sweeps are"
    )
    parser.add_argument("--pages", type=Path, default=PAGES_FOLDER, help="where the pages are")
    parser.add_argument("--preset", default="laptop", choices=PRESETS)
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    preset = replace(PRESETS[args.preset], seeds=tuple(map(int, args.seeds.split(","))))
    for name, (folder, figures) in PAGES.items():
        page = args.pages / name
        if page.is_file():
            store = Store(args.folder / folder)
            parts = parts_of(figures, preset, text_of(store), store)
            write_between(page, "\n".join(parts))
            print(f"{page}: {len(parts)} parts.")


def parts_of(figures: Sequence[str], preset: Preset, text: Text, store: Store) -> list[str]:
    """Give what there is of some figures, and the paper's numbers behind those that it has.

    A figure of which nothing is done but models of the figures before it is left out.
    """
    parts, before = [], set[str]()
    for figure in figures:
        cells = {cell.key: cell for cell in FIGURES[figure](preset, text)}
        own = [cell for key, cell in cells.items() if key not in before]
        before |= cells.keys()
        if all(store.result(cell) is None for cell in own):
            continue
        words = summarise(figure, preset, text, store).markdown()
        parts.append(
            words.replace("docs/concepts/sae_arm.md", "[the SAE arm](../concepts/sae_arm.md)")
        )
        if figure in PAPER:
            lines = ["The paper's, read off its figures:", "", rows_in_markdown(PAPER[figure]), ""]
            parts.append("\n".join(lines))
    return parts


def write_between(page: Path, body: str) -> None:
    """Put a text between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    write_text(page, f"{before}{MARKS[0]}\n\n{body}\n{MARKS[1]}{after}")


def text_of(store: Store) -> Text:
    """Give the text that the cells of a store were made with, wherever this runs."""
    for path in sorted((store.folder / "cells").glob("*.json")):
        spec = json.loads(path.read_text(encoding="utf-8"))["cell"]
        if spec["kind"] == "model":
            return Text(**spec["text"])
    raise SystemExit(f"There is no finished model in {store.folder}.")


if __name__ == "__main__":
    main()
