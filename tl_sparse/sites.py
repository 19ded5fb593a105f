"""How the pruner sees a model: places where nodes live, and the weights that join them.

`site_map(model)` lists, for any HookedTransformer shaped like GPT-2 or Llama, sparse or not, causal
or bidirectional, with a norm or (if it is a HookedSparseTransformer) without,

- its **sites**: hook point, width, and the axes of the activation that hold the nodes;
- its **joints**: the weights that join two sites, as a (source width, target width) matrix.

Two nodes of a found model can be joined by several weights, and an edge is then all of them, its
weight their norm: a neuron of a gated MLP is act(x W_gate) x (x W_in) and reads each channel twice;
under grouped queries a value channel goes on through W_O once for each query head of its group.

A site can have a *coder* (`model.coders`, made by `tl_sparse.sae_arm.splice`). Its nodes are then
latents and one error, and the joints there are virtual weights: decoder of the source x W x encoder
of the target, where sites without a coder have the identity.

Nothing else of the pruning and audit code knows how a model is built, so that another kind of model
is another map.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import SITES, Site
from tl_sparse.coders import Coder

READ_SITES = frozenset({"attn_in", "mlp_in", "final_in"})
"""Sites whose nodes have no in-edges: they read the residual stream, an identity, not a weight."""

_HOOKS = {
    "attn_in": "blocks.{l}.hook_attn_read",
    "q": "blocks.{l}.attn.hook_q",
    "k": "blocks.{l}.attn.hook_k",
    "v": "blocks.{l}.attn.hook_v",
    "attn_out": "blocks.{l}.hook_attn_out",
    "mlp_in": "blocks.{l}.hook_mlp_read",
    "mlp_neuron": "blocks.{l}.mlp.hook_post",
    "mlp_out": "blocks.{l}.hook_mlp_out",
}
_STOCK_HOOKS = {
    "attn_in": "blocks.{l}.ln1.hook_normalized",
    "mlp_in": "blocks.{l}.ln2.hook_normalized",
}
CODER_PLACES = {
    "attn_in": "topk_attn_in",
    "attn_out": "topk_attn_out",
    "mlp_in": "topk_mlp_in",
    "mlp_neuron": "mlp.topk",
    "mlp_out": "topk_mlp_out",
}
"""Where in a block a site's coder stands: in the place of its AbsTopK, which it runs first."""

_JOINTS = (
    ("attn_in", "q", "attn.W_Q", "attn.b_Q"),
    ("attn_in", "k", "attn.W_K", "attn.b_K"),
    ("attn_in", "v", "attn.W_V", "attn.b_V"),
    ("v", "attn_out", "attn.W_O", "attn.b_O"),
    ("mlp_in", "mlp_neuron", "mlp.W_in", "mlp.b_in"),
    ("mlp_neuron", "mlp_out", "mlp.W_out", "mlp.b_out"),
)


@dataclass(frozen=True)
class SiteInfo:
    """One site of one model."""

    site: Site
    hook_name: str
    shape: tuple[int, ...]
    """The trailing axes of the activation whose entries are nodes, e.g. (n_heads, d_head)."""
    n_error: int = 0
    """How many of the last entries are one node together: the error of an SAE. 0 without one."""

    @property
    def n_entries(self) -> int:
        """The number of entries that the hook point shows, each with a reference value."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def width(self) -> int:
        """The number of nodes."""
        return self.n_entries - self.n_error + (self.n_error > 0)

    def spread(self, nodes: Shaped[Tensor, "*rows node"]) -> Shaped[Tensor, "*rows entry"]:
        """Give each entry what its node has."""
        if not self.n_error:
            return nodes
        return torch.cat(
            [nodes[..., :-1], nodes[..., -1:].expand(*nodes.shape[:-1], self.n_error)], -1
        )

    def entries(self, channel: int) -> slice:
        """Give the entries of a node."""
        last = self.n_error and channel == self.width - 1
        return slice(channel, self.n_entries if last else channel + 1)


@dataclass(frozen=True)
class Joint:
    """One weight matrix between two sites."""

    source: Site
    target: Site
    weight: str
    """Name of the parameter."""
    bias: str
    """Name of the bias that is added at the target."""
    nonlinear: bool = False
    """Whether the MLP's activation function stands between the weight and the target's encoder."""
    gate: str = ""
    """Name of a second parameter between the two sites: W_gate of a gated MLP."""
    n_sharing: int = 1
    """How many query heads share a source node: above 1 at W_O under grouped queries."""
    d_head: int = 1
    """Channels of a head, where they share."""

    @property
    def n_weights(self) -> int:
        """How many weights make one edge."""
        return self.n_sharing * (2 if self.gate else 1)

    def parts(self) -> tuple["Joint", ...]:
        """Give a joint for each parameter, the gate's first."""
        if not self.gate:
            return (self,)
        return replace(self, weight=self.gate, gate=""), replace(self, gate="")

    def by_row(self, nodes: Shaped[Tensor, "*rows source"]) -> Shaped[Tensor, "*rows weight_row"]:
        """Give each row of the weight, one for each head's channel at W_O, what its source has."""
        if self.n_sharing == 1:
            return nodes
        by_head = nodes.unflatten(-1, (-1, self.d_head))
        return by_head.repeat_interleave(self.n_sharing, -2).flatten(-2)


