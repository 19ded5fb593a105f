"""`prune`: find the nodes that a task needs, and the weights between them.

Node pruning of Gao et al. 2025 (arXiv 2511.13653, section 2.2 and A.5), with tau the number that
each node has and m = [tau > 0] its gate:

1. gate: a task that the whole model can't do is not pruned,
2. learn: minimise task loss + k_coef x sum(m) over tau, each activation x being
   m x + (1 - m) mean(x); the step's gradient is a sigmoid's; tau is clamped to [-1, 1],
3. rank the nodes by tau; of the nested circuits on this path take the smallest that reaches the
   target on the *validation* pairs. Loss is not monotone in size, so sizes are tried from small to
   large, and the rule for dropped nodes (`ablation.without_dropped`) is applied at each,
4. drop one: take out each kept node whose absence leaves the validation loss at the target, the
   lowest tau first, until every node left is needed (the paper's authors cleaned up by hand),
5. report on the *test* pairs, and count edges: nonzero weights between kept nodes.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References, edge_weights, fast_attention, gated, without_dropped
from tl_sparse.checkpoints import versions
from tl_sparse.circuit import Circuit, Edge, Node, Site, edge_order
from tl_sparse.config import PruningConfig
from tl_sparse.functional import heaviside
from tl_sparse.sites import SiteMap, interface_counts, site_map
from tl_sparse.tasks import Split, Task


class TaskGateError(ValueError):
    """The whole model is not accurate enough on the task for its circuit to mean anything.

    `losses` are the whole model's, under the names of `Circuit.losses`.
    """

    def __init__(self, message: str, losses: dict[str, float]) -> None:
        super().__init__(message)
        self.losses = losses


class UnreachableTargetError(ValueError):
    """No circuit on the path reaches the target loss.

    `best_loss` is the lowest one found, on the validation pairs; `losses` are the whole model's.
    """

    def __init__(self, message: str, best_loss: float, losses: dict[str, float]) -> None:
        super().__init__(message)
        self.best_loss, self.losses = best_loss, losses


def prune(
    model: HookedTransformer,
    task: Task,
    references: References,
    config: PruningConfig | None = None,
    *,
    force: bool = False,
    progress: bool = True,
) -> Circuit:
    """Find the circuit of a task in a model; the model is left as it was.

    `references` are the values that cut nodes take (`ablation.references`). `force` goes on with a
    task that fails the gate and marks the circuit as forced.

    Raises:
        TaskGateError: If the model's accuracy on the test pairs is below `config.min_accuracy`.
        UnreachableTargetError: If no circuit on the path reaches `config.target_loss`.
        ValueError: If the references belong to another model, or activations are NaN.
    """
    config = config or PruningConfig()
    references.check(model)
    sites = site_map(model, final=config.mask_final)
    whole = _whole_model(model, task)
    if not whole["model_test_accuracy"] >= config.min_accuracy and not force:
        raise TaskGateError(
            f"The model answers {whole['model_test_accuracy']:.1%} of the test prompts of "
            f"{task.name} right, less than the gate of {config.min_accuracy:.0%}: a "
            "circuit for it would mean little. Train longer or wider, choose another task, or pass "
            "force=True.",
            whole,
        )
    required = [p for p in model.parameters() if p.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        taus = _learn(model, task, sites, references, config, progress)
        kept, curve = _choose_size(model, task, sites, references, taus, config, progress)
        if kept is None:
            best = min(loss for _, loss in curve)
            raise UnreachableTargetError(
                f"No circuit for {task.name} reaches a loss of {config.target_loss}: the lowest on "
                f"the path is {best:.4f}. Raise target_loss, or search longer (n_steps).",
                best,
                whole,
            )
        if config.drop_one:
            kept = _drop_one(model, task, sites, references, kept, taus, config, progress)
        gates = {site: keep.to(model.cfg.dtype) for site, keep in kept.items()}
        with gated(model, sites, gates, references.values), torch.no_grad():
            losses = {"validation": evaluate(model, task, "validation")[0]}
            losses["test"], losses["test_accuracy"] = evaluate(model, task, "test")
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
    return _circuit(
        model,
        sites,
        references,
        kept,
        task=task.name,
        target_loss=config.target_loss,
        losses=whole | losses,
        forced=not whole["model_test_accuracy"] >= config.min_accuracy,
        curve=tuple(curve),
        provenance={
            "pruning": config.to_dict(),
            "references": dict(references.provenance),
            "versions": versions(),
        },
    )


@torch.no_grad()
def evaluate(
    model: HookedTransformer,
    task: Task,
    split: Split,
    *,
    batch_size: int = 64,
    n_examples: int | None = None,
) -> tuple[float, float]:
    """Give task loss (nats) and accuracy of a model, as it runs now, on a split.

    `n_examples` takes so many examples spread over the split instead of all.
    """
    device = next(model.parameters()).device
    n_all, loss, accuracy = task.n_examples(split), 0.0, 0.0
    n = min(n_examples or n_all, n_all)
    chosen = [i * n_all // n for i in range(n)]
    with fast_attention(model):
        for start in range(0, n, batch_size):
            indices = chosen[start : start + batch_size]
            batch = task.batch(split, indices).to(device)
            logits = task.logits(model, batch)
            loss += task.loss(logits, batch).item() * len(indices)
            accuracy += task.accuracy(logits, batch) * len(indices)
    return loss / n, accuracy / n


def _whole_model(model: HookedTransformer, task: Task) -> dict[str, float]:
    longest = getattr(task, "longest", 0)
    if longest > model.cfg.n_ctx:
        raise ValueError(
            f"The task {task.name} has a prompt of {longest} tokens; the model reads at most "
            f"{model.cfg.n_ctx}."
        )
    validation, _ = evaluate(model, task, "validation")
    test, accuracy = evaluate(model, task, "test")
    if not math.isfinite(validation + test):
        raise ValueError(f"The model's logits on {task.name} are NaN or infinite.")
    return {
        "model_validation": validation,
        "model_test": test,
        "model_test_accuracy": accuracy,
    }


# -- learning the masks -----------------------------------------------------------------------


def _learn(
    model: HookedTransformer,
    task: Task,
    sites: SiteMap,
    references: References,
    config: PruningConfig,
    progress: bool,
) -> dict[Site, Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    device = next(model.parameters()).device
    taus = _initial_taus(model, sites, config, generator)
    optimizer = torch.optim.AdamW(
        list({id(tau): tau for tau in taus.values()}.values()),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    bar = tqdm(
        range(config.n_steps), desc=f"prune {task.name}", disable=not progress, mininterval=0.5
    )
    order = torch.empty(0, dtype=torch.long)
    price = _Price(config)
    for step in bar:
        if len(order) < config.batch_size:
            order = torch.cat(
                [order, torch.randperm(task.n_examples("train"), generator=generator)]
            )
        chosen, order = order[: config.batch_size], order[config.batch_size :]
        batch = task.batch("train", chosen.tolist()).to(device)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, config)
        gates = {site: heaviside(tau, config.heaviside_temperature) for site, tau in taus.items()}
        n_on = torch.stack([gate.sum() for gate in gates.values()]).sum()
        with gated(model, sites, gates, references.values):
            loss = task.loss(task.logits(model, batch), batch)
        optimizer.zero_grad()
        (loss + price.now * n_on).backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], config.gradient_clip)
        optimizer.step()
        with torch.no_grad():
            for tau in taus.values():
                tau.clamp_(-1, 1)
        price.update(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", nodes=int(n_on))
    return {site: tau.detach() for site, tau in taus.items()}


class _Price:
    """The price of a node: `k_coef`, or one that follows the loss towards the target.

    The adaptive price rises while the loss is under the target and falls while it is over, at most
    5 % a step: dual ascent on "fewest nodes subject to loss <= target". One rule then serves models
    whose good prices lie far apart.
    """

    def __init__(self, config: PruningConfig) -> None:
        self.target, self.adaptive = config.target_loss, config.k_coef == "adaptive"
        self.now = 1e-3 if config.k_coef == "adaptive" else config.k_coef

    def update(self, loss: float) -> None:
        if self.adaptive:
            excess = max(-1.0, min(1.0, loss / self.target - 1))
            self.now = min(max(self.now * math.exp(-0.05 * excess), 1e-7), 1e-1)


def _initial_taus(
    model: HookedTransformer, sites: SiteMap, config: PruningConfig, generator: torch.Generator
) -> dict[Site, Tensor]:
    device = next(model.parameters()).device
    taus: dict[Site, Tensor] = {}
    for info in sites.sites:
        if config.tie_qk and info.site.name == "k":
            taus[info.site] = taus[Site(info.site.layer, "q")]
            continue
        noise = torch.randn(info.width, generator=generator) * config.init_noise_scale
        tau = (noise + config.init_noise_bias).clamp(-1, 1).to(device, model.cfg.dtype)
        taus[info.site] = tau.requires_grad_()
    return taus


def _learning_rate(step: int, config: PruningConfig) -> float:
    done, warmup = step / config.n_steps, config.warmup_fraction
    if done < warmup:
        return config.learning_rate * (step + 1) / (warmup * config.n_steps + 1)
    return config.learning_rate * (1 - done) / (1 - warmup) if warmup < 1 else config.learning_rate


# -- choosing the size ------------------------------------------------------------------------


def _choose_size(
    model: HookedTransformer,
    task: Task,
    sites: SiteMap,
    references: References,
    taus: dict[Site, Tensor],
    config: PruningConfig,
    progress: bool,
) -> tuple[dict[Site, Tensor] | None, list[tuple[int, float]]]:
    """Give the smallest circuit on the path that reaches the target, if any; the sizes tried."""
    ranks = _ranks(taus)
    total = sum(len(tau) for tau in taus.values())
    curve: dict[int, float] = {}

    def loss_at(n_nodes: int) -> float:
        if n_nodes not in curve:
            kept = _kept_at(model, sites, ranks, n_nodes, config)
            curve[n_nodes] = _loss_with(model, task, sites, references, kept)
        return curve[n_nodes]

    chosen = _smallest(loss_at, total, config.target_loss, progress)
    points = sorted(curve.items())
    return None if chosen is None else _kept_at(model, sites, ranks, chosen, config), points


def _smallest(
    loss_at: Callable[[int], float], total: int, target: float, progress: bool
) -> int | None:
    """Give the smallest size that reaches the target: sizes 20 % apart, upwards, then finer."""
    last = -1
    for n_nodes in tqdm(_grid(1, total, 1.2), desc="choose size", disable=not progress):
        if loss_at(n_nodes) <= target:
            fine = _grid(last + 1, n_nodes, 1.02)
            return next(n for n in fine if loss_at(n) <= target)
        last = n_nodes
    return None


def _grid(first: int, last: int, ratio: float) -> list[int]:
    """Give rising whole numbers from `first` to `last`, about `ratio` apart, at least 1."""
    grid = [first]
    while grid[-1] < last:
        grid.append(min(last, max(grid[-1] + 1, int(grid[-1] * ratio))))
    return grid


def _loss_with(
    model: HookedTransformer,
    task: Task,
    sites: SiteMap,
    references: References,
    kept: dict[Site, Tensor],
    *,
    n_examples: int | None = None,
) -> float:
    """Give the validation loss with only some nodes left in, on all pairs or on some."""
    gates = {site: keep.to(model.cfg.dtype) for site, keep in kept.items()}
    with gated(model, sites, gates, references.values):
        return evaluate(model, task, "validation", n_examples=n_examples)[0]


def _drop_one(
    model: HookedTransformer,
    task: Task,
    sites: SiteMap,
    references: References,
    kept: dict[Site, Tensor],
    taus: dict[Site, Tensor],
    config: PruningConfig,
    progress: bool,
) -> dict[Site, Tensor]:
    """Take out, lowest tau first, nodes that the target does not need, until each is needed."""
    # A removal is first tried on a few pairs, whose loss may lie above the whole split's.
    n_screen = min(32, task.n_examples("validation"))
    here = _loss_with(model, task, sites, references, kept, n_examples=n_screen)
    screen = 1.1 * max(config.target_loss, here)
    changed = True
    while changed:
        changed = False
        nodes = [(s, c) for s, keep in kept.items() for c in keep.nonzero().flatten().tolist()]
        nodes.sort(key=lambda node: float(taus[node[0]][node[1]]))
        for site, channel in tqdm(nodes, desc="drop one", disable=not progress, mininterval=0.5):
            if not kept[site][channel]:
                continue  # it fell with another
            fewer = {s: keep.clone() for s, keep in kept.items()}
            fewer[site][channel] = False
            if config.tie_qk and site.name in ("q", "k"):
                fewer[Site(site.layer, "k" if site.name == "q" else "q")][channel] = False
            fewer = without_dropped(model, sites, fewer, tie_qk=config.tie_qk)
            if _loss_with(model, task, sites, references, fewer, n_examples=n_screen) > screen:
                continue
            if _loss_with(model, task, sites, references, fewer) <= config.target_loss:
                kept, changed = fewer, True
    return kept


def _ranks(taus: dict[Site, Tensor]) -> dict[Site, Tensor]:
    """Give each node its place, from 0, in the order of falling tau; ties by position."""
    flat = torch.cat(list(taus.values()))
    order = torch.argsort(flat, descending=True, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return dict(zip(taus, places.split([len(tau) for tau in taus.values()]), strict=True))


def _kept_at(
    model: HookedTransformer,
    sites: SiteMap,
    ranks: dict[Site, Tensor],
    n_nodes: int,
    config: PruningConfig,
) -> dict[Site, Tensor]:
    kept = {site: place < n_nodes for site, place in ranks.items()}
    if config.tie_qk:
        for site in kept:
            if site.name == "q":
                both = kept[site] | kept[Site(site.layer, "k")]
                kept[site] = kept[Site(site.layer, "k")] = both
    return without_dropped(model, sites, kept, tie_qk=config.tie_qk)


# -- the result -------------------------------------------------------------------------------


def _circuit(
    model: HookedTransformer,
    sites: SiteMap,
    references: References,
    kept: dict[Site, Tensor],
    **found: Any,
) -> Circuit:
    edges = [
        Edge(source, target, weight)
        for joint in edge_weights(model, sites, kept)
        for source, target, weight in zip(*joint, strict=True)
    ]
    channels = {site: tuple(keep.nonzero().flatten().tolist()) for site, keep in kept.items()}
    n_interface, n_biases = interface_counts(model, channels)
    return Circuit(
        nodes=tuple(Node(site, c) for site, some in channels.items() for c in some),
        edges=tuple(sorted(edges, key=edge_order)),
        references={
            info.site: tuple(references.values[info.site].tolist()) for info in sites.sites
        },
        model_hash=references.model_hash,
        ablation=references.ablation,
        n_interface=n_interface,
        n_biases=n_biases,
        **found,
    )
