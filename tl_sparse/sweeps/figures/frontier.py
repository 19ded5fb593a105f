"""Figure 3: edges against validation loss, over width and number of nonzeros.

Models do not all have circuits of the same tasks, and a hard task has more edges than an easy one.
So a point of the figure is adjusted (`means.adjusted_means`), and what a step in width or nonzeros
does is taken task by task, seed by seed, on the tasks that both models have.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from tl_sparse.sweeps.cells import ModelCell
from tl_sparse.sweeps.figures.finished import Finished, by_recipe, listed, mean, ratio
from tl_sparse.sweeps.figures.means import adjusted_means
from tl_sparse.sweeps.plans import is_dense


def frontier_curves(done: Finished) -> dict[str, list[tuple[float, float]]]:
    """Join models of one number of nonzeros over widths: validation loss, adjusted edges."""
    recipes = {str(i): ms for i, ms in enumerate(by_recipe([*done.models.values()]).values())}
    counts: dict[str, dict[str, list[int]]] = {}
    for name, models in recipes.items():
        tasks = counts.setdefault(name, {})
        for model in models:
            for task, n in done.edges(model).items():
                tasks.setdefault(task, []).append(n)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, edges in adjusted_means(counts).items():
        models = recipes[name]
        arm = "dense" if is_dense(models[0]) else f"sparse, {_nonzeros(done, models):,} nonzeros"
        curves.setdefault(arm, []).append((mean([done.loss(m) for m in models]), edges))
    return {name: sorted(points) for name, points in sorted(curves.items())}


def step_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each step to a wider model of as many nonzeros, or to fewer at one width.

    `edges, times` is the geometric mean over tasks of how many times as many edges the circuits of
    the second model have, with its interval; below 1 they have fewer.
    """
    recipes = by_recipe(done.sparse()).values()
    wider = _steps(recipes, same=lambda ms: _nonzeros(done, ms), by=lambda ms: ms[0].width)
    fewer = _steps(recipes, same=lambda ms: ms[0].width, by=lambda ms: -_nonzeros(done, ms))
    rows = []
    for step, pairs in (("wider", wider), ("fewer nonzeros", fewer)):
        for first, second in pairs:
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
    for models in sorted(sparse, key=lambda ms: (ms[0].width, _nonzeros(done, ms))):
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
    recipes: Any, *, same: Callable[[list[ModelCell]], int], by: Callable[[list[ModelCell]], int]
) -> list[tuple[list[ModelCell], list[ModelCell]]]:
    """Pair each recipe with the next one that has the same of one size."""
    groups: dict[int, list[list[ModelCell]]] = {}
    for models in sorted(recipes, key=by):
        groups.setdefault(same(models), []).append(models)
    return [pair for _, some in sorted(groups.items()) for pair in pairwise(some)]


def _nonzeros(done: Finished, models: list[ModelCell]) -> int:
    """Give the nonzeros of the blocks, to the hundred: densities round them."""
    return round(done.results[models[0].key]["n_nonzero_blocks"], -2)


def _size(done: Finished, models: list[ModelCell]) -> str:
    return f"width {models[0].width}, {_nonzeros(done, models):,} nonzeros"
