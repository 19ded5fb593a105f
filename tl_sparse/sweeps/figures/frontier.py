"""Figure 3: edges against validation loss, over width and number of nonzeros.

Models do not all have circuits of the same tasks, and a hard task has more edges than an easy one.
So a point of the figure is adjusted (`means.adjusted_means`), and what a step in width or nonzeros
does is taken task by task, seed by seed, on the tasks that both models have.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from tl_sparse.sweeps.cells import ModelCell
from tl_sparse.sweeps.figures.finished import Finished, by_recipe, listed, mean, ratio
from tl_sparse.sweeps.figures.means import adjusted_means
from tl_sparse.sweeps.plans import is_dense


def frontier_curves(done: Finished) -> dict[str, list[tuple[float, float]]]:
    """Join models of one number of nonzeros over widths: validation loss, adjusted edges."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for models, edges in adjusted_edges(done, [*done.models.values()]):
        arm = "dense" if is_dense(models[0]) else f"sparse, {_nonzeros(done, models):,} nonzeros"
        curves.setdefault(arm, []).append((mean([done.loss(m) for m in models]), edges))
    return {name: sorted(points) for name, points in sorted(curves.items())}


def adjusted_edges(
    done: Finished, models: Sequence[ModelCell]
) -> list[tuple[list[ModelCell], float]]:
    """Give the edges of each recipe's circuits on an average task, though it may lack some."""
    recipes = {str(i): some for i, some in enumerate(by_recipe(models).values())}
    counts: dict[str, dict[str, list[int]]] = {}
    for name, some in recipes.items():
        tasks = counts.setdefault(name, {})
        for model in some:
            for task, n in done.edges(model).items():
                tasks.setdefault(task, []).append(n)
    return [(recipes[name], edges) for name, edges in adjusted_means(counts).items()]


def step_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each step to a wider model, to fewer nonzeros, or to fewer active channels.

    All else is equal: what a step changes is one of the three.
    `edges, times` is the geometric mean over tasks of how many times as many edges the circuits of
    the second model have, with its interval; below 1 they have fewer.
    """
    recipes = by_recipe(done.sparse()).values()
    sizes: list[tuple[str, Callable[[list[ModelCell]], float]]] = [
        ("wider", lambda models: models[0].width),
        ("fewer nonzeros", lambda models: -_nonzeros(done, models)),
        ("fewer active channels", lambda models: -active_density(models)),
    ]
    rows = []
    for step, by in sizes:
        others = [size for name, size in sizes if name != step]
        for first, second in _steps(recipes, others=others, by=by):
            seeds = {m.training.seed: m for m in first}
            both = [(seeds[m.training.seed], m) for m in second if m.training.seed in seeds]
            found = ratio([(done.edges(a), done.edges(b)) for a, b in both])
            if found is None:
                continue
            rows.append(
                {
                    "step": step,
                    "from": _size(done, first),
                    "to": _size(done, second),
                    "seeds": len(both),
                    "loss": f"{mean([done.loss(b) - done.loss(a) for a, b in both]):+.3f}",
                    "edges, times": listed(found),
                    "tasks compared": found.n,
                }
            )
    return rows


def rival_rows(done: Finished) -> list[dict[str, Any]]:
    """Set each sparse model beside each dense one of its seed, nearest in loss or not.

    A dense model that predicts better than the sparse one, a negative `loss gap`, has the harder
    part; so two on either side of its loss enclose the ratio at equal loss.
    """
    dense = by_recipe([m for m in done.models.values() if is_dense(m)]).values()
    rows = []
    sparse = by_recipe(done.sparse()).values()
    for models in sorted(
        sparse, key=lambda ms: (ms[0].width, _nonzeros(done, ms), active_density(ms))
    ):
        for rivals in sorted(dense, key=lambda ms: ms[0].width):
            seeds = {m.training.seed: m for m in rivals}
            both = [(m, seeds[m.training.seed]) for m in models if m.training.seed in seeds]
            found = ratio([(done.edges(a), done.edges(b)) for a, b in both])
            if found is None:
                continue
            nodes = [(done.edges(a, stage="nodes"), done.edges(b, stage="nodes")) for a, b in both]
            rows.append(
                {
                    "sparse": _size(done, models),
                    "dense": f"width {rivals[0].width}",
                    "seeds": len(both),
                    "loss gap": f"{mean([done.loss(b) - done.loss(a) for a, b in both]):+.3f}",
                    "dense / sparse edges": listed(found),
                    "by nodes": listed(ratio(nodes)),
                    "tasks compared": found.n,
                }
            )
    return rows


def _steps(
    recipes: Iterable[list[ModelCell]],
    *,
    others: Sequence[Callable[[list[ModelCell]], float]],
    by: Callable[[list[ModelCell]], float],
) -> list[tuple[list[ModelCell], list[ModelCell]]]:
    """Pair each recipe with the next one by one size, all other sizes equal."""
    groups: dict[tuple[float, ...], list[list[ModelCell]]] = {}
    for models in sorted(recipes, key=by):
        groups.setdefault(tuple(abs(size(models)) for size in others), []).append(models)
    return [pair for _, some in sorted(groups.items()) for pair in pairwise(some)]


def active_density(models: list[ModelCell]) -> float:
    """Give the density of a recipe's activations, the same at all sites in a sweep."""
    return models[0].sparsity.site_density("attn_in")


def _nonzeros(done: Finished, models: list[ModelCell]) -> int:
    """Give the nonzeros of the blocks, to the hundred: densities round them."""
    return round(done.results[models[0].key]["n_nonzero_blocks"], -2)


def _size(done: Finished, models: list[ModelCell]) -> str:
    size = f"width {models[0].width}, {_nonzeros(done, models):,} nonzeros"
    if len({active_density([model]) for model in done.sparse()}) > 1:
        size += f", {active_density(models):.3g} active"
    return size
