"""Masks learned with a straight-through step: one tau in [-1, 1] for each node, or for each edge.

Gao et al. 2025 (arXiv 2511.13653, A.5): the gate of a node is [tau > 0], its gradient that of a
sigmoid; AdamW minimises task loss + price x (number of gates that are on); tau is clamped after
each step. Edges, one for each nonzero weight between the nodes that are kept, are learned alike.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from tl_sparse.circuit import Site
from tl_sparse.config import PruningConfig
from tl_sparse.functional import heaviside
from tl_sparse.pruning.surroundings import opened
from tl_sparse.pruning.trial import Trial, Values
from tl_sparse.selection import Selection
from tl_sparse.sites import Joint

Key = TypeVar("Key")

FEWEST_STEPS, STEPS_AN_EDGE = 50, 2
"""Few edges are ranked in fewer steps than `config.n_edge_steps`: so many an edge, and never less
than `FEWEST_STEPS`. On 15 to 34 edges 25, 50, 100 and 200 steps came to the same circuits."""


LOOK_EVERY = 20
"""Steps after which the losses are looked at. A GPU goes on between them without being asked."""


class LearningStopped(KeyboardInterrupt):
    """Ctrl-C while the masks on nodes are learned; `taus` are those learned so far."""

    def __init__(self, taus: dict[Site, Tensor]) -> None:
        super().__init__()
        self.taus = taus


def learn_nodes(trial: Trial, config: PruningConfig, progress: bool) -> dict[Site, Tensor]:
    """Learn a tau for every node of the model.

    Raises:
        LearningStopped: On Ctrl-C.
    """
    generator = torch.Generator().manual_seed(config.seed)
    taus: dict[Site, Tensor] = {}
    for info in trial.sites.sites:
        if config.tie_qk and info.site.name == "k":
            taus[info.site] = taus[Site(info.site.layer, "q")]
            continue
        taus[info.site] = _initial(info.width, trial, config, generator)

    def run(
        gates: dict[Site, Tensor], values: Values, chance: torch.Generator | None
    ) -> AbstractContextManager[Any]:
        return trial.running(gates if chance is None else opened(gates, chance), values)

    masks = _Masks("nodes", taus, run, config.n_steps)
    try:
        return _learn(trial, masks, config, generator, progress)
    except KeyboardInterrupt:
        raise LearningStopped(masks.learned()) from None


def learn_edges(
    trial: Trial, selection: Selection, config: PruningConfig, progress: bool
) -> dict[Joint, Tensor]:
    """Learn a tau for every kept edge, in the order of the mask's true entries.

    With q and k tied the two ends of a channel's edges are learned apart; the rule for dropped
    nodes keeps the pair together.
    """
    generator = torch.Generator().manual_seed(config.seed + 1)
    nodes = selection.node_gates(trial.like)
    places = {j: kept.nonzero(as_tuple=True) for j, kept in selection.edges.items() if kept.any()}
    taus = {j: _initial(len(p[0]), trial, config, generator) for j, p in places.items()}
    if not taus:
        return {}

    def run(
        gates: Mapping[Joint, Tensor], values: Values, chance: torch.Generator | None
    ) -> AbstractContextManager[Any]:
        around = nodes
        if chance is not None:
            around, gates = opened(nodes, chance), opened(gates, chance)
        edges = {
            joint: torch.ones_like(trial.weights[joint], dtype=gate.dtype).index_put(
                places[joint], gate
            )
            for joint, gate in gates.items()
        }
        return trial.running(around, values, edges, selection.edges)

    few = max(FEWEST_STEPS, STEPS_AN_EDGE * selection.n_edges)
    steps = min(config.n_edge_steps, few)
    masks = _Masks("edges", taus, run, steps)
    return _learn(trial, masks, config, generator, progress)


def _initial(n: int, trial: Trial, config: PruningConfig, generator: torch.Generator) -> Tensor:
    noise = torch.randn(n, generator=generator) * config.init_noise_scale
    tau = (noise + config.init_noise_bias).clamp(-1, 1)
    return tau.to(trial.like)


class _Masks(Generic[Key]):
    """What is learned: a tau for each node or edge, and what its gates do.

    All taus are parts of one tensor, `flat`, so that a step on many sites costs one on a few; sites
    that were given one tensor share its part. `run` runs the model under gates; with a generator,
    beside a random part of the rest.
    """

    def __init__(
        self,
        what: str,
        taus: Mapping[Key, Tensor],
        run: Callable[
            [dict[Key, Tensor], Values, torch.Generator | None], AbstractContextManager[Any]
        ],
        n_steps: int,
    ) -> None:
        self.what, self.run, self.n_steps = what, run, n_steps
        distinct = {id(tau): tau for tau in taus.values()}
        self.flat = torch.cat(list(distinct.values())).requires_grad_()
        self.sizes = [len(tau) for tau in distinct.values()]
        self.places = {key: list(distinct).index(id(tau)) for key, tau in taus.items()}

    def gates(self, temperature: float) -> dict[Key, Tensor]:
        """Give the gates, of 0 and 1, that the taus stand for."""
        return self._by_key(heaviside(self.flat, temperature))

    def learned(self) -> dict[Key, Tensor]:
        """Give the taus as they are now."""
        return self._by_key(self.flat.detach())

    def _by_key(self, flat: Tensor) -> dict[Key, Tensor]:
        parts = flat.split(self.sizes)
        return {key: parts[place] for key, place in self.places.items()}


def _learn(
    trial: Trial,
    masks: _Masks[Key],
    config: PruningConfig,
    generator: torch.Generator,
    progress: bool,
) -> dict[Key, Tensor]:
    n_steps, task = masks.n_steps, trial.task
    optimizer = torch.optim.AdamW(
        [masks.flat],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    name = f"{task.name}: {masks.what}"
    bar = tqdm(range(n_steps), desc=name, disable=not progress)
    order = torch.empty(0, dtype=torch.long)
    price, highest = _Price(config, trial.like), torch.zeros((), device=trial.like.device)
    for step in bar:
        if len(order) < config.batch_size:
            order = torch.cat(
                [order, torch.randperm(task.n_examples("train"), generator=generator)]
            )
        chosen, order = order[: config.batch_size], order[config.batch_size :]
        batch = trial.batch("train", chosen.tolist())
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, n_steps, config)
        gates = masks.gates(config.heaviside_temperature)
        n_on = torch.cat(list(gates.values())).sum()
        beside = config.n_surroundings > 0 and step % 2 == 1
        values = trial.values("train", chosen.tolist(), batch, draw=step + 1)
        with masks.run(gates, values, generator if beside else None):
            loss = task.loss(task.logits(trial.model, batch), batch)
        optimizer.zero_grad()
        (loss + price.now * n_on).backward()
        torch.nn.utils.clip_grad_norm_(masks.flat, config.gradient_clip)
        optimizer.step()
        with torch.no_grad():
            masks.flat.clamp_(-1, 1)
        price.update(loss.detach())
        highest = torch.maximum(highest, loss.detach())
        if step % LOOK_EVERY == 0 or step == n_steps - 1:
            _check_finite(highest, f"by step {step} of learning {masks.what} for {task.name}")
            bar.set_postfix(loss=f"{loss.item():.3f}", on=int(n_on), refresh=False)
    return masks.learned()


def _check_finite(highest: Tensor, when: str) -> None:
    if not torch.isfinite(highest):
        raise ValueError(
            f"The loss became {highest.item()} {when}: activations are NaN or infinite. Look at "
            "the model's weights and references."
        )


class _Price:
    """The price of a node or edge: `k_coef`, or one that follows the loss towards the target.

    The adaptive price rises while the loss is under the target and falls while it is over, at most
    5 % a step: dual ascent on "fewest nodes subject to loss <= target". One rule then serves models
    whose good prices lie far apart.
    """

    def __init__(self, config: PruningConfig, like: Tensor) -> None:
        self.target, self.adaptive = config.target_loss, config.k_coef == "adaptive"
        self.now = like.new_tensor(1e-3 if config.k_coef == "adaptive" else config.k_coef)

    def update(self, loss: Tensor) -> None:
        if self.adaptive:
            excess = (loss / self.target - 1).clamp(-1, 1)
            self.now = (self.now * torch.exp(-0.05 * excess)).clamp(1e-7, 1e-1)


def _learning_rate(step: int, n_steps: int, config: PruningConfig) -> float:
    done, warmup = step / n_steps, config.warmup_fraction
    if done < warmup:
        return config.learning_rate * (step + 1) / (warmup * n_steps + 1)
    return config.learning_rate * (1 - done) / (1 - warmup) if warmup < 1 else config.learning_rate
