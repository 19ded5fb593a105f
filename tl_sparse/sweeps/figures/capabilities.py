"""Bits per byte of sparse and dense models and of n-grams, as tables and curves.

A sparse model is set beside dense ones of the same seed. Means are over seeds, and a difference is
the mean of the seeds' differences. Where a size is trained at two learning rates, its better one
counts.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tl_sparse.sweeps.cells import ModelCell
from tl_sparse.sweeps.figures.finished import Finished, by_recipe, mean, spread
from tl_sparse.sweeps.plans import equal_widths, is_dense, sparse_model
from tl_sparse.sweeps.presets import Preset
from tl_sparse.sweeps.text import Text


def bits_rows(preset: Preset, text: Text, done: Finished) -> list[dict[str, Any]]:
    """Give a row for each recipe and each order of n-grams: size, compute, bits per byte.

    `over the main sparse` is how many bits per byte more it takes than the sparse model of the
    preset's main size, and `equal in` what a dense model shares with that one.
    """
    scored, equal = _scores(done), equal_widths(preset)
    main = {seed: sparse_model(preset, text, seed=seed).key for seed in preset.seeds}
    rows = []
    for models in _recipes(done):
        results = [scored[m.key] for m in models]
        over = [
            scored[m.key]["bits_per_byte"] - scored[main[m.training.seed]]["bits_per_byte"]
            for m in models
            if main[m.training.seed] in scored
        ]
        dense = is_dense(models[0])
        rows.append(
            {
                "model": "dense" if dense else "sparse",
                "width": models[0].width,
                "nonzeros in blocks": _in_blocks(done, models),
                "learning rate": models[0].training.learning_rate,
                "equal in": equal.get(models[0].width) if dense else None,
                "parameters": results[0]["n_parameters"],
                "nonzero": results[0]["n_nonzero"],
                "training FLOPs": f"{results[0]['training_flops']:.2e}",
                "seeds": len(models),
                **_bits(results),
                "over the main sparse": round(mean(over), 4) if over else None,
            }
        )
    return rows + _n_gram_rows(done)


def _n_gram_rows(done: Finished) -> list[dict[str, Any]]:
    rows = []
    for cell in done.n_grams:
        result = done.results[cell.key]
        counts = {"parameters": result["n_parameters"], "nonzero": result["n_nonzero"]}
        rows.append({"model": f"{cell.order}-grams"} | counts | _bits([result]))
    return rows


def _bits(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    each = [result["bits_per_byte"] for result in results]
    return {
        "nats a token": round(mean([result["nats_per_token"] for result in results]), 4),
        "bits per byte": round(mean(each), 4),
        "spread over seeds": spread(each),
    }


def cost_rows(done: Finished) -> list[dict[str, Any]]:
    """Give a row for each step to fewer nonzeros at one width: bits lost, and for each halving."""
    scored = _scores(done)
    sparse = [models for models in _best_recipes(done) if not is_dense(models[0])]
    rows = []
    for more, fewer in pairwise(sparse):
        before = {m.training.seed: scored[m.key]["bits_per_byte"] for m in more}
        lost = [
            scored[m.key]["bits_per_byte"] - before[m.training.seed]
            for m in fewer
            if m.training.seed in before
        ]
        if more[0].width != fewer[0].width or not lost:
            continue
        of, to = _in_blocks(done, more), _in_blocks(done, fewer)
        rows.append(
            {
                "nonzeros in blocks, from": of,
                "to": to,
                "seeds": len(lost),
                "bits per byte lost": round(mean(lost), 4),
                "for each halving": round(mean(lost) / math.log2(of / to), 4),
            }
        )
    return rows


def bits_curves(done: Finished) -> dict[str, list[tuple[float, float]]]:
    """Give bits per byte over the nonzeros of the blocks, for sparse and for dense models."""
    scored = _scores(done)
    curves: dict[str, list[tuple[float, float]]] = {}
    for models in _best_recipes(done):
        bits = mean([scored[m.key]["bits_per_byte"] for m in models])
        name = "dense" if is_dense(models[0]) else f"sparse, width {models[0].width}"
        curves.setdefault(name, []).append((float(_in_blocks(done, models)), bits))
    return {name: sorted(points) for name, points in curves.items()}


def _scores(done: Finished) -> dict[str, dict[str, Any]]:
    return {cell.model.key: done.results[cell.key] for cell in done.scored}


def _recipes(done: Finished) -> list[list[ModelCell]]:
    """List the models that are scored, seeds of a recipe together; sparse first, large first."""
    some = by_recipe([cell.model for cell in done.scored]).values()
    return sorted(some, key=lambda ms: (is_dense(ms[0]), -ms[0].width, -_in_blocks(done, ms)))


def _best_recipes(done: Finished) -> list[list[ModelCell]]:
    """List those of `_recipes` that take the fewest bits of their width and number of nonzeros."""
    scored = _scores(done)
    best: dict[tuple[int, float], tuple[float, list[ModelCell]]] = {}
    for models in _recipes(done):
        size = (models[0].width, models[0].sparsity.weight_density)
        bits = mean([scored[m.key]["bits_per_byte"] for m in models])
        if size not in best or bits < best[size][0]:
            best[size] = (bits, models)
    return [models for _, models in best.values()]


def _in_blocks(done: Finished, models: Sequence[ModelCell]) -> int:
    return done.results[models[0].key]["n_nonzero_blocks"]
