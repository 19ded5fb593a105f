"""How far a push at each read can go at all, and how much of it bridges carry; no node is chosen.

A strength curve that stays low has three possible causes, and these numbers tell them apart. For
each place where the dense model's attention or MLP reads its stream, and each pair of prompts,

- *own*: the dense model's own activation on the counterfactual prompt minus that on the prompt is
  added there, times a strength; at strength 1 this is activation patching. No bridge has a part in
  it. If it does not change the answer, no push at this place need do so.
- *decoded*: the change of *all* nodes that the sparse model reads there, through the decoder. If
  own works and this does not, the bridge has lost the difference.
- *random*: the decoded change turned by random rotations, as long as it at every token.
- If own and decoded work and single nodes do not, the difference is spread over many nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.bridges.curve import (
    STRENGTHS,
    Among,
    check_strengths,
    paired_batch,
    pushed_answers,
    reached_at,
    rotations,
)
from tl_sparse.bridges.modules import Bridges
from tl_sparse.bridges.steering import READS, check_steering, decoder_rows, read_hook
from tl_sparse.nodes import Node, Site
from tl_sparse.rules import NON_NEGATIVE_INTEGER, checks_itself, choice
from tl_sparse.sites import site_map
from tl_sparse.tasks import PairTask, Split


@dataclass(frozen=True, kw_only=True)
class ReadLimit:
    """What pushes at one read reach, without a bridge and with all of its nodes."""

    site: str
    """Where both models read, e.g. `1.attn_in`."""
    strengths: tuple[float, ...]
    own: tuple[float, ...]
    """The probability of the counterfactual answer when the dense model's own difference is added,
    in the mean over prompts."""
    decoded: tuple[float, ...]
    """The same for the change of all nodes of the sparse model's read, through the decoder."""
    random: tuple[float, ...]
    """The same for `decoded` in random directions, in the mean over prompts and rotations; nothing
    if none were tried."""
    cosine: float
    """Between the two changes, over all tokens of a prompt, in the mean over prompts."""

    def strength_at(self, probability: float = 0.5, *, decoded: bool = False) -> float | None:
        """Give the least strength at which a probability is reached, or None."""
        return reached_at(self.strengths, self.decoded if decoded else self.own, probability)


@torch.no_grad()
@checks_itself
def read_limits(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    task: PairTask,
    *,
    strengths: Sequence[float] = STRENGTHS,
    split: Split = "validation",
    among: Among = "all",
    n_random: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> tuple[ReadLimit, ...]:
    """Push the dense model at each read by its own difference, and by all that the bridge carries.

    Raises:
        ValueError: As `strength_curve`.
    """
    sites = [Site(layer, name) for layer in range(dense.cfg.n_layers) for name in READS]
    check_steering(dense, sparse, bridges, Node(sites[0], 0), "read")
    check_strengths(strengths)
    choice("all", "answers").check("among", among)
    NON_NEGATIVE_INTEGER.check("n_random", n_random)
    turns = rotations(n_random, dense.cfg.d_model, seed).to(next(dense.parameters()))
    batch = paired_batch(task, split, dense, sparse)
    inside = torch.arange(batch.tokens.shape[1], device=turns.device) <= batch.last[:, None]

    def reached(site: Site, pushes: Sequence[Tensor]) -> tuple[float, ...]:
        return tuple(
            _mean([pushed_answers(dense, task, batch, site, x * p, "read", among) for p in pushes])
            for x in (strengths if pushes else ())
        )

    limits = []
    for site in tqdm(sites, desc="reads", disable=not progress):
        own = _difference(dense, read_hook(site), batch.tokens)
        change = _difference(sparse, site_map(sparse)[site].hook_name, batch.tokens)
        decoded = change[..., : sparse.cfg.d_model] @ decoder_rows(dense, bridges, site, "read")
        a, b = ((some * inside[..., None]).flatten(1) for some in (own, decoded))
        limits.append(
            ReadLimit(
                site=str(site),
                strengths=tuple(map(float, strengths)),
                own=reached(site, [own]),
                decoded=reached(site, [decoded]),
                random=reached(site, [decoded @ turn for turn in turns]),
                cosine=torch.cosine_similarity(a, b).mean().item(),
            )
        )
    return tuple(limits)


def _mean(found: list[Tensor]) -> float:
    return torch.stack(found).mean().item()


def _difference(
    model: HookedTransformer, hook_name: str, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos _"]:
    """Give an activation on the other prompt of the pair minus that on the prompt."""
    kept: list[Tensor] = []
    hook = (hook_name, partial(_note, kept))
    with fast_attention(model), model.hooks(fwd_hooks=[hook]):
        model(tokens, stop_at_layer=int(hook_name.split(".")[1]) + 1)
    # With cfg.use_split_qkv_input each head of the dense model has a copy of what it reads.
    found = kept[0] if kept[0].ndim == 3 else kept[0][:, :, 0]
    return found.roll(len(tokens) // 2, 0) - found


def _note(kept: list[Tensor], activation: Tensor, hook: object) -> None:
    kept.append(activation)
