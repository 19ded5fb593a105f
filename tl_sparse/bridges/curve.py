"""How strongly a node has to be moved before the dense model gives the other answer.

For the pairs of a task, each prompt is steered towards the other of its pair, at a few strengths
from 0 (nothing) to 1 (the whole difference), and the probability of the *counterfactual* answer is
read at the prompt's end (Gao et al. 2025, Fig. 9). Beside it stand

- the same push in random directions of the same length: what moving the dense model by so much
  does;
- the same push backwards, away from the counterfactual;
- the answer to the counterfactual prompt itself, unsteered: how sure the dense model is of the
  answer at all. Where other tokens may follow as well, that is less than one half of all tokens,
  and the probability among the task's two answers is what to ask for (`among="answers"`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.bridges.modules import Bridges
from tl_sparse.bridges.steering import Into, check_steering, pushed, steering_push
from tl_sparse.checkpoints import read_json
from tl_sparse.circuit import Circuit
from tl_sparse.curves import draw_curves
from tl_sparse.files import write_text
from tl_sparse.markup import fragment
from tl_sparse.nodes import Node, Site
from tl_sparse.pruning.others import check_lengths
from tl_sparse.rules import NON_NEGATIVE_INTEGER, SEED, Rule, checks_itself, choice, is_number
from tl_sparse.tasks import PairTask, Split, TaskBatch
from tl_sparse.tasks.base import SPLITS

STRENGTHS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Strengths of a curve unless others are given: closer together where the paper's rise."""

Among = Literal["all", "answers"]

_STRENGTHS = Rule(
    "are a list or tuple of one or more numbers in rising order",
    lambda v: (
        isinstance(v, list | tuple)
        and len(v) > 0
        and all(map(is_number, v))
        and list(v) == sorted(set(v))
    ),
)


@dataclass(frozen=True, kw_only=True)
class StrengthCurve:
    """The probability of the counterfactual answer against the strength of a push."""

    node: str
    """The node of the sparse model, e.g. `1.attn_in.7`; several are joined by `+`."""
    task: str
    split: str
    into: str
    """Where the push was added: what the dense sublayer "read", or its "residual" stream."""
    among: str
    """What the probability is taken among: "all" tokens, or the pair's two "answers"."""
    strengths: tuple[float, ...]
    probability: tuple[float, ...]
    """Of the counterfactual answer, in the mean over all prompts."""
    by_side: tuple[tuple[float, ...], tuple[float, ...]]
    """The same over the prompts of side A alone, steered to B's answer, and over those of B."""
    random: tuple[float, ...]
    """The same for pushes in random directions, in the mean over prompts and directions; nothing if
    none were tried."""
    reverse: tuple[float, ...]
    """The same for the push with its sign turned; nothing if it was not tried."""
    counterfactual: float
    """The same with the counterfactual prompt given to the dense model, and nothing pushed."""
    n_prompts: int

    def strength_at(self, probability: float = 0.5) -> float | None:
        """Give the least strength at which the mean probability is reached, or None.

        Between two strengths of the curve it is interpolated.

        Examples:
            >>> curve = StrengthCurve(node="0.mlp_in.1", task="toy", split="test", into="read",
            ...     among="all", strengths=(0.0, 1.0), probability=(0.0, 0.8),
            ...     by_side=((0.0, 0.7), (0.0, 0.9)), random=(), reverse=(), counterfactual=0.9,
            ...     n_prompts=2)
            >>> curve.strength_at(0.4), curve.strength_at(0.9)
            (0.5, None)
        """
        return reached_at(self.strengths, self.probability, probability)

    def draw(self) -> str:
        """Draw the curve, the two sides and the controls as a figure (`curves`)."""
        named = {
            "steered": self.probability,
            "first prompts": self.by_side[0],
            "second prompts": self.by_side[1],
            "random directions": self.random,
            "backwards": self.reverse,
        }
        points = {
            name: list(zip(self.strengths, some, strict=True))
            for name, some in named.items()
            if some
        }
        return draw_curves(
            points,
            x_label=f"strength of the push by {_in_short(self.node)}",
            y_label="P(counterfactual answer)" + " of the two" * (self.among == "answers"),
        )

    def _repr_html_(self) -> str:
        """Give what notebooks show: the figure with its style."""
        return fragment(self.draw())

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON values, with the strength at which one half is reached."""
        return asdict(self) | {"strength_at_half": self.strength_at(0.5)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StrengthCurve":
        """Build from `to_dict`'s values.

        Raises:
            ValueError: If a field is missing or unknown.
        """
        given: dict[str, Any] = {k: v for k, v in values.items() if k != "strength_at_half"}
        try:
            for name in ("strengths", "probability", "random", "reverse"):
                given[name] = tuple(map(float, given[name]))
            a, b = given["by_side"]
            given["by_side"] = tuple(map(float, a)), tuple(map(float, b))
            return cls(**given)
        except KeyError as error:
            raise ValueError(f"A StrengthCurve has the field {error}, and here is none.") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"These are not the fields of a StrengthCurve: {error}.") from None

    def save(self, path: str | Path) -> None:
        """Write the curve as JSON, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "StrengthCurve":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is missing or damaged.
        """
        return cls.from_dict(read_json(Path(path)))


def _in_short(node: str) -> str:
    """Give one node's name, or how many of which site."""
    names = node.split("+")
    return node if len(names) == 1 else f"{len(names)} nodes of {names[0].rpartition('.')[0]}"


