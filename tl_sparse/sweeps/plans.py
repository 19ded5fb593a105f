"""Plans: which cells make a figure, at the size that a machine carries.

A plan is a list of cells in the order of what they tell: a model and its circuits at the paper's
target behind each other, seed by seed, then the rest. So a sweep that is cut off has a smaller
figure. The same model serves several figures: its cell is the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.presets import DENSE_SPARSITY
from tl_sparse.sae_arm import SAESettings
from tl_sparse.sweeps.cells import (
    BitsCell,
    Cell,
    CircuitCell,
    ConceptCell,
    ModelCell,
    NGramCell,
    SAECell,
)
from tl_sparse.sweeps.presets import TARGET, Preset, n_block_weights
from tl_sparse.sweeps.text import Text


def sparse_model(
    preset: Preset,
    text: Text,
    *,
    seed: int,
    width: int | None = None,
    nonzeros: int | None = None,
    **changes: Any,
) -> ModelCell:
    """Give a sparse model's cell; `changes` are of its training, or its activation density."""
    width, nonzeros = width or preset.widths[1], nonzeros or preset.nonzeros[1]
    active = changes.pop("activation_density", preset.activation_density)
    sparsity = SparsityConfig(
        weight_density=min(1.0, nonzeros / n_block_weights(preset, width)),
        activation_density=active,
        bigram_table=True,
    )
    training = replace(preset.sparse_training, seed=seed, **changes)
    return _model(preset, text, width, sparsity, training)


def dense_model(preset: Preset, text: Text, *, seed: int, width: int) -> ModelCell:
    """Give a dense control's cell: sinks, bigram table, no AbsTopK."""
    training = replace(preset.dense_training, seed=seed)
    return _model(preset, text, width, DENSE_SPARSITY, training)


def is_dense(model: ModelCell) -> bool:
    """Tell whether a model is one of the dense ladder."""
    return model.sparsity.weight_density == 1


def _model(
    preset: Preset, text: Text, width: int, sparsity: SparsityConfig, training: TrainingConfig
) -> ModelCell:
    return ModelCell(
        text=text, width=width, n_layers=preset.n_layers, n_ctx=preset.n_ctx, sparsity=sparsity,
        training=training, device=preset.device,
    )  # fmt: skip


def circuits_of(
    preset: Preset,
    model: ModelCell,
    *,
    targets: tuple[float, ...] = (TARGET,),
    pruning: PruningConfig | None = None,
    saes: SAECell | None = None,
) -> Iterator[CircuitCell]:
    """Give the cells of all tasks on one model, with SAEs in it if there are any.

    Audited, at the paper's target, are circuits of dense models and of sparse ones of main width.
    """
    main = is_dense(model) or model.width == preset.widths[1]
    for task in preset.tasks:
        for target in targets:
            config = replace(pruning or PruningConfig(), target_loss=target)
            config = replace(config, seed=model.training.seed)
            audited = main and target == TARGET and pruning is None
            yield CircuitCell(
                model=model,
                task=task,
                pruning=config,
                n_reference_tokens=preset.n_reference_tokens,
                audit=AuditConfig.quick() if audited else None,
                saes=saes,
            )


def arms_of(
    preset: Preset, models: Sequence[ModelCell], *, targets: Sequence[float]
) -> Iterator[Cell]:
    """Give the cells of sparse models and dense controls, and of the SAEs on the controls.

    First all models at the paper's target, then the SAE arm, then the other targets: a sweep that
    is cut off has two arms rather than half of three.
    """
    first = tuple(target for target in targets if target == TARGET)
    others = tuple(target for target in targets if target != TARGET)
    for model in models:
        yield model
        yield from circuits_of(preset, model, targets=first)
    for model in models:
        if is_dense(model):
            yield from sae_arm_of(preset, model, targets=targets)
    for model in models:
        yield from circuits_of(preset, model, targets=others)


def sae_arm_of(preset: Preset, model: ModelCell, *, targets: Sequence[float]) -> Iterator[Cell]:
    """Give the cells of the SAE arm on one dense model: its SAEs, then their circuits."""
    some = tuple(target for target in targets if target in preset.sae_targets)
    if preset.saes is None or not some:
        return
    saes = _saes_on(model, preset.saes)
    yield saes
    yield from circuits_of(preset, model, targets=some, saes=saes)


