"""The activations of nodes, rounded to levels, group by group of nodes.

A level is an interval between two *edges*: values of the node that are spread over its distinct
values on a sample of the tokens, whatever the labels, more densely towards both ends. So a spike
(AbsTopK and SAEs make most activations exactly zero) takes one level only, and a node with few
distinct values has one level for each.

1. The nodes are put into groups that fit into memory.
2. For each group the model runs over a sample of windows, for the edges, then over all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention
from tl_sparse.concepts.labelling import LabelledTokens
from tl_sparse.concepts.settings import ConceptConfig
from tl_sparse.sites import site_map

N_SAMPLE = 2**14
"""Tokens on which the edges of levels are measured."""

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
    windows = _windows(text, n_ctx, config.batch_size)
    n_scored = int((text.half >= 0).sum())
    per_node = n_scored + 4 * N_SAMPLE + 16 * config.batch_size * n_ctx
    wanted = parts_in_groups(places, max(1, config.max_bytes // per_node))
    sampled = windows[:: max(1, n_scored // N_SAMPLE)]
    for i, parts in enumerate(wanted):
        step = f"nodes, group {i + 1} of {len(wanted)}"
        with tqdm(desc=step, total=len(windows) + len(sampled), disable=not progress) as bar:
            some = [batch[:, keep] for batch, keep in _scored(model, parts, sampled, bar)]
            nodes = torch.cat(some, dim=1).split(CHUNK)
            edges = torch.cat([level_edges(chunk, config.n_levels) for chunk in nodes])
            del some, nodes
            levels = torch.empty(len(edges), n_scored, dtype=torch.uint8)
            done = 0
            for batch, keep in _scored(model, parts, windows, bar):
                found = torch.searchsorted(edges, batch[:, keep].contiguous(), out_int32=True)
                levels[:, done : done + found.shape[1]] = found
                done += found.shape[1]
        yield Group(parts, levels, edges)


def level_edges(sample: Float[Tensor, "node token"], n_levels: int) -> Float[Tensor, "node edge"]:
    """Give n_levels - 1 values of each node, sorted: all of them, or a spread of its distinct ones.

    Half of the spread is even in rank, half even in the log odds of rank: ever finer towards both
    ends, where the threshold of a rare concept lies.
    """
    ordered = sample.sort(dim=1).values
    changes = ordered[:, 1:] != ordered[:, :-1]
    rank = torch.nn.functional.pad(changes.cumsum(1), (1, 0))  # among the distinct values
    last, n_edges = rank[:, -1:], n_levels - 1
    even = torch.linspace(0, 1, n_edges // 2).expand(len(rank), -1)
    odds = torch.linspace(-1, 1, n_edges - n_edges // 2) * (last + 1).log()
    spread = (torch.cat([even, odds.sigmoid()], dim=1) * last).round().long().sort(dim=1).values
    every = torch.arange(n_edges).minimum(last)
    wanted = torch.where(last < n_edges, every, spread)
    return ordered.gather(1, torch.searchsorted(rank, wanted))


def _windows(
    text: LabelledTokens, n_ctx: int, batch_size: int
) -> list[tuple[Int[Tensor, "batch pos"], Tensor]]:
    """Cut the stream into batches of windows, each with whether its tokens are scored."""
    whole = len(text.tokens) // n_ctx * n_ctx
    scored = text.half >= 0
    tokens = text.tokens[:whole].unflatten(0, (-1, n_ctx)).split(batch_size) if whole else ()
    keep = scored[:whole].split(batch_size * n_ctx)
    found = list(zip(tokens, keep, strict=False))
    if whole < len(text.tokens):  # what is left, shorter than a window
        found.append((text.tokens[None, whole:], scored[whole:]))
    return found


def _scored(
    model: HookedTransformer, parts: tuple[Part, ...], windows: list[Any], bar: tqdm
) -> Iterator[tuple[Float[Tensor, "node token"], Tensor]]:
    """Run the model batch by batch; give the values of all nodes, and which tokens are scored."""
    places = [part.place for part in parts]
    runs = _run(model, places, [tokens for tokens, _ in windows])
    for activations, (_, keep) in zip(runs, windows, strict=True):
        values = [
            part.place.nodes_of(activations[part.place.hook_name])[:, part.start : part.stop]
            for part in parts
        ]
        batch = torch.cat(values, dim=1).T.cpu()
        if not torch.isfinite(batch).all():
            raise ValueError("Activations of the model are NaN or infinite; concepts need numbers.")
        bar.update()
        yield batch, keep


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
