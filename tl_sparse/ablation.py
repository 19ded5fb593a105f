"""Running a model with only some of its nodes left in.

`references` measures the value that a node takes when it is out: by default its mean over the
training text, all positions alike (Gao et al. 2025, A.5). `gated` puts x -> m x + (1 - m) reference
on every site for the time of a `with` block, and `only_circuit` does so for a circuit's nodes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Circuit, Node, Site
from tl_sparse.data import Corpus
from tl_sparse.sites import READ_SITES, SiteInfo, SiteMap, joint_matrix, model_hash, site_map


@dataclass(frozen=True)
class References:
    """The reference value of every node of a model."""

    values: Mapping[Site, Float[Tensor, " _"]] = field(repr=False)
    """One number for each node, by site."""
    ablation: str
    """What they are: "corpus_mean" or "zero"."""
    model_hash: str
    """The model that they were measured on."""
    provenance: Mapping[str, Any]
    """Tokens and corpus that they were measured on."""

    def check(self, model: HookedTransformer) -> None:
        """Check that they belong to a model.

        Raises:
            ValueError: If they were measured on another model.
        """
        if model_hash(model) != self.model_hash:
            raise ValueError(
                "These reference values were measured on another model, or its weights have "
                "changed since. Measure them again: references(model, corpus)."
            )


@torch.no_grad()
def references(
    model: HookedTransformer,
    corpus: Corpus,
    n_tokens: int = 2**20,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> References:
    """Measure the mean of every node over about `n_tokens` tokens of the training text.

    Raises:
        ValueError: If an activation is NaN or infinite.
    """
    sites = site_map(model, final=True)
    n_ctx = model.cfg.n_ctx
    n_windows = max(1, min(n_tokens, corpus.train.n_tokens) // n_ctx)
    windows = corpus.train.windows(n_ctx, n_windows)
    sums = {info.site: torch.zeros(info.width, dtype=torch.float64) for info in sites.sites}
    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
        (info.hook_name, partial(_add_to, sums, info)) for info in sites.sites
    ]
    device = next(model.parameters()).device
    count = 0
    with model.hooks(fwd_hooks=hooks), fast_attention(model):
        for batch in tqdm(windows.split(batch_size), desc="references", disable=not progress):
            model(batch.to(device), return_type=None)
            count += batch.numel()
    # A stock model's norm runs once for each of q, k and v; its sums count three times.
    means = {
        site: (total / (count * _n_calls(model, sites[site]))).to(model.cfg.dtype).to(device)
        for site, total in sums.items()
    }
    for site, mean in means.items():
        if not torch.isfinite(mean).all():
            raise ValueError(f"The activations at {site} have NaN or infinite values.")
    provenance = {"n_tokens": count, "corpus": corpus.hash}
    return References(means, "corpus_mean", model_hash(model), provenance)


def zero_references(model: HookedTransformer) -> References:
    """Give references that are all zero (zero ablation)."""
    device = next(model.parameters()).device
    zeros = {
        info.site: torch.zeros(info.width, dtype=model.cfg.dtype, device=device)
        for info in site_map(model, final=True).sites
    }
    return References(zeros, "zero", model_hash(model), {})


def _add_to(sums: dict[Site, Tensor], info: SiteInfo, activation: Tensor, hook: Any) -> None:
    flat = activation.detach().reshape(-1, info.width)
    sums[info.site] += flat.sum(0, dtype=torch.float64).cpu()


def _n_calls(model: HookedTransformer, info: SiteInfo) -> int:
    return 3 if info.hook_name.endswith("ln1.hook_normalized") else 1


def fast_attention(model: HookedTransformer) -> Any:
    """Use a sparse model's fused attention inside a `with` block; a stock model stays as it is."""
    using = getattr(model, "using_attention", None)
    return nullcontext() if using is None else using("auto")