def _saes_on(model: ModelCell, settings: SAESettings) -> SAECell:
    return SAECell(model=model, settings=replace(settings, seed=model.training.seed))


def figure2(preset: Preset, text: Text) -> list[Cell]:
    """Edges against target loss, over all tasks: the main sparse model, its dense controls, SAEs.

    The SAEs are on the dense controls, at the target of 0.15.
    """
    models = [m for seed in preset.seeds for m in _main_pair(preset, text, seed=seed)]
    return [*arms_of(preset, models, targets=preset.all_targets)]


def figure3(preset: Preset, text: Text) -> list[Cell]:
    """Validation loss against edges: sparse models over width x nonzeros, and the dense ladder.

    Pairs of width and nonzeros that leave no weight out are not in it, as in the paper. First those
    with the main width or the main number of nonzeros, of all seeds.
    """
    crosses: list[ModelCell] = []
    corners: list[ModelCell] = []
    for seed in preset.seeds:
        for width in preset.widths:
            for nonzeros in preset.nonzeros:
                if nonzeros >= n_block_weights(preset, width) / 4:
                    continue
                on_cross = width == preset.widths[1] or nonzeros == preset.nonzeros[1]
                model = sparse_model(preset, text, seed=seed, width=width, nonzeros=nonzeros)
                (crosses if on_cross else corners).append(model)
        crosses += [dense_model(preset, text, seed=seed, width=w) for w in preset.dense_widths]
    cells: list[Cell] = []
    for model in crosses + corners:
        cells += [model, *circuits_of(preset, model)]
    return cells


def activation(preset: Preset, text: Text) -> list[Cell]:
    """Validation loss, kurtosis and edges over activation densities, beside the dense models."""
    cells: list[Cell] = []
    for seed in preset.seeds:
        models = [
            sparse_model(preset, text, seed=seed, activation_density=density)
            for density in preset.activation_densities
        ]
        models += [dense_model(preset, text, seed=seed, width=w) for w in preset.dense_widths]
        for model in models:
            cells += [model, *circuits_of(preset, model)]
    return cells


ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "gradient clipped, not normalised": {"gradient_scaling": "clip"},
    "gradient neither clipped nor normalised": {"gradient_scaling": "none"},
    "no learning-rate decay": {"learning_rate_decay": "constant"},
    "no warm-up": {"warmup_fraction": 0.0},
    "warm-up over 5 %": {"warmup_fraction": 0.05},
    "no annealing of the density": {"anneal": "none"},
    "linear annealing": {"anneal": "linear"},
    "no 1/sqrt(L0) factor": {"sharkfin": False},
    "eps 1": {"eps": 1.0},
    "eps 0.01": {"eps": 0.01},
    "eps 0.001": {"eps": 0.001},
    "beta2 0.99": {"betas": (0.9, 0.99)},
    "beta2 0.999": {"betas": (0.9, 0.999)},
    "beta1 0.8": {"betas": (0.8, 0.95)},
    "beta1 0.95": {"betas": (0.95, 0.95)},
    "weight decay 0.03": {"weight_decay": 0.03},
    "weight decay 0.3": {"weight_decay": 0.3},
}
"""The optimiser's parts that the paper takes away one by one (A.2, B; METHOD.md section 2)."""


def optimizer(preset: Preset, text: Text) -> list[Cell]:
    """Validation loss of the main sparse model without one part of the optimiser at a time."""
    return [
        ablated_model(preset, text, seed=seed, changes=changes)
        for seed in preset.seeds
        for changes in ABLATIONS.values()
    ]


def ablated_model(preset: Preset, text: Text, *, seed: int, changes: dict[str, Any]) -> ModelCell:
    """Give the main sparse model's cell with changes to the optimiser, at the short training."""
    short = replace(preset, sparse_training=preset.short_training or preset.sparse_training)
    return sparse_model(short, text, seed=seed, **changes)


ATTRIBUTION = PruningConfig(method="attribution", edges=False, drop_one=False)
"""The paper's baseline: nodes ranked by attribution, all weights between them counted."""


