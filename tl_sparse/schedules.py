"""Density and learning rate as functions of the step.

With p = step / n_steps, warm-up fraction w and annealing from a to b (Gao et al. 2025, A.2 and
Figure 11):

    density(p)       = 1 before a, the target from b on, in between linear in p or a power law
    learning rate(p) = peak x min(1, p / w) x (1 - p) / (1 - w) x sqrt(density(end) / density(p))

The last factor gives the "sharkfin": low while the network is dense, highest when annealing ends.
"""

import math

from tl_sparse.config import TrainingConfig


def n_steps(config: TrainingConfig, n_ctx: int) -> int:
    """Give the number of optimiser steps: n_tokens / (batch_size x n_ctx), rounded up."""
    return math.ceil(config.n_tokens / (config.batch_size * n_ctx))


def density_at(target: float, step: int, total: int, config: TrainingConfig) -> float:
    """Give the density that holds after optimiser step `step` (counted from 0) of `total`.

    Examples:
        >>> config = TrainingConfig(anneal_start=0.0, anneal_stop=0.5)
        >>> [density_at(0.1, step, 100, config) for step in (0, 25, 49, 99)]
        [0.982, 0.532, 0.1, 0.1]
    """
    if config.anneal == "none" or target == 1:
        return target
    done = (step + 1) / total
    start, stop = config.anneal_start, config.anneal_stop
    if done >= stop:
        return target
    if done <= start:
        return 1.0
    if config.anneal == "linear":
        return 1 + (target - 1) * (done - start) / (stop - start)
    first = max(start, 1 / total)  # a power law needs a step to begin at
    fraction = math.log(done / first) / math.log(stop / first)
    return target ** max(0.0, fraction)


def embedding_density_at(target: float, step: int, total: int, config: TrainingConfig) -> float:
    """Give the density of embeddings and biases: as the blocks', or dropping at once half-way."""
    if config.anneal == "none" or config.anneal_embeddings == "gradual":
        return density_at(target, step, total, config)
    middle = (config.anneal_start + config.anneal_stop) / 2
    return target if (step + 1) / total >= middle else 1.0


def learning_rate_at(weight_density: float, step: int, total: int, config: TrainingConfig) -> float:
    """Give the learning rate of optimiser step `step` (counted from 0) of `total`.

    `weight_density` is the final density of the block matrices, for the sharkfin factor.

    Examples:
        >>> config = TrainingConfig(learning_rate=1.0, warmup_fraction=0.1, sharkfin=False)
        >>> [round(learning_rate_at(1.0, step, 100, config), 3) for step in (0, 9, 54, 99)]
        [0.1, 1.0, 0.5, 0.0]
    """
    done, warmup = (step + 1) / total, config.warmup_fraction
    rate = config.learning_rate
    if done < warmup:
        rate *= done / warmup
    elif config.learning_rate_decay == "linear" and warmup < 1:
        rate *= (1 - done) / (1 - warmup)
    if config.sharkfin:
        rate *= math.sqrt(weight_density / density_at(weight_density, step, total, config))
    return rate
