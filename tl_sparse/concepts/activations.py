"""The activations of nodes, rounded to levels, group by group of nodes.

A level is an interval between two *edges*, which come from a sample of the tokens, whatever the
labels:

- Zero is a level (AbsTopK and SAEs make most activations exactly that). So is what lies above all
  sampled values, and what lies below them.
- Each other level ends, away from zero, at a sampled value, included. It has one sampled value if
  those are few; if not, edges are spread over them, more densely towards both ends.

So the levels of a node and of its negative are the same, in opposite order. The algorithm:

1. The nodes are put into groups that fit into memory.
2. For each group the model runs once over all windows, in an order in which the first few are a
   sample of the whole text: what they give is kept until the edges are known.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.concepts.labelling import LabelledTokens
from tl_sparse.concepts.settings import ConceptConfig
from tl_sparse.sites import site_map

N_SAMPLE = 2**14
"""Scored tokens, about, on which the edges of levels are measured; all of them where there are
fewer than twice as many."""

CHUNK = 64
"""Nodes that are sorted at a time."""


@dataclass(frozen=True)
class Place:
    """Where some nodes are: a site, or the latents that something reads at a hook point."""

    name: str
    hook_name: str
    width: int
    coder: Callable[[Tensor], Tensor] | None = None
    """From the activation at the hook point to latents; None for its channels themselves."""

    @torch.no_grad()
    def nodes_of(self, activation: Tensor) -> Float[Tensor, "token node"]:
        """Give the values of the nodes at every token."""
        return self.latents_of(activation).flatten(0, 1).float()

    def latents_of(self, activation: Tensor) -> Any:
        """Give the channels, heads side by side, or what the coder makes of them."""
        if activation.ndim == 4:  # batch pos head_index d_head
            activation = activation.flatten(2)
        return activation if self.coder is None else self.coder(activation)


@dataclass(frozen=True)
class Part:
    """Some nodes of a place, side by side."""

    place: Place
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows that the model runs at once."""

    tokens: Int[Tensor, "batch pos"]
    scored: Bool[Tensor, " token"]
    place: Int[Tensor, " scored"]
    """Where the scored tokens stand among those of the whole text."""


@dataclass(frozen=True, eq=False)
class Group:
    """The levels of some nodes at every token that is scored."""

    parts: tuple[Part, ...]
    levels: UInt8[Tensor, "node token"]
    edges: Float[Tensor, "node edge"]
    """Level k is the values above edge k - 1, up to edge k."""


def site_places(model: HookedTransformer) -> tuple[Place, ...]:
    """Give every site of a model, in the order of the forward pass."""
    return tuple(
        Place(str(info.site), info.hook_name, info.width) for info in site_map(model).sites
    )


def check_coders(model: HookedTransformer, coders: Mapping[str, Any]) -> None:
    """Check that coders stand at hook points of a model.

    Raises:
        ValueError: If there is none, or no such hook point, or what stands there is no coder.
    """
    if not coders:
        raise ValueError(
            "coders has a coder for each of some hook points, got none. Leave it at None to score "
            "the model's own nodes."
        )
    for name, coder in coders.items():
        if name not in model.hook_dict:
            raise ValueError(f"The model has no hook point {name}. They are in model.hook_dict.")
        if not callable(coder_of(coder)):
            raise ValueError(
                "A coder is a function from activations to latents, or an object whose encode is "
                f"one, as SAELens' SAEs; got {type(coder).__name__} at {name}."
            )


def coder_of(coder: Any) -> Any:
    """Give the function of a coder."""
    return getattr(coder, "encode", coder)