@dataclass(frozen=True)
class SiteMap:
    """The sites of a model, in the order of the forward pass, and the weights between them."""

    sites: tuple[SiteInfo, ...]
    joints: tuple[Joint, ...]

    def __getitem__(self, site: Site) -> SiteInfo:
        """Give one site's entry."""
        for info in self.sites:
            if info.site == site:
                return info
        raise KeyError(f"The model has no site {site}.")

    def __contains__(self, site: object) -> bool:
        """Tell whether the model has a site."""
        return any(info.site == site for info in self.sites)

    @property
    def n_nodes(self) -> int:
        """The number of nodes of the whole model, `final_in` not counted."""
        return sum(info.width for info in self.sites if info.site.name != "final_in")


def n_position_channels(model: HookedTransformer) -> int:
    """Give the number of channels that reads have behind those of the residual stream."""
    sparsity = getattr(model, "sparsity", None)
    return 0 if sparsity is None else sparsity.position_channels


def coders_of(model: HookedTransformer) -> Mapping[Site, Coder]:
    """Give the coders of a model by site; most models have none."""
    return getattr(model, "coders", {})


def site_map(model: HookedTransformer, *, final: bool = False) -> SiteMap:
    """Map a HookedTransformer, sparse or stock; `final` adds the input of the unembedding.

    Raises:
        ValueError: If the model's blocks are not of a shape that the map knows.
    """
    cfg = model.cfg
    for name in (
        "num_experts", "parallel_attn_mlp", "ungroup_grouped_query_attention",
        "use_normalization_before_and_after",
    ):  # fmt: skip
        if getattr(cfg, name):
            raise ValueError(f"site_map does not know models with cfg.{name}={getattr(cfg, name)}.")
    widths: dict[str, tuple[int, ...]] = dict.fromkeys(SITES, (cfg.d_model,))
    widths["q"] = (cfg.n_heads, cfg.d_head)
    widths |= dict.fromkeys(("k", "v"), (cfg.n_key_value_heads or cfg.n_heads, cfg.d_head))
    widths |= dict.fromkeys(("attn_in", "mlp_in"), (cfg.d_model + n_position_channels(model),))
    names = SITES[:-1]
    if cfg.attn_only:
        names = tuple(name for name in names if not name.startswith("mlp"))
    else:
        assert cfg.d_mlp is not None
        widths["mlp_neuron"] = (cfg.d_mlp,)
    sites, coders = [], coders_of(model)
    for layer in range(cfg.n_layers):
        for name in names:
            coder = coders.get(Site(layer, name))
            if coder is not None:
                hook = f"blocks.{layer}.{CODER_PLACES[name]}.hook_nodes"
                shape = (coder.n_entries,)
                sites.append(SiteInfo(Site(layer, name), hook, shape, coder.n_error))
                continue
            hook = _HOOKS[name].format(l=layer)
            if hook not in model.hook_dict:
                hook = _STOCK_HOOKS[name].format(l=layer)
            sites.append(SiteInfo(Site(layer, name), hook, widths[name]))
    if final:
        hook = "ln_final.hook_normalized"
        if cfg.normalization_type is None:  # the unembedding reads the residual stream itself
            hook = f"blocks.{cfg.n_layers - 1}.hook_resid_post"
        sites.append(SiteInfo(Site(cfg.n_layers, "final_in"), hook, (cfg.d_model,)))
    missing = [info.hook_name for info in sites if info.hook_name not in model.hook_dict]
    if missing:
        raise ValueError(
            f"The model has no hook point {missing[0]}; it needs a norm before each read. A "
            "HookedSparseTransformer of the same weights needs none."
        )
    joints = tuple(
        _joint(model, layer, *row)
        for layer in range(cfg.n_layers)
        for row in _JOINTS
        if row[0] in names and row[1] in names
    )
    return SiteMap(tuple(sites), joints)


def _joint(model: HookedTransformer, layer: int, a: str, b: str, weight: str, bias: str) -> Joint:
    """Give a row of `_JOINTS` in one layer, by the names of the model's own parameters."""
    cfg, block = model.cfg, f"blocks.{layer}."
    joint = Joint(Site(layer, a), Site(layer, b), block + weight, block + bias)
    if b == "mlp_neuron":
        gate = f"{block}mlp.W_gate" if cfg.gated_mlp else ""
        return replace(joint, gate=gate, nonlinear=joint.target in coders_of(model))
    if cfg.n_key_value_heads and b in ("k", "v"):  # W_K itself is made of it, for each query head
        names = (f"{block}attn._{name.split('.')[1]}" for name in (weight, bias))
        return replace(joint, **dict(zip(("weight", "bias"), names, strict=True)))
    if cfg.n_key_value_heads and a == "v":
        n_sharing = cfg.n_heads // cfg.n_key_value_heads
        return replace(joint, n_sharing=n_sharing, d_head=cfg.d_head)
    return joint


