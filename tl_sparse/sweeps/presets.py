"""Presets: how large a sweep is, for a machine that carries it.

The models, tasks, seeds and target losses of the figures; `plans` makes cells of them.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from tl_sparse.config import TrainingConfig
from tl_sparse.presets import DEMO_TRAINING, DENSE_TRAINING
from tl_sparse.sae_arm import SAESettings
from tl_sparse.sweeps.text import Text
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
    library: str = "standard"
    sparse_training: TrainingConfig = DEMO_TRAINING
    dense_training: TrainingConfig = DENSE_TRAINING
    short_training: TrainingConfig | None = None
    """The sparse models' training in `optimizer`, which takes some twenty times as many of them;
    None is `sparse_training`."""
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
    """Target losses of Figure 2 and of comparisons, in nats; the paper's, 0.15, is always among
    `all_targets`."""
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

    def __post_init__(self) -> None:
        """Check what would fail later, and elsewhere.

        Raises:
            ValueError: If there is no second width or number of nonzeros.
        """
        for name in ("widths", "nonzeros"):
            if len(some := getattr(self, name)) < 2:
                raise ValueError(
                    f"{name} of a preset are two or more, of which the second is the main one, got "
                    f"{some}."
                )

    @property
    def all_targets(self) -> tuple[float, ...]:
        """Target losses, each once: the paper's, at which circuits are audited, then the others."""
        return tuple(dict.fromkeys((TARGET, *self.targets)))

    def text(self, folder: Any, *, progress: bool = True) -> Text:
        """Make or open the text."""
        return Text.of(
            folder, n_characters=self.n_characters, vocab_size=self.vocab_size,
            dialect=self.dialect, library=self.library, progress=progress,
        )  # fmt: skip


_GPU = {"n_tokens": 2**27, "batch_size": 96, "precision": "bf16"}

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
            short_training=DEMO_TRAINING,
            dense_widths=(28, 36, 48, 64, 80), control_widths=(48,), hours=34.0,
        ),
        Preset(
            name="gpu", n_layers=4, n_ctx=256, n_characters=120_000_000, library="installed",
            widths=(256, 512, 1024), nonzeros=(25_000, 50_000, 100_000),
            sparse_training=replace(DEMO_TRAINING, learning_rate=0.0128, **_GPU),
            dense_training=replace(DENSE_TRAINING, **_GPU),
            # The main sparse model is thought to be between the first two: docs/results/larger.md.
            dense_widths=(32, 48, 72, 96, 136), control_widths=(32, 48), device="cuda", hours=48.0,
        ),
        Preset(
            name="paper", n_layers=8, n_ctx=256, n_characters=200_000_000, vocab_size=2048,
            library="installed", widths=(256, 512, 1024, 2048, 4096),
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
