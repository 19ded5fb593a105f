"""How the pruner sees a model: places where nodes live, and the weights that join them.

`site_map(model)` lists, for any HookedTransformer of GPT-2's shape, sparse or not, causal or
bidirectional, with a norm or (if it is a HookedSparseTransformer) without,

- its **sites**: hook point, width, and the axes of the activation that hold the nodes;
- its **joints**: each weight matrix that joins two sites, as a (source width, target width) matrix.

Nothing else of the pruning and audit code knows how a model is built, so that another kind of model
is another map.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import SITES, Site

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

    @property
    def width(self) -> int:
        """The number of nodes."""
        n = 1
        for size in self.shape:
            n *= size
        return n


@dataclass(frozen=True)
class Joint:
    """One weight matrix between two sites."""

    source: Site
    target: Site
    weight: str
    """Name of the parameter."""
    bias: str
    """Name of the bias that is added at the target."""


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


def site_map(model: HookedTransformer, *, final: bool = False) -> SiteMap:
    """Map a HookedTransformer, sparse or stock; `final` adds the input of the unembedding.

    Raises:
        ValueError: If the model's blocks are not of a shape that the map knows.
    """
    cfg = model.cfg
    for name in ("gated_mlp", "n_key_value_heads", "num_experts", "parallel_attn_mlp"):
        if getattr(cfg, name):
            raise ValueError(f"site_map does not know models with cfg.{name}={getattr(cfg, name)}.")
    widths: dict[str, tuple[int, ...]] = dict.fromkeys(SITES, (cfg.d_model,))
    widths |= dict.fromkeys(("q", "k", "v"), (cfg.n_heads, cfg.d_head))
    widths |= dict.fromkeys(("attn_in", "mlp_in"), (cfg.d_model + n_position_channels(model),))
    names = SITES[:-1]
    if cfg.attn_only:
        names = tuple(name for name in names if not name.startswith("mlp"))
    else:
        assert cfg.d_mlp is not None
        widths["mlp_neuron"] = (cfg.d_mlp,)
    sites = []
    for layer in range(cfg.n_layers):
        for name in names:
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
        Joint(Site(layer, a), Site(layer, b), f"blocks.{layer}.{weight}", f"blocks.{layer}.{bias}")
        for layer in range(cfg.n_layers)
        for a, b, weight, bias in _JOINTS
        if a in names and b in names
    )
    return SiteMap(tuple(sites), joints)


def joint_matrix(model: HookedTransformer, joint: Joint) -> Float[Tensor, "source target"]:
    """Give a joint's weight as a (source node, target node) matrix, its heads flattened."""
    weight = model.get_parameter(joint.weight).detach()
    if weight.ndim == 2:
        return weight
    if joint.target.name == "attn_out":  # W_O: head_index d_head d_model
        return weight.flatten(0, 1)
    return weight.transpose(0, 1).flatten(1)  # W_Q, W_K, W_V: head_index inputs d_head


def as_parameter(
    model: HookedTransformer, joint: Joint, matrix: Float[Tensor, "source target"]
) -> Float[Tensor, "..."]:
    """Give a (source node, target node) matrix in the shape of the joint's parameter."""
    shape = model.get_parameter(joint.weight).shape
    if len(shape) == 2 or joint.target.name == "attn_out":
        return matrix.reshape(shape)
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


def interface_counts(
    model: HookedTransformer, channels: Mapping[Site, tuple[int, ...]]
) -> tuple[int, int]:
    """Count what touches kept nodes but is not an edge: interface weights and biases.

    The first number is the nonzero entries of W_E in the residual channels that kept nodes read and
    of W_U in those that they write; the second the nonzero biases of kept nodes. Position channels
    are no residual channels: no token writes them.
    """
    d_model = model.cfg.d_model
    reads: set[int] = set()
    writes: set[int] = set()
    for site, kept in channels.items():
        if site.name in ("attn_in", "mlp_in"):
            reads.update(channel for channel in kept if channel < d_model)
        if site.name in ("attn_out", "mlp_out"):
            writes.update(kept)
    n_in = int((model.embed.W_E.detach()[:, sorted(reads)] != 0).sum())
    n_out = int((model.unembed.W_U.detach()[sorted(writes)] != 0).sum())
    n_biases = 0
    for joint in site_map(model).joints:
        bias = model.get_parameter(joint.bias).detach().flatten()
        n_biases += int((bias[list(channels.get(joint.target, ()))] != 0).sum())
    return n_in + n_out, n_biases


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
    return digest.hexdigest()