def methods(preset: Preset, text: Text) -> list[Cell]:
    """Learned masks against attribution, on the main sparse model and its dense controls."""
    cells: list[Cell] = []
    for seed in preset.seeds:
        for model in _main_pair(preset, text, seed=seed):
            cells += [model, *circuits_of(preset, model)]
            cells += circuits_of(preset, model, pruning=ATTRIBUTION)
    return cells


N_GRAM_ORDERS = (1, 2, 3, 4, 5)


def capability(preset: Preset, text: Text) -> list[Cell]:
    """Bits per byte over nonzeros, beside dense models that are equal in something, and n-grams.

    Models of more nonzeros than Figure 3 has are also trained with a peak of the learning rate
    that falls with the root of their number. Within a training the paper's does (A.2).
    """
    cells: list[Cell] = [
        NGramCell(text=text, order=order, n_ctx=preset.n_ctx) for order in N_GRAM_ORDERS
    ]
    main, peak = preset.nonzeros[1], preset.sparse_training.learning_rate
    sizes = dict.fromkeys((*preset.nonzeros, 4 * main, 16 * main))
    sizes = [n for n in sizes if n < n_block_weights(preset, preset.widths[1])]
    ladder = [(n, peak) for n in sizes]
    ladder += [(n, peak * math.sqrt(main / n)) for n in sizes if n not in preset.nonzeros]
    for seed in preset.seeds:
        models = [
            sparse_model(preset, text, seed=seed, nonzeros=n, learning_rate=rate)
            for n, rate in ladder
        ]
        models += [
            dense_model(preset, text, seed=seed, width=width) for width in equal_widths(preset)
        ]
        for model in models:
            cells += [model, BitsCell(model=model)]
    return cells


def concepts(preset: Preset, text: Text) -> list[Cell]:
    """Concepts that nodes track: the main sparse model, its dense controls, SAEs on those."""
    cells: list[Cell] = []
    for seed in preset.seeds:
        for model in _main_pair(preset, text, seed=seed):
            cells += [model, ConceptCell(model=model)]
            if is_dense(model) and preset.saes is not None:
                saes = _saes_on(model, preset.saes)
                cells += [saes, ConceptCell(model=model, saes=saes)]
    return cells


def equal_widths(preset: Preset) -> dict[int, str]:
    """Give the widths of dense models that `capability` sets beside the main sparse one, and why.

    One of as many parameters, which is as good as equal compute, since both multiply by zeros; one
    of as many nonzero weights, and one of as many in the blocks, for which the nearest width is
    taken; and the controls of Figure 2, near in loss.
    """
    main, nonzeros = preset.widths[1], preset.nonzeros[1]

    def nearest(wanted: int, size: Callable[[int], int]) -> int:
        return min(range(1, main + 1), key=lambda w: abs(math.log(size(w) / wanted)))

    def everywhere(width: int) -> int:
        return n_block_weights(preset, width) + 2 * preset.vocab_size * width

    in_blocks = nearest(nonzeros, lambda width: n_block_weights(preset, width))
    in_all = nearest(nonzeros + 2 * preset.vocab_size * main, everywhere)
    controls = preset.dense_widths if preset.control_widths is None else preset.control_widths
    found: dict[int, str] = {width: "loss, about" for width in controls}
    for width, what in (
        (main, "parameters, compute"), (in_all, "nonzeros"), (in_blocks, "nonzeros in blocks"),
    ):  # fmt: skip
        found[width] = f"{found[width]}; {what}" if width in found else what
    return found


def _main_pair(preset: Preset, text: Text, *, seed: int) -> list[ModelCell]:
    """Give the main sparse model and the dense ones that may match it."""
    widths = preset.dense_widths if preset.control_widths is None else preset.control_widths
    controls = [dense_model(preset, text, seed=seed, width=width) for width in widths]
    return [sparse_model(preset, text, seed=seed), *controls]


FIGURES: dict[str, Callable[[Preset, Text], list[Cell]]] = {
    "figure2": figure2,
    "figure3": figure3,
    "activation": activation,
    "optimizer": optimizer,
    "methods": methods,
    "capability": capability,
    "concepts": concepts,
}
"""What `tl-sparse sweep` can make."""
