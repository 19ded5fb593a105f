"""The sizes that are measured, so that the way cost grows can be seen."""

from dataclasses import dataclass

D_HEAD = 16
"""Channels of a head at every size, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shape of a model and of its batches."""

    name: str
    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    batch_size: int
    """Sequences of `n_ctx` tokens in a training step, and in a forward pass."""
    projected: tuple[int, int]
    """Rows and columns of the matrix that projection is measured on."""
    n_prompts: int = 1024
    """Prompts in a batch for a compiled circuit; half as many pairs in the training split."""
    n_test_pairs: int = 64

    @property
    def n_tokens(self) -> int:
        """Tokens in a training step."""
        return self.batch_size * self.n_ctx

    def __str__(self) -> str:
        """Give the shape in words."""
        return (
            f"{self.n_layers} layers, d_model {self.d_model:,}, d_mlp {self.d_mlp:,}, vocabulary "
            f"{self.d_vocab:,}, {self.batch_size} x {self.n_ctx} tokens"
        )


SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size(name="tiny", n_layers=1, d_model=128, d_mlp=128, d_vocab=64, n_ctx=32, batch_size=2,
             projected=(128, 128), n_prompts=32, n_test_pairs=8),
        Size(name="small", n_layers=2, d_model=128, d_mlp=512, d_vocab=1024, n_ctx=128,
             batch_size=8, projected=(128, 512)),
        Size(name="paper", n_layers=4, d_model=256, d_mlp=1024, d_vocab=2048, n_ctx=256,
             batch_size=32, projected=(1024, 4096)),
        Size(name="large", n_layers=4, d_model=512, d_mlp=2048, d_vocab=2048, n_ctx=256,
             batch_size=32, projected=(2048, 8192)),
        Size(name="wide", n_layers=4, d_model=1024, d_mlp=4096, d_vocab=2048, n_ctx=256,
             batch_size=8, projected=(2048, 8192)),
    )
}  # fmt: skip
"""`tiny` is for tests of the benchmark itself, `small` is the demo's shape, `paper` has 4.2 million
weights to project. `wide` is not among the default sizes: there most of a dense model's time goes
into its matrices."""

DEFAULT_SIZES = ("small", "paper", "large")
