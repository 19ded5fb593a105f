"""Baselines: nodes and edges ranked by a score instead of a learned mask.

Each gives what learning gives, one number for each node or edge, larger for what should stay, so
that choice of size, stage two, clean-up and report are the same for all.

- **attribution**: the absolute value of d loss / d gate at the whole model, by the chain rule the
  sum over prompts and positions of gradient x (activation - reference) (gradient attribution in
  Gao et al. 2025, arXiv 2511.13653, Fig. 31). The sum is signed inside and its absolute value
  taken once, at the end: a node that harms the task ranks as high as one that helps as much.
- **integrated gradients**: the same with the gradient averaged along the straight path on which all
  gates rise together from 0 (everything ablated) to 1 (Sundararajan et al. 2017, arXiv 1703.01365,
  in the space of gates). On a smooth model the signed scores add up to the difference in loss
  between the two ends; AbsTopK jumps, and what its jumps contribute is missing.
- **random**: uniform, from the seed.
- **magnitude**: of an edge the absolute weight; of a node the root of the summed squares of all
  weights into and out of it.

With q and k tied, the two nodes of a channel have one gate and one score.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from tl_sparse.circuit import Site
from tl_sparse.config import PruningConfig
from tl_sparse.pruning.trial import Trial, Values
from tl_sparse.selection import Selection
from tl_sparse.sites import Joint, joint_matrix

Key = TypeVar("Key", Site, Joint)


def score_nodes(trial: Trial, config: PruningConfig, progress: bool) -> dict[Site, Tensor]:
    """Score every node of the model by `config.method`."""
    if config.method == "magnitude":
        return _node_magnitudes(trial, config.tie_qk)
    widths = {info.site: info.width for info in trial.sites.sites}
    tied = {site: Site(site.layer, "q") for site in widths if site.name == "k" and config.tie_qk}
    free = {site: width for site, width in widths.items() if site not in tied}
    if config.method == "random":
        generator = torch.Generator().manual_seed(config.seed)
        scores = {site: torch.rand(width, generator=generator) for site, width in free.items()}
    else:

        def run(gates: Mapping[Site, Tensor], values: Values) -> AbstractContextManager[Any]:
            every = {**gates, **{site: gates[query] for site, query in tied.items()}}
            return trial.running({site: every[site] for site in widths}, values)

        scores = signed_attribution(trial, run, free, config, progress)
    scores |= {site: scores[query] for site, query in tied.items()}
    return {site: scores[site].abs() for site in widths}


def score_edges(
    trial: Trial, selection: Selection, config: PruningConfig, progress: bool
) -> dict[Joint, Tensor]:
    """Score every kept edge by `config.method`, in the order of the mask's true entries."""
    kept = {joint: some for joint, some in selection.edges.items() if some.any()}
    if config.method == "magnitude":
        return {joint: joint_matrix(trial.model, joint)[some].abs() for joint, some in kept.items()}
    sizes = {joint: int(some.sum()) for joint, some in kept.items()}
    if config.method == "random":
        generator = torch.Generator().manual_seed(config.seed + 1)
        return {joint: torch.rand(n, generator=generator) for joint, n in sizes.items()}
    nodes = selection.node_gates(trial.like)
    places = {joint: some.nonzero(as_tuple=True) for joint, some in kept.items()}

    def run(gates: Mapping[Joint, Tensor], values: Values) -> AbstractContextManager[Any]:
        edges = {
            joint: torch.ones_like(kept[joint], dtype=gate.dtype).index_put(places[joint], gate)
            for joint, gate in gates.items()
        }
        return trial.running(nodes, values, edges, kept)

    if not sizes:
        return {}
    scores = signed_attribution(trial, run, sizes, config, progress)
    return {joint: score.abs() for joint, score in scores.items()}


def signed_attribution(
    trial: Trial,
    run: Callable[[dict[Key, Tensor], Values], AbstractContextManager[Any]],
    sizes: Mapping[Key, int],
    config: PruningConfig,
    progress: bool,
) -> dict[Key, Tensor]:
    """Give d loss / d gate over the training pairs: at gates of 1, or averaged on the path to 1.

    The path is cut into `config.n_ig_steps` equal parts, each with the gradient at its middle.
    """
    task, n = trial.task, trial.task.n_examples("train")
    steps = config.n_ig_steps if config.method == "integrated_gradients" else 1
    heights = [1.0] if config.method == "attribution" else [(i + 0.5) / steps for i in range(steps)]
    gates = {key: torch.ones(size).to(trial.like) for key, size in sizes.items()}
    totals = {key: torch.zeros_like(gate) for key, gate in gates.items()}
    starts = [(height, i) for height in heights for i in range(0, n, config.batch_size)]
    for height, start in tqdm(starts, desc=f"{task.name}: {config.method}", disable=not progress):
        chosen = list(range(start, min(start + config.batch_size, n)))
        batch = trial.batch("train", chosen)
        here = {key: (height * gate).requires_grad_() for key, gate in gates.items()}
        with run(here, trial.values("train", chosen, batch)):
            loss = task.loss(task.logits(trial.model, batch), batch)
        found = torch.autograd.grad(loss, list(here.values()), allow_unused=True)
        share = len(chosen) / n / len(heights)
        for key, gradient in zip(here, found, strict=True):
            if gradient is not None:
                totals[key] += share * gradient
    return totals


def _node_magnitudes(trial: Trial, tie_qk: bool) -> dict[Site, Tensor]:
    squares = {info.site: torch.zeros(info.width).to(trial.like) for info in trial.sites.sites}
    for joint in trial.sites.joints:
        matrix = joint_matrix(trial.model, joint).square()
        squares[joint.source] = squares[joint.source] + matrix.sum(1)
        squares[joint.target] = squares[joint.target] + matrix.sum(0)
    for site in list(squares):
        if site.name == "final_in":  # no joint leads here: the unembedding's rows instead
            squares[site] = trial.model.unembed.W_U.detach().square().sum(1)
        if tie_qk and site.name == "q":
            key = Site(site.layer, "k")
            squares[site] = squares[key] = squares[site] + squares[key]
    return {site: square.sqrt() for site, square in squares.items()}
