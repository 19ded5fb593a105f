"""What a model is made of, as a line and as a table: shapes, nonzeros, densities, dead neurons."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from tl_sparse.config import ACTIVATION_SITES, SparsityConfig


@dataclass(frozen=True)
class ParameterSummary:
    """One parameter: its name, shape, number of nonzero entries and their fraction."""

    name: str
    shape: tuple[int, ...]
    n_nonzero: int
    density: float


@dataclass(frozen=True)
class ModelSummary:
    """Parameters and dead neurons of a model; prints as a table."""

    title: str
    parameters: tuple[ParameterSummary, ...]
    n_dead_neurons: tuple[int, ...]
    """For each layer, the neurons with no weight in or no weight out: they can't carry anything."""
    d_mlp: int

    def _repr_html_(self) -> str:
        """Give what notebooks show: the table."""
        from tl_sparse.displays import summary_fragment

        return summary_fragment(self)

    def __repr__(self) -> str:
        """Render the table."""
        lines = [self.title, f"{'parameter':<22} {'shape':>16} {'nonzero':>10} {'density':>9}"]
        for p in self.parameters:
            shape = " x ".join(map(str, p.shape))
            lines.append(f"{p.name:<22} {shape:>16} {p.n_nonzero:>10,} {p.density:>9.4f}")
        for layer, n_dead in enumerate(self.n_dead_neurons):
            lines.append(f"layer {layer}: {n_dead} of {self.d_mlp} neurons dead")
        return "\n".join(lines)


def n_dead_neurons(model: nn.Module, n_layers: int) -> tuple[int, ...]:
    """Count, in each layer, the neurons that have no nonzero weight in, or none out."""
    parameters = dict(model.named_parameters())
    counts = []
    for layer in range(n_layers):
        w_in = parameters.get(f"blocks.{layer}.mlp.W_in")
        w_out = parameters.get(f"blocks.{layer}.mlp.W_out")
        if w_in is None or w_out is None:
            continue
        dead = ~((w_in != 0).any(0) & (w_out != 0).any(1))
        counts.append(int(dead.sum()))
    return tuple(counts)


def count_nonzero(model: nn.Module) -> dict[str, int]:
    """Count the nonzero entries of each parameter."""
    return {name: int((p != 0).sum()) for name, p in model.named_parameters()}


def summarize(model: nn.Module, cfg: Any, sparsity: SparsityConfig) -> ModelSummary:
    """Make the summary of a HookedTransformer."""
    counts = count_nonzero(model)
    rows = tuple(
        ParameterSummary(name, tuple(p.shape), counts[name], counts[name] / p.numel())
        for name, p in model.named_parameters()
    )
    return ModelSummary(
        title=one_line(model, cfg, sparsity),
        parameters=rows,
        n_dead_neurons=n_dead_neurons(model, cfg.n_layers),
        d_mlp=cfg.d_mlp or 0,
    )


def one_line(model: nn.Module, cfg: Any, sparsity: SparsityConfig) -> str:
    """Describe a model in one line."""
    weights = [p for name, p in model.named_parameters() if "W_" in name and name[:6] == "blocks"]
    nonzero, size = sum(int((w != 0).sum()) for w in weights), sum(w.numel() for w in weights)
    parts = [
        f"{cfg.n_layers} layers, d_model {cfg.d_model}, {cfg.n_heads} heads of {cfg.d_head}",
        f"d_mlp {cfg.d_mlp}, vocabulary {cfg.d_vocab:,}, n_ctx {cfg.n_ctx}",
        f"{nonzero:,} of {size:,} block weights nonzero (density {nonzero / max(size, 1):.4g})",
    ]
    sparse = [site for site in ACTIVATION_SITES if sparsity.site_density(site) < 1]
    if sparse:
        parts.append("AbsTopK at " + ", ".join(f"{s} {sparsity.site_density(s):g}" for s in sparse))
    if sparsity.bigram_table:
        parts.append("bigram table")
    if sparsity.position_channels:
        parts.append(f"{sparsity.position_channels} position channels")
    if cfg.use_attention_sinks:
        parts.append("sinks")
    return f"{type(model).__name__}({'; '.join(parts)})"
