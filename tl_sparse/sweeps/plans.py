"""Plans: which cells make a figure, at the size that a machine carries.

A plan is a list of cells in the order of what they tell: a model and its circuits at the paper's
target behind each other, seed by seed, then the rest. So a sweep that is cut off has a smaller
figure. The same model serves several figures: its cell is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.presets import DEMO_TRAINING, DENSE_SPARSITY, DENSE_TRAINING
from tl_sparse.sae_arm import SAESettings
from tl_sparse.sweeps.cells import Cell, CircuitCell, ModelCell, SAECell, Text
from tl_sparse.tasks import PAPER_TASKS

TARGET = 0.15
"""The paper's target, in nats."""

SAES = SAESettings(architecture="topk", expansion=4, l0=16)
"""The SAEs of the third arm: 16 of 4 x width latents on at a token.

Chosen by loss with all ten spliced in, errors left out, never by a circuit. On the laptop preset's
control (width 48, seed 0, loss 2.810) that is 3.287 for TopK and 3.334 for AbsTopK at an L0 of 16,
and 3.856 for TopK at 8. TopK hits the L0 that it is asked for at any width, where JumpReLU has to
be aimed and BatchTopK has most dead latents (docs/results/saes.md). Twice as many latents were not
tried here: they make a cell slower, and offer a circuit more nodes to choose from."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The size of a sweep."""

    name: str
    n_layers: int = 2
    n_ctx: int = 128
    n_characters: int = 24_000_000
    vocab_size: int = 1024
    dialect: str = "tasks"
    sparse_training: TrainingConfig = DEMO_TRAINING
    dense_training: TrainingConfig = DENSE_TRAINING
    widths: tuple[int, ...]
    """d_model of the sparse models; the second one is the main one."""
    nonzeros: tuple[int, ...]
    """Nonzero weights in the blocks of the sparse models; the second number is the main one."""
    dense_widths: tuple[int, ...]
    """d_model of the dense models, among which each sparse one finds its match in loss."""
    control_widths: tuple[int, ...] | None = None
    """Those of them that come near the main sparse model, where that is known; None is all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = PAPER_TASKS
    targets: tuple[float, ...] = (0.5, TARGET, 0.05)
    """Target losses of Figure 2, in nats."""
    activation_density: float = 0.25
    activation_densities: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    saes: SAESettings | None = SAES
    """SAEs of the third arm, on the dense controls, with the seed of the model; None leaves the arm
    out."""
    sae_targets: tuple[float, ...] = (TARGET,)
    """Target losses at which the SAE arm is pruned, of those of the figure."""
    n_reference_tokens: int = 2**18
    device: Literal["cpu", "cuda"] = "cpu"
    hours: float
    """What the whole of it is estimated to take, on the machine that the preset is for."""

    def text(self, folder: Any, *, progress: bool = True) -> Text:
        """Make or open the text."""
        return Text.of(
            folder, n_characters=self.n_characters, vocab_size=self.vocab_size,
            dialect=self.dialect, progress=progress,
        )  # fmt: skip


_GPU = {"batch_size": 64, "precision": "bf16", "learning_rate": 0.0128}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny", n_characters=400_000, vocab_size=300,
            widths=(32, 48), nonzeros=(600, 1200),
            # So short a run of dense models needs more haste than the sparse ones do.
            sparse_training=replace(DEMO_TRAINING, n_tokens=102_400, learning_rate=3e-3),
            dense_training=replace(DENSE_TRAINING, n_tokens=102_400, learning_rate=1e-2),
            dense_widths=(8, 16), seeds=(0,), tasks=("single_double_quote", "for_while"),
            targets=(TARGET,), activation_densities=(0.25, 1.0), n_reference_tokens=2048, hours=0.1,
            saes=replace(SAES, l0=8, n_windows=64, batch_size=256),
        ),
        Preset(
            # Four times the demo's tokens: with the demo's own, few tasks are done well enough.
            name="laptop", widths=(64, 128, 256), nonzeros=(4_000, 8_000, 16_000),
            sparse_training=replace(DEMO_TRAINING, n_tokens=4 * DEMO_TRAINING.n_tokens),
            dense_training=replace(DENSE_TRAINING, n_tokens=4 * DENSE_TRAINING.n_tokens),
            dense_widths=(28, 36, 48, 64, 80), control_widths=(48,), hours=17.5,
        ),
        Preset(
            name="gpu", n_layers=4, n_ctx=256, n_characters=200_000_000, vocab_size=2048,
            widths=(256, 512, 1024), nonzeros=(50_000, 100_000, 200_000),
            sparse_training=replace(DEMO_TRAINING, n_tokens=400_000_000, **_GPU),
            dense_training=replace(DENSE_TRAINING, n_tokens=400_000_000, batch_size=64,
                                   precision="bf16"),
            dense_widths=(32, 48, 72, 108, 160, 240), device="cuda", hours=48.0,
        ),
        Preset(
            name="paper", n_layers=8, n_ctx=256, n_characters=200_000_000, vocab_size=2048,
            widths=(256, 512, 1024, 2048, 4096),
            nonzeros=(928_000, 1_856_000, 3_712_000, 7_424_000, 14_848_000),
            sparse_training=TrainingConfig(n_tokens=32_000_000_000, batch_size=512,
                                           learning_rate=0.0128, precision="fp16"),
            dense_training=replace(DENSE_TRAINING, n_tokens=32_000_000_000, batch_size=512,
                                   precision="bf16"),
            dense_widths=(64, 128, 256, 512), device="cuda", hours=20_000.0,
        ),
    )
}  # fmt: skip
"""`laptop` is for two CPU cores, `gpu` for one GPU, `paper` the paper's own grid."""


def n_block_weights(preset: Preset, width: int) -> int:
    """Count the weights of the blocks' matrices at a width."""
    heads = -(-width // 16) * 16
    return preset.n_layers * (4 * width * heads + 8 * width**2)


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
    saes = SAECell(model=model, settings=replace(preset.saes, seed=model.training.seed))
    yield saes
    yield from circuits_of(preset, model, targets=some, saes=saes)


def figure2(preset: Preset, text: Text) -> list[Cell]:
    """Edges against target loss, over all tasks: the main sparse model, its dense controls, SAEs.

    The SAEs are on the dense controls, at the target of 0.15.
    """
    models = [m for seed in preset.seeds for m in _main_pair(preset, text, seed=seed)]
    others = [target for target in preset.targets if target != TARGET]
    return [*arms_of(preset, models, targets=(TARGET, *others))]


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
    """Validation loss, kurtosis and edges over activation densities, at the main size."""
    cells: list[Cell] = []
    for seed in preset.seeds:
        for density in preset.activation_densities:
            model = sparse_model(preset, text, seed=seed, activation_density=density)
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
        sparse_model(preset, text, seed=seed, **changes)
        for seed in preset.seeds
        for changes in ABLATIONS.values()
    ]


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
}
"""What `tl-sparse sweep` can make."""