@contextmanager
def gated(
    model: HookedTransformer,
    sites: SiteMap,
    gates: Mapping[Site, Float[Tensor, " _"]],
    values: Mapping[Site, Float[Tensor, " _"]],
) -> Iterator[None]:
    """Let each site in `gates` pass gate x activation + (1 - gate) x value inside a `with` block.

    Gates are 1 for a node that stays and 0 for one that is out; gradients reach them.
    """
    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = []
    for site, gate in gates.items():
        info = sites[site]
        value = values[site].to(gate.device, gate.dtype)
        hook = partial(_gate, gate.reshape(info.shape), ((1 - gate) * value).reshape(info.shape))
        hooks.append((info.hook_name, hook))
    with model.hooks(fwd_hooks=hooks), fast_attention(model):
        yield


def _gate(gate: Tensor, rest: Tensor, activation: Tensor, hook: Any) -> Tensor:
    return activation * gate + rest


def without_dropped(
    model: HookedTransformer,
    sites: SiteMap,
    kept: Mapping[Site, Bool[Tensor, " _"]],
    *,
    tie_qk: bool = False,
) -> dict[Site, Tensor]:
    """Drop the kept nodes that have no kept in-edge, in the order of the forward pass.

    Reads of the residual have no in-edges by nature and stay. With `tie_qk` a pair of q and k nodes
    stays as long as one of the two has an in-edge.
    """
    left = {site: keep.clone() for site, keep in kept.items()}
    order = [info.site for info in sites.sites if info.site in left]
    fed = {}
    for site in order:
        if site.name in READ_SITES:
            continue
        joint = next(joint for joint in sites.joints if joint.target == site)
        nonzero = joint_matrix(model, joint) != 0
        fed[site] = nonzero[left[joint.source]].any(0)
        if not (tie_qk and site.name in ("q", "k")):
            left[site] &= fed[site]
        elif site.name == "k":
            query = Site(site.layer, "q")
            either = fed[site] | fed[query]
            left[site] &= either
            left[query] &= either
    return left


@contextmanager
def only_circuit(model: HookedTransformer, circuit: Circuit) -> Iterator[None]:
    """Run a model with only a circuit left in, inside a `with` block.

    All of the model's hooks stay live, and everything is undone at the end, even by an exception.

    Raises:
        ValueError: If the circuit was found in another model, or cuts edges between its own nodes
            (which this version can't run).
    """
    if circuit.model_hash != model_hash(model):
        raise ValueError(
            f"The circuit {circuit.task} was found in another model, or the weights have changed."
        )
    sites = site_map(model, final=any(n.site.name == "final_in" for n in circuit.nodes))
    device = next(model.parameters()).device
    gates, values = {}, {}
    for info in sites.sites:
        gate = torch.zeros(info.width, dtype=model.cfg.dtype, device=device)
        gate[list(circuit.channels(info.site))] = 1
        gates[info.site] = gate
        values[info.site] = torch.tensor(circuit.references[info.site], dtype=gate.dtype)
    n_possible = count_edges(model, sites, {site: gate.bool() for site, gate in gates.items()})
    if n_possible != circuit.n_edges:
        raise ValueError(
            f"The circuit {circuit.task} keeps {circuit.n_edges} of the {n_possible} weights "
            "between its nodes; circuits with cut edges can't be run by this version of tl_sparse."
        )
    with gated(model, sites, gates, values):
        yield


def count_edges(
    model: HookedTransformer, sites: SiteMap, kept: Mapping[Site, Bool[Tensor, " _"]]
) -> int:
    """Count the nonzero weights that join two kept nodes."""
    return sum(len(weights) for _, _, weights in edge_weights(model, sites, kept))


def edge_weights(
    model: HookedTransformer, sites: SiteMap, kept: Mapping[Site, Bool[Tensor, " _"]]
) -> Iterator[tuple[list[Node], list[Node], list[float]]]:
    """Give, for each joint, the nonzero weights between kept nodes: sources, targets, values."""
    for joint in sites.joints:
        matrix = joint_matrix(model, joint)
        both = kept[joint.source][:, None] & kept[joint.target][None, :] & (matrix != 0)
        indices = both.nonzero().tolist()
        yield (
            [Node(joint.source, source) for source, _ in indices],
            [Node(joint.target, target) for _, target in indices],
            matrix[both].tolist(),
        )
