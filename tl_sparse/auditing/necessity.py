"""Does the model need the circuit? Take out its nodes, or its edges, and as many others at random.

A circuit can be sufficient and needless, where the model does the task in two ways at once. Without
the circuit's nodes nobody else can read or write those channels either; without its edges all else
goes on, and a second way through the same channels shows.
"""

from collections.abc import Iterator

import torch
from tqdm import tqdm

from tl_sparse.auditing.findings import Finding
from tl_sparse.auditing.subject import Parts, Subject, percentile, random_like, spread

HARM = 0.5
"""Half of the way from the whole model to the empty circuit: most of the task has to be gone."""


def necessity(subject: Subject, progress: bool) -> Iterator[Finding]:
    """Take the circuit's nodes out of the model, and its edges; then others, as often as asked."""
    outside = subject.outside()
    yield from _harm(subject, "nodes", subject.members(), outside, progress)
    edges: Parts = {joint: kept for joint, kept in subject.selection.edges.items() if kept.any()}
    others: Parts = {
        joint: subject.trial.weights[joint] & ~kept
        for joint, kept in subject.selection.edges.items()
    }
    if edges:
        yield from _harm(subject, "edges", edges, others, progress)


def _harm(
    subject: Subject, what: str, parts: Parts, others: Parts, progress: bool
) -> Iterator[Finding]:
    harm = 1 - subject.gain(subject.loss(subject.cut(parts)))
    generator = torch.Generator().manual_seed(subject.config.seed)
    at_random = []
    draws = range(subject.config.n_random)
    for _ in tqdm(draws, desc=f"random sets of {what}", disable=not progress):
        drawn = subject.cut(random_like(parts, others, generator))
        at_random.append(1 - subject.gain(subject.loss(drawn)))
    yield Finding(
        "necessary", f"harm of taking the circuit's {what} out", harm, HARM, at_most=False,
        why="half of the way from the whole model to the empty circuit: what the circuit does is "
        "done by nothing else",
        control=percentile(at_random, 0.95),
        control_name=f"95th percentile of {len(at_random)} random sets of as many other {what} at "
        "each site",
    )  # fmt: skip
    beaten = sum(one >= harm for one in at_random) / len(at_random)
    low, high = spread(at_random)
    yield Finding(
        "necessary", f"share of random sets of {what} that do as much harm", beaten, 0.05,
        at_most=True,
        why=f"one in twenty, the usual level of a test; their harm is {low:.2g} to {high:.2g}",
    )  # fmt: skip
