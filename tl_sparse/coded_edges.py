"""Cutting single edges between latents.

An edge is an entry of a virtual weight V = D W E. Where it is cut, the target latent's
pre-activation sees the source's reference value instead of the source:

    h_t' = h_t + sum over s of (1 - gate_st) (reference_s - value_s) V_st

1. A source with a coder gives its nodes on in place of their sum, and the weights behind it are
   D W; a target with a coder gets [h | x], so that the weights before it are W E and, for what its
   error sees, W. Cut edges are then masked entries and a constant, as between channels
   (`tl_sparse.ablation`). Weights that leave the same source, none of them cut, go along
   (`completed`).
2. Between the reads of an MLP and latents of its neurons stands the activation function. There each
   target with a cut edge has its own view: what the neurons would be if its cut sources had their
   reference values (`NeuronViews`). One more run of the neurons for each such target.
3. The error of a site is made of its own view of the site's activation, x' - D(E(x')).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Site
from tl_sparse.coders import Coder
from tl_sparse.resampling import check_same_shape
from tl_sparse.sites import Joint, SiteInfo, SiteMap, coders_of

MAX_ENTRIES = 2**25
"""Numbers that the views of some neurons take at once, at most; 128 MB."""


def by_entry(
    sites: SiteMap, joint: Joint, gate: Float[Tensor, "source target"]
) -> Float[Tensor, "source_entry target_entry"]:
    """Give each entry of a joint's weight the gate of its edge."""
    return sites[joint.target].spread(joint.by_row(sites[joint.source].spread(gate.T)).T)


def completed(
    model: HookedTransformer,
    sites: SiteMap,
    edges: Mapping[Joint, Tensor],
) -> dict[Joint, Tensor]:
    """Add the other joints that leave the same coded site, with nothing cut."""
    found, coders = dict(edges), coders_of(model)
    sources = {joint.source for joint in edges if joint.source in coders}
    for joint in sites.joints:
        if joint.source in sources and joint not in found:
            like = next(iter(edges.values()))
            n_source, n_target = sites[joint.source].width, sites[joint.target].width
            found[joint] = torch.ones(n_source, n_target, dtype=like.dtype, device=like.device)
    return found


@contextmanager
def widened(
    model: HookedTransformer,
    sites: SiteMap,
    edges: Mapping[Joint, Tensor],
    values: Mapping[Site, Tensor],
    nodes: Mapping[Site, Tensor],
    learned: Mapping[Joint, Tensor],
) -> Iterator[None]:
    """Let coders at the ends of cut joints pass on nodes, and be given views, in a `with` block.

    The weights are to be those of `joint_entries`; `nodes` are the gates of nodes, and `learned` is
    where gates of edges get a gradient.
    """
    coders, handles = coders_of(model), []
    touched = {joint.source: coders.get(joint.source) for joint in edges}
    touched |= {joint.target: coders.get(joint.target) for joint in edges}
    before = [(c, c.wide_in, c.wide_out, c.view) for c in touched.values() if c is not None]
    try:
        for joint, gate in edges.items():
            source, target = touched[joint.source], touched[joint.target]
            if source is not None:
                source.wide_out = True
            if target is not None and not joint.nonlinear:
                target.wide_in = True
            if target is not None and joint.nonlinear:
                block: Any = model.blocks[joint.target.layer]
                views = NeuronViews(
                    block.mlp,
                    target,
                    (sites[joint.source], sites[joint.target]),
                    gate,
                    values[joint.source].to(gate.device, gate.dtype),
                    _to_look_at(joint, gate, nodes, learned),
                )
                target.view = views
                handles.append(block.mlp.register_forward_pre_hook(views.note_read))
                handles.append(block.mlp.hook_pre.register_forward_hook(views.note_pre))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for coder, wide_in, wide_out, view in before:
            coder.wide_in, coder.wide_out, coder.view = wide_in, wide_out, view


def _to_look_at(
    joint: Joint,
    gate: Float[Tensor, "source target"],
    nodes: Mapping[Site, Tensor],
    learned: Mapping[Joint, Tensor],
) -> Bool[Tensor, "source target"]:
    """Mark the edges that are cut, and while gates are learned those that may come to be.

    A source that is out has its reference value anyway.
    """
    some = gate.detach() != 1
    if not gate.requires_grad:
        return some
    if joint in learned:
        return some | learned[joint]
    between = torch.ones_like(some)
    if joint.source in nodes:
        between &= (nodes[joint.source].detach() != 0)[:, None]
    if joint.target in nodes:
        between &= nodes[joint.target].detach() != 0
    return some | between


@dataclass
class NeuronViews:
    """What each latent of the neurons, and their error, sees under cut edges from the MLP's reads.

    Only targets that an edge of `looked_at` leads to have a view of their own.
    """

    mlp: Any
    coder: Coder
    ends: tuple[SiteInfo, SiteInfo]
    gate: Float[Tensor, "source target"]
    value: Float[Tensor, "... source_entry"]
    looked_at: Bool[Tensor, "source target"]
    read: Tensor | None = None
    pre: Tensor | None = None

    def note_read(self, module: Any, inputs: tuple[Tensor]) -> None:
        """Keep the nodes that the MLP reads in this run."""
        self.read = inputs[0]

    def note_pre(self, module: Any, inputs: Any, pre: Tensor) -> None:
        """Keep the neurons before the activation function in this run."""
        self.pre = pre

    def __call__(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Give the pre-activations of the latents, and the neurons as the error sees them."""
        sources = self.looked_at.any(1).nonzero().flatten()
        targets = self.looked_at.any(0).nonzero().flatten()
        if not len(targets):
            return h, x
        assert self.read is not None
        read, pre, self.read, self.pre = self.read, self.pre, None, None
        if self.value.ndim > 1:
            check_same_shape(read, self.value)
        entries = self._entries(sources)
        change = (self.value - read)[..., entries]
        cut = self.ends[0].spread(1 - self.gate.T).T[entries]
        room = change[..., 0].numel() * max(len(entries), x.shape[-1])
        for some in targets.split(max(1, MAX_ENTRIES // max(room, 1))):
            neurons = self._neurons(pre, change, cut[:, some], entries)
            latents = some[some < self.coder.n_latents]
            encoder = self.coder.encoder[:, latents].T
            seen = (neurons[..., : len(latents), :] * encoder).sum(-1)
            h = h.index_copy(-1, latents, seen + self.coder.encoder_bias[latents])
            if len(latents) < len(some):  # the error is the last node
                x = neurons[..., -1, :]
        return h, x

    def _neurons(
        self, pre: Any, change: Tensor, cut: Tensor, entries: Tensor
    ) -> Float[Tensor, "... target neuron"]:
        """Give the neurons as each target sees them."""
        shift = (change[..., None, :] * cut.T) @ self.mlp.W_in[entries]
        return self.mlp.act_fn(pre[..., None, :] + shift)

    def _entries(self, sources: Tensor) -> Int[Tensor, " entry"]:
        """Give the entries of some source nodes."""
        source = self.ends[0]
        chosen = torch.zeros(source.width, dtype=torch.bool, device=sources.device)
        chosen[sources] = True
        return source.spread(chosen).nonzero().flatten()