def joint_matrix(model: HookedTransformer, joint: Joint) -> Float[Tensor, "source target"]:
    """Give a joint's weight as a (source node, target node) matrix, its heads flattened.

    Between sites with coders these are virtual weights, the activation function left out where the
    joint is `nonlinear`; of an error, whose weights are as many as it has entries, the norm, and so
    of an edge that is several weights (`Joint.n_weights`).
    """
    if joint.gate:
        return torch.hypot(*(joint_matrix(model, part) for part in joint.parts()))
    entries = joint_entries(model, joint)
    if joint.n_sharing > 1:
        by_head = entries.unflatten(0, (-1, joint.n_sharing, joint.d_head))
        return by_head.norm(dim=1).flatten(0, 1)
    source, target = (coders_of(model).get(site) for site in (joint.source, joint.target))
    if target is not None and joint.nonlinear:
        entries = entries @ target.as_target()
    return by_node(
        entries,
        0 if source is None else source.n_error,
        0 if target is None else target.n_error,
    )


def joint_entries(
    model: HookedTransformer, joint: Joint
) -> Float[Tensor, "source_entry target_entry"]:
    """Give a joint's weight between the entries of its sites, heads flattened.

    The target of a `nonlinear` joint has here the channels that the activation function is given.
    At W_O every query head has rows of its own (`Joint.by_row`); a gate is another part's.
    """
    weight = _channel_matrix(model, joint)
    source, target = (coders_of(model).get(site) for site in (joint.source, joint.target))
    if source is not None:
        weight = source.as_source() @ weight
    if target is not None and not joint.nonlinear:
        weight = weight @ target.as_target()
    return weight


def joint_bias(model: HookedTransformer, joint: Joint) -> Float[Tensor, " target_entry"]:
    """Give the bias that belongs to `joint_entries`, coders' biases in it, heads flattened."""
    bias = model.get_parameter(joint.bias).detach().flatten()
    source, target = (coders_of(model).get(site) for site in (joint.source, joint.target))
    if source is not None:
        bias = bias + source.decoder_bias.detach() @ _channel_matrix(model, joint)
    if target is not None and not joint.nonlinear:
        bias = target.target_bias(bias)
    return bias


def _channel_matrix(
    model: HookedTransformer, joint: Joint
) -> Float[Tensor, "source_channel target_channel"]:
    weight = model.get_parameter(joint.weight).detach()
    if weight.ndim == 2:
        return weight
    if joint.target.name == "attn_out":  # W_O: head_index d_head d_model
        return weight.flatten(0, 1)
    return weight.transpose(0, 1).flatten(1)  # W_Q, W_K, W_V: head_index inputs d_head


def by_node(entries: Tensor, n_source_error: int, n_target_error: int) -> Tensor:
    """Let the norm of an error's rows, and of its columns, stand for them."""
    if n_source_error:
        rest, error = entries.split([len(entries) - n_source_error, n_source_error])
        entries = torch.cat([rest, error.norm(dim=0, keepdim=True)])
    if n_target_error:
        n = entries.shape[1] - n_target_error
        rest, error = entries.split([n, n_target_error], dim=1)
        entries = torch.cat([rest, error.norm(dim=1, keepdim=True)], dim=1)
    return entries


def as_parameter(
    model: HookedTransformer, joint: Joint, matrix: Float[Tensor, "source_entry target_entry"]
) -> Float[Tensor, "..."]:
    """Give a matrix like `joint_entries` in the shape of the joint's parameter."""
    shape = model.get_parameter(joint.weight).shape
    if len(shape) == 2:
        return matrix
    if joint.target.name == "attn_out":
        return matrix.unflatten(0, tuple(shape[:2]))
    return matrix.unflatten(1, (shape[0], shape[2])).transpose(0, 1)


def seen_by_weights(
    model: HookedTransformer, site: Site, values: Float[Tensor, "*batch_pos node"]
) -> Float[Tensor, "*batch_pos node"]:
    """Give what the weights behind a site see of its nodes' values.

    That is the values, but in a stock model, whose reads are the norm's hook point: there gain and
    bias of the norm, if they are not folded, come after it.
    """
    norm_name = {"attn_in": "ln1", "mlp_in": "ln2"}.get(site.name)
    if norm_name is None or _HOOKS[site.name].format(l=site.layer) in model.hook_dict:
        return values
    norm: Any = getattr(model.blocks[site.layer], norm_name)
    if hasattr(norm, "w"):
        values = values * norm.w.detach()
    return values + norm.b.detach() if hasattr(norm, "b") else values


def model_hash(model: HookedTransformer) -> str:
    """Give a hash of a model's parameters: names, shapes and every bit of every entry.

    Entries are hashed in double precision, so that `model.double()`, the same weights computed with
    more digits, is the same model.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        tensor = parameter.detach().cpu().double().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    for site, coder in sorted(coders_of(model).items()):
        digest.update(f"{site} {coder.settings}\n".encode())
    return digest.hexdigest()
