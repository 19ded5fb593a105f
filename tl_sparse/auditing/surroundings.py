"""Does the circuit still work when part of the rest is there? At random, and at worst.

Setting everything outside to reference values lets damage cancel: a circuit can be chosen such that
it works in this one surrounding only. So parts of the rest, nodes and the weights that the circuit
cut between its nodes, are left in at random, and gradient ascent looks for the part that does most
harm, the same for all prompts (stochastic and adversarial ablation; METHOD.md, section 7).
"""

from collections.abc import Iterator

import torch
from tqdm import tqdm

from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Gates, Parts, Subject, percentile, random_like, spread
from tl_sparse.circuit import Site
from tl_sparse.functional import heaviside
from tl_sparse.pruning.surroundings import SHARES

KEPT_GAIN = 0.5
"""Half of the gain over the empty circuit, in nearly every surrounding."""


def surroundings(subject: Subject, progress: bool) -> Iterator[Finding]:
    """Leave random parts of the rest in, then the worst part that can be found."""
    outside = subject.outside()
    generator = torch.Generator().manual_seed(subject.config.seed)
    gains, unprotected = [], []
    members = subject.members()
    for i in tqdm(range(subject.config.n_subsets), desc="surroundings", disable=not progress):
        left_in = _draw(outside, SHARES[i % len(SHARES)], generator)
        gains.append(subject.gain(subject.loss(_around(subject, outside, left_in))))
        other = random_like(members, dict(outside), generator)
        gains_of = subject.gain(subject.loss(_instead(subject, outside, left_in, other)))
        unprotected.append(gains_of)
    yield Finding(
        "robust", "gain kept beside random parts of the rest", percentile(gains, 0.05), KEPT_GAIN,
        at_most=False, spread=spread(gains),
        why="half of the gain in 95 of 100 surroundings",
        control=percentile(unprotected, 0.05),
        control_name="random nodes left in place of the circuit",
    )  # fmt: skip
    worst = subject.gain(subject.loss(_around(subject, outside, worst_part(subject, progress))))
    yield Finding(
        "robust", "gain kept beside the worst part of the rest that was found", worst, 0.0,
        at_most=False,
        why="none of the gain has to be left, but the rest must not turn the answers round",
        control=percentile(gains, 0.0), control_name="worst random part",
    )  # fmt: skip


def _draw(outside: Parts, share: float, generator: torch.Generator) -> Parts:
    return {
        key: some & (torch.rand(some.shape, generator=generator) < share).to(some.device)
        for key, some in outside.items()
    }


def _around(subject: Subject, outside: Parts, left_in: Parts) -> Gates:
    """Give the gates of the circuit with a part of the rest."""
    return subject.cut({key: some & ~left_in[key] for key, some in outside.items()})


def _instead(subject: Subject, outside: Parts, left_in: Parts, other: Parts) -> Gates:
    """Give the gates of a part of the rest with other nodes in place of the circuit's."""
    inside = subject.members()
    cut = {key: some & ~left_in[key] for key, some in outside.items()}
    return subject.cut(
        {k: (c & ~other[k] | inside[k]) if isinstance(k, Site) else c for k, c in cut.items()}
    )


def worst_part(subject: Subject, progress: bool) -> Parts:
    """Look for the part of the rest that harms the circuit most, by straight-through steps.

    Each node and cut weight outside has a tau; it is left in where tau > 0. The part with the
    highest loss on its batch of training examples is given.
    """
    config, trial, task = subject.config, subject.trial, subject.task
    generator = torch.Generator().manual_seed(config.seed)
    outside = subject.outside()
    places = {key: some.nonzero(as_tuple=True) for key, some in outside.items() if some.any()}
    taus = {
        key: (0.1 * torch.randn(len(place[0]), generator=generator)).to(trial.like).requires_grad_()
        for key, place in places.items()
    }
    if not taus:
        return outside
    optimizer = torch.optim.Adam(list(taus.values()), lr=config.adversarial_rate)
    worst: tuple[float, Parts] = (-float("inf"), {})
    n = task.n_examples("train")
    steps = range(config.n_adversarial_steps)
    for _ in tqdm(steps, desc="worst surrounding", disable=not progress):
        chosen = torch.randperm(n, generator=generator)[: config.batch_size].tolist()
        batch = task.batch("train", chosen).to(trial.like.device)
        gates = {key: heaviside(tau, 1.0) for key, tau in taus.items()}
        full = {
            key: torch.ones_like(some).to(trial.like).index_put(places[key], gates[key])
            for key, some in outside.items()
            if key in places
        }
        nodes = {k: torch.ones_like(v).to(trial.like) for k, v in subject.selection.nodes.items()}
        nodes |= {key: gate for key, gate in full.items() if isinstance(key, Site)}
        edges = {key: gate for key, gate in full.items() if not isinstance(key, Site)}
        learned = {key: some for key, some in outside.items() if not isinstance(key, Site)}
        with trial.running(nodes, trial.values("train", chosen, batch), edges, learned):
            loss = task.loss(task.logits(subject.model, batch), batch)
        if loss.item() > worst[0]:
            worst = (loss.item(), {key: tau.detach() > 0 for key, tau in taus.items()})
        optimizer.zero_grad()
        (-loss).backward()
        optimizer.step()
        with torch.no_grad():
            for tau in taus.values():
                tau.clamp_(-1, 1)
    left_in: Parts = {}
    for key, some in outside.items():
        left_in[key] = torch.zeros_like(some)
        if key in places:
            left_in[key][places[key]] = worst[1][key]
    return left_in