@torch.no_grad()
def coder_places(model: HookedTransformer, coders: Mapping[str, Any]) -> tuple[Place, ...]:
    """Give the latents at hook points; the model runs on a few tokens to count them.

    Raises:
        ValueError: If nothing passes a hook point, or what passes has no row for each token, or if
            a coder gives no latents for each token.
    """
    # As many positions as heads would make an attention pattern look like activations by token.
    n_pos = min(model.cfg.n_ctx, 3 if model.cfg.n_heads == 2 else 2)
    tokens = torch.zeros(2, n_pos, dtype=torch.long)
    hooked = [Place(name, name, 1) for name in coders]
    seen = next(_run(model, hooked, [tokens]))
    found = []
    for name, coder in coders.items():
        if name not in seen:
            raise ValueError(
                f"Coders read what passes a hook point, and nothing passes {name} in this model. "
                "Name one of those that model.run_with_cache gives; cfg switches some on, as "
                "use_attn_result does."
            )
        if seen[name].ndim not in (3, 4) or seen[name].shape[:2] != tokens.shape:
            raise ValueError(
                "Coders read activations of shape [batch, pos, channel] or [batch, pos, head, "
                f"channel]; at {name} {list(tokens.shape)} tokens give {list(seen[name].shape)}. "
                "Name a hook point that has activations for each token."
            )
        place = Place(name, name, 1, coder_of(coder))
        found.append(Place(name, name, _n_latents(place, seen[name]), place.coder))
    return tuple(found)


def _n_latents(place: Place, activation: Tensor) -> int:
    """Count the latents that a place's coder gives for each token."""
    latents = place.latents_of(activation)
    given = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    if not isinstance(given, list) or len(given) != 3 or given[:2] != list(activation.shape[:2]):
        raise ValueError(
            "A coder gives one tensor of shape [batch, pos, latent]; for activations of shape "
            f"{list(activation.shape)} the one at {place.name} gave {given}. Let it give a row of "
            "latents for each token."
        )
    return given[2]


