"""The standard measures of a set of SAEs, each alone and all at once.

Each SAE alone, by SAELens' evaluation (`tl_sparse.sae_baseline.evaluate_sae`): L0, explained
variance, the share of the loss recovered against zeros, dead latents. All of them at once, without
their errors: the loss of the model on its reconstructions. The circuit of an SAE arm is found in
that model and what the errors add, so this loss says how much of the model the latents are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from tl_sparse.ablation import fast_attention
from tl_sparse.circuit import Site
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.sae_arm.splice import splice
from tl_sparse.sae_baseline import evaluate_sae


@dataclass(frozen=True, kw_only=True)
class SiteScores:
    """What one SAE does, spliced in alone."""

    site: str
    n_latents: int
    l0: float
    """Mean number of latents that are on at a token."""
    explained_variance: float
    """1 - squared error / variance, both summed over channels and tokens."""
    loss_spliced: float
    """Loss with this SAE's output in place of the activation, in nats per token."""
    loss_recovered: float | None
    """(zeroed - spliced) / (zeroed - whole) loss; None where zeroing costs next to nothing."""
    n_dead: int
    """Latents that are on at no token."""


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """What a set of SAEs does, each alone and all at once, over the same tokens."""

    sites: tuple[SiteScores, ...]
    loss: float
    """Loss of the model as it is, in nats per token."""
    loss_spliced: float
    """Loss with every SAE spliced in, errors left out."""
    n_tokens: int
    """Tokens that were scored."""

    @property
    def l0(self) -> float:
        """Mean L0 over the sites."""
        return self._mean("l0")

    @property
    def explained_variance(self) -> float:
        """Mean explained variance over the sites."""
        return self._mean("explained_variance")

    @property
    def dead_fraction(self) -> float:
        """Share of all latents that are on at no token."""
        return sum(s.n_dead for s in self.sites) / sum(s.n_latents for s in self.sites)

    @property
    def loss_recovered(self) -> float | None:
        """The lowest over the sites; None if it is known of none."""
        known = [s.loss_recovered for s in self.sites if s.loss_recovered is not None]
        return min(known, default=None)

    def _mean(self, name: str) -> float:
        return sum(getattr(site, name) for site in self.sites) / len(self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return asdict(self) | {"sites": [asdict(site) for site in self.sites]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ArmScores":
        """Build from `to_dict`'s values."""
        sites = tuple(SiteScores(**site) for site in values["sites"])
        return cls(**{**values, "sites": sites})


def score_saes(
    model: HookedSparseTransformer,
    saes: Mapping[Site, Any],
    windows: Int[Tensor, "window pos"],
    *,
    progress: bool = True,
) -> ArmScores:
    """Score SAEs over windows of tokens: validation text, not what they were trained on.

    Raises:
        ValueError: If an SAE does not fit the model, or zeroing its site changes nothing.
    """
    spliced = splice(model, saes, errors=False)
    sites = []
    for site, sae in tqdm(saes.items(), desc="scores", disable=not progress):
        scores = evaluate_sae(model, sae, windows)
        sites.append(
            SiteScores(
                site=str(site),
                n_latents=sae.cfg.d_sae,
                l0=scores.l0,
                explained_variance=scores.explained_variance,
                loss_spliced=scores.loss_spliced,
                loss_recovered=scores.loss_recovered,
                n_dead=scores.n_dead,
            )
        )
    return ArmScores(
        sites=tuple(sites),
        loss=_loss(model, windows),
        loss_spliced=_loss(spliced, windows),
        n_tokens=windows.numel(),
    )


@torch.no_grad()
def _loss(model: HookedSparseTransformer, windows: Int[Tensor, "window pos"]) -> float:
    """Give the mean loss over windows, in nats per token."""
    device, total = next(model.parameters()).device, 0.0
    with fast_attention(model):
        for some in windows.split(32):
            total += model(some.to(device), return_type="loss").item() * len(some)
    return total / len(windows)


def scores_table(scores: ArmScores) -> list[dict[str, str]]:
    """Give the table of all sites, and a last row with all SAEs at once, as text."""
    rows = [
        {
            "site": site.site,
            "latents": f"{site.n_latents:,}",
            "L0": f"{site.l0:.1f}",
            "explained variance": f"{site.explained_variance:.3f}",
            "loss": f"{scores.loss:.3f}",
            "loss spliced": f"{site.loss_spliced:.3f}",
            "loss recovered": _or_dash(site.loss_recovered),
            "dead": f"{site.n_dead:,}",
        }
        for site in scores.sites
    ]
    last = {
        "site": "all at once",
        "latents": f"{sum(site.n_latents for site in scores.sites):,}",
        "L0": f"{scores.l0:.1f}",
        "explained variance": f"{scores.explained_variance:.3f}",
        "loss": f"{scores.loss:.3f}",
        "loss spliced": f"{scores.loss_spliced:.3f}",
        "loss recovered": "-",
        "dead": f"{sum(site.n_dead for site in scores.sites):,}",
    }
    return [*rows, last]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Write rows of text as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines)