def reached_at(
    strengths: Sequence[float], probabilities: Sequence[float], wanted: float
) -> float | None:
    """Give the least strength at which a probability is reached, interpolated, or None."""
    before: tuple[float, float] | None = None
    for strength, reached in zip(strengths, probabilities, strict=True):
        if reached >= wanted:
            if before is None:
                return strength
            part = (wanted - before[1]) / (reached - before[1])
            return before[0] + part * (strength - before[0])
        before = strength, reached
    return None


@torch.no_grad()
@checks_itself
def strength_curve(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    task: PairTask,
    node: Node | Sequence[Node],
    *,
    strengths: Sequence[float] = STRENGTHS,
    split: Split = "test",
    into: Into = "read",
    among: Among = "all",
    n_random: int = 4,
    backwards: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> StrengthCurve:
    """Steer the dense model by a node over the pairs of a task, at each strength.

    Several nodes of one site are moved together. Compare what is reached with the curve's
    `counterfactual`: no push need do better than the counterfactual prompt itself.

    Raises:
        ValueError: If models, bridges and node do not fit, an argument is out of range, the two
            prompts of a pair differ in length, so that what one computes at a token has no place in
            the other, or a strength is so large that the model's answers are no numbers.
    """
    nodes = check_steering(dense, sparse, bridges, node, into)
    check_strengths(strengths)
    choice(*SPLITS).check("split", split)
    SEED.check("seed", seed)
    NON_NEGATIVE_INTEGER.check("n_random", n_random)
    choice("all", "answers").check("among", among)
    batch = paired_batch(task, split, dense, sparse)
    n_pairs = len(batch.tokens) // 2
    other = batch.tokens.roll(n_pairs, 0)
    push = steering_push(dense, sparse, bridges, nodes, batch.tokens, other, into=into)
    random_pushes = [push @ turn for turn in rotations(n_random, push.shape[-1], seed).to(push)]
    turned = [-push] if backwards else []
    steered, reverse, random = [], [], []
    name, site = "+".join(map(str, nodes)), nodes[0].site
    for strength in tqdm(strengths, desc=f"steer by {_in_short(name)}", disable=not progress):
        for made, some in ((steered, [push]), (reverse, turned), (random, random_pushes)):
            made.append(
                [pushed_answers(dense, task, batch, site, strength * p, into, among) for p in some]
            )
    unsteered = answers_among(task.logits(dense, batch), batch.correct, batch.wrong, among)
    reached = _means(steered)
    if not all(map(math.isfinite, reached)):
        raise ValueError(
            f"At a strength of {max(strengths, key=abs):g} the dense model's answers are no "
            "numbers. Take strengths nearer to 0."
        )
    return StrengthCurve(
        node=name,
        task=task.name,
        split=split,
        into=into,
        among=among,
        strengths=tuple(map(float, strengths)),
        probability=reached,
        by_side=(
            _means([[p[:n_pairs] for p in some] for some in steered]),
            _means([[p[n_pairs:] for p in some] for some in steered]),
        ),
        random=_means(random) if n_random else (),
        reverse=_means(reverse) if backwards else (),
        counterfactual=unsteered.mean().item(),
        n_prompts=len(batch.tokens),
    )


def rotations(n: int, d: int, seed: int) -> Float[Tensor, "n d d"]:
    """Draw orthogonal matrices: a push turned by one is as long at every token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, d, d, generator=generator, dtype=torch.float64))[0]


def check_strengths(strengths: Any) -> None:
    """Check that strengths make a curve.

    Raises:
        ValueError: If they are not numbers in rising order.
    """
    _STRENGTHS.check("strengths", strengths)


def _means(found: list[list[Tensor]]) -> tuple[float, ...]:
    return tuple(torch.stack(some).mean().item() for some in found)


def paired_batch(
    task: PairTask, split: Split, dense: HookedTransformer, sparse: HookedTransformer
) -> TaskBatch:
    """Give a task's prompts, those of side A and then those of side B, on the models' device.

    Raises:
        ValueError: If the two prompts of a pair differ in length, so that what one computes at a
            token has no place in the other, or one is longer than a model reads.
    """
    check_lengths(dense, task)
    check_lengths(sparse, task)
    batch = task.batch(split).to(next(dense.parameters()).device)
    n_pairs = len(batch.tokens) // 2
    if not torch.equal(batch.last[:n_pairs], batch.last[n_pairs:]):
        raise ValueError(
            f"The task {task.name} has pairs whose prompts differ in length. Steering takes a "
            "difference at each token, so both prompts of a pair need equally many."
        )
    return batch


def pushed_answers(
    dense: HookedTransformer,
    task: PairTask,
    batch: TaskBatch,
    site: Site,
    push: Float[Tensor, "batch pos d_dense"],
    into: Into,
    among: Among,
) -> Float[Tensor, " batch"]:
    """Give the probability of the other side's answer behind each prompt under a push."""
    with pushed(dense, site, push, into):
        return answers_among(task.logits(dense, batch), batch.wrong, batch.correct, among)


def answers_among(
    logits: Float[Tensor, "batch d_vocab"],
    wanted: Int[Tensor, " batch"],
    other: Int[Tensor, " batch"],
    among: Among,
) -> Float[Tensor, " batch"]:
    """Give the probability of one answer, among all tokens or among it and another.

    Examples:
        >>> logits, a, b = torch.zeros(1, 4), torch.tensor([0]), torch.tensor([1])
        >>> answers_among(logits, a, b, "all").item(), answers_among(logits, a, b, "answers").item()
        (0.25, 0.5)
    """
    logits = logits.double()
    chosen = logits.gather(1, torch.stack([wanted, other], 1))
    of = logits if among == "all" else chosen
    return (chosen[:, 0] - of.logsumexp(1)).exp()


def read_nodes(circuit: Circuit) -> tuple[Node, ...]:
    """Give the nodes of a circuit that can steer: those at attn_in and mlp_in."""
    return tuple(node for node in circuit.nodes if node.site.name in ("attn_in", "mlp_in"))


def rank_nodes(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    task: PairTask,
    nodes: Sequence[Node],
    *,
    strengths: Sequence[float] = STRENGTHS,
    split: Split = "validation",
    into: Into = "read",
    among: Among = "all",
    progress: bool = True,
) -> tuple[StrengthCurve, ...]:
    """Give the curve of each node, the best first.

    Better is what reaches one half at less strength, and, where neither does, the higher
    probability at any strength. The paper chooses its node by hand. Choose on one split and report
    another: `strength_curve(..., split="test")` of the best.

    Raises:
        ValueError: As `strength_curve`.
    """
    curves = [
        strength_curve(
            dense, sparse, bridges, task, node,
            strengths=strengths, split=split, into=into, among=among, n_random=0,
            backwards=False, progress=False,
        )
        for node in tqdm(nodes, desc="nodes", disable=not progress)
    ]  # fmt: skip
    return tuple(sorted(curves, key=_how_weak))


def _how_weak(curve: StrengthCurve) -> tuple[float, float]:
    reached = curve.strength_at(0.5)
    return (float("inf") if reached is None else reached), -max(curve.probability)