def parts_in_groups(places: tuple[Place, ...], n_nodes: int) -> list[tuple[Part, ...]]:
    """Cut places into groups of at most `n_nodes` nodes, in order."""
    groups: list[tuple[Part, ...]] = []
    parts: list[Part] = []
    room = n_nodes
    for place in places:
        start = 0
        while start < place.width:
            stop = min(place.width, start + room)
            parts.append(Part(place, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                groups.append(tuple(parts))
                parts, room = [], n_nodes
    return [*groups, tuple(parts)] if parts else groups


def groups(
    model: HookedTransformer,
    places: tuple[Place, ...],
    text: LabelledTokens,
    n_ctx: int,
    config: ConceptConfig,
    *,
    progress: bool,
) -> Iterator[Group]:
    """Give the levels of all nodes, a group at a time.

    Raises:
        ValueError: If an activation is NaN or infinite.
    """
    batches, n_sampled = _batches(text, n_ctx, config.batch_size)
    n_scored = int((text.half >= 0).sum())
    per_node = n_scored + 16 * N_SAMPLE + 16 * config.batch_size * n_ctx
    wanted = parts_in_groups(places, max(1, config.max_bytes // per_node))
    for i, parts in enumerate(wanted):
        step = f"nodes, group {i + 1} of {len(wanted)}"
        with tqdm(desc=step, total=len(batches), disable=not progress) as bar:
            values = _scored(model, parts, batches, bar)
            sample = [next(values) for _ in range(n_sampled)]
            nodes = torch.cat(sample, dim=1).split(CHUNK)
            edges = torch.cat([level_edges(chunk, config.n_levels) for chunk in nodes])
            del nodes
            levels = torch.empty(len(edges), n_scored, dtype=torch.uint8)
            for batch in batches:
                found = sample.pop(0) if sample else next(values)
                found = torch.searchsorted(edges, found, out_int32=True)
                levels[:, batch.place] = found.to(torch.uint8)
        yield Group(parts, levels, edges)


def level_edges(sample: Float[Tensor, "node token"], n_levels: int) -> Float[Tensor, "node edge"]:
    """Give n_levels - 1 edges of each node, sorted: all that its values ask for, or a spread.

    Value v asks for an edge at v if it is positive, just below v if it is negative, and at both
    places if it is zero, the smallest or the largest. Half of the spread is even in rank, half even
    in the log odds of rank: ever finer towards both ends, where the threshold of a rare concept
    lies. It is the same from either end, so that a node's negative has the negatives of its levels.
    """
    zero = torch.zeros_like(sample[:, :1])
    around = torch.cat([_just_below(zero), zero], dim=1)
    low, high = sample.amin(1, keepdim=True), sample.amax(1, keepdim=True)
    inner = torch.where(sample > 0, sample, _just_below(sample))
    ordered = torch.cat([inner, _just_below(low), high, around], dim=1).sort(dim=1).values
    changes = ordered[:, 1:] != ordered[:, :-1]
    rank = torch.nn.functional.pad(changes.cumsum(1), (1, 0))  # among the distinct edges
    last, n_edges = rank[:, -1:], n_levels - 1
    every = torch.arange(n_edges).minimum(last)
    n_side = (n_edges - 2) // 2  # zero has the two others
    even = torch.linspace(0.5, 0, n_side // 2 + 1).expand(len(rank), -1)
    odds = torch.linspace(-1, 0, n_side - n_side // 2 - 1) * (last + 1).log()
    lower = (torch.cat([even, odds.sigmoid()], dim=1) * last).round().long()
    spread = ordered.gather(1, torch.searchsorted(rank, torch.cat([lower, last - lower], dim=1)))
    spare = zero.expand(-1, n_edges - 2 - 2 * n_side)
    spread = torch.cat([spread, around, spare], dim=1).sort(dim=1).values
    all_of_them = ordered.gather(1, torch.searchsorted(rank, every))
    return torch.where(last < n_edges, all_of_them, spread)


def _just_below(values: Tensor) -> Tensor:
    return values.nextafter(torch.full_like(values, -torch.inf))


def _batches(text: LabelledTokens, n_ctx: int, batch_size: int) -> tuple[list[Batch], int]:
    """Cut the stream into batches of windows, and say how many of the first are the sample.

    Windows without a scored token are left out. The others are taken some distance apart, again and
    again, so that the first batches are of all parts of the text.
    """
    scored = text.half >= 0
    place, whole = scored.cumsum(0) - 1, len(text.tokens) // n_ctx * n_ctx
    windows = torch.arange(whole).view(-1, n_ctx)
    windows = windows[scored[windows].any(1)]
    apart = max(1, int(scored.sum()) // N_SAMPLE)
    turn = torch.arange(len(windows)) % apart
    found = list(windows[turn.argsort(stable=True)].split(batch_size)) if len(windows) else []
    n_sampled = max(1, -(-int((turn == 0).sum()) // batch_size))
    if scored[whole:].any():  # what is left, shorter than a window
        found.append(torch.arange(whole, len(scored))[None])
    batches = [Batch(text.tokens[at], scored[at].flatten(), place[at][scored[at]]) for at in found]
    return batches, n_sampled if apart > 1 else len(batches)


def _scored(
    model: HookedTransformer, parts: tuple[Part, ...], batches: list[Batch], bar: tqdm
) -> Iterator[Float[Tensor, "node token"]]:
    """Run the model batch by batch; give the values of all nodes at the tokens that are scored."""
    places = [part.place for part in parts]
    runs = _run(model, places, [batch.tokens for batch in batches])
    for activations, batch in zip(runs, batches, strict=True):
        values = [
            part.place.nodes_of(activations[part.place.hook_name])[:, part.start : part.stop]
            for part in parts
        ]
        nodes = torch.cat(values, dim=1).T.cpu()
        if not torch.isfinite(nodes).all():
            raise ValueError("Activations of the model are NaN or infinite; concepts need numbers.")
        bar.update()
        yield nodes[:, batch.scored].contiguous()


@torch.no_grad()
def _run(
    model: HookedTransformer, places: list[Place], batches: list[Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Run the model on batches of tokens; give the activations at the places' hook points."""
    device = next(model.parameters()).device
    seen: dict[str, Tensor] = {}
    hooks: list[Any] = [
        (name, partial(_keep, seen)) for name in dict.fromkeys(p.hook_name for p in places)
    ]
    for tokens in batches:
        with model.hooks(fwd_hooks=hooks), fast_attention(model):
            model(tokens.to(device), return_type=None)
        yield dict(seen)
        seen.clear()


def _keep(seen: dict[str, Tensor], activation: Tensor, hook: Any) -> None:
    seen[hook.name] = activation.detach()
