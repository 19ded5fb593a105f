"""Weight masks: which entries of each matrix may be nonzero.

A model has one boolean mask for each parameter that can be sparse. `project` chooses all of them by
magnitude at given densities and zeroes the rest of the parameters in place:

1. split the parameters into groups that are ranked together (each alone, or W_Q, W_K, W_V jointly),
2. in each group keep the k = floor(density x size) largest, min-alive guard first (`topk_mask`),
3. store the masks and multiply the parameters by them.

After it every mask has exactly k true entries, ties included, and every masked weight is 0.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tl_sparse.config import SparsityConfig
from tl_sparse.functional import kept_count, topk_mask


class MaskedParameter(NamedTuple):
    """How one parameter is made sparse."""

    name: str
    kind: str
    """ "weight", "embedding" or "bias": which of the three densities it follows."""
    alive_dim: int | None
    """The axis along which the min-alive guard counts; None where there is no guard."""


BLOCK_PARAMETERS = {
    "attn.W_Q": ("weight", 1),
    "attn.W_K": ("weight", 1),
    "attn.W_V": ("weight", 1),
    "attn.W_O": ("weight", 2),
    "mlp.W_in": ("weight", 0),
    "mlp.W_out": ("weight", 1),
    "attn.b_Q": ("bias", None),
    "attn.b_K": ("bias", None),
    "attn.b_V": ("bias", None),
    "attn.b_O": ("bias", None),
    "mlp.b_in": ("bias", None),
    "mlp.b_out": ("bias", None),
}
"""Kind and guarded axis of each block parameter, in TransformerLens' names and shapes. The guarded
axis is always d_model, on the reading side with the position channels: the inputs of a neuron or
q, k, v channel, the outputs of a neuron or head channel."""


def masked_parameters(model: nn.Module, n_layers: int) -> tuple[MaskedParameter, ...]:
    """List the parameters of a HookedTransformer that can be sparse, in a fixed order."""
    present = dict(model.named_parameters())
    wanted = [MaskedParameter("embed.W_E", "embedding", None)]
    for layer in range(n_layers):
        wanted += [
            MaskedParameter(f"blocks.{layer}.{name}", kind, dim)
            for name, (kind, dim) in BLOCK_PARAMETERS.items()
        ]
    wanted.append(MaskedParameter("unembed.W_U", "embedding", None))
    return tuple(parameter for parameter in wanted if parameter.name in present)


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give a model's parameters by name, each with one name.

    Raises:
        ValueError: If two names are one parameter, which would have two masks.
    """
    found: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in found:
            raise ValueError(
                f"{found[parameter]} and {name} are one parameter, and a sparse model has a mask "
                "for each and saves each. Give one of them a copy: "
                "torch.nn.Parameter(shared.detach().clone())."
            )
        found[parameter] = name
    return {name: parameter for parameter, name in found.items()}


class WeightMasks(nn.Module, Mapping[str, Tensor]):
    """The boolean masks of a model by parameter name: `model.weight_masks["blocks.0.mlp.W_in"]`.

    They are non-persistent buffers: they follow the model through `.to()`, deepcopy and pickling
    and leave the keys of its `state_dict` as TransformerLens' own.
    """

    def __init__(
        self, parameters: tuple[MaskedParameter, ...], shapes: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.specs = parameters
        for spec in parameters:
            mask = torch.ones(
                shapes[spec.name].shape, dtype=torch.bool, device=shapes[spec.name].device
            )
            self.register_buffer(_buffer_name(spec.name), mask, persistent=False)

    def __getitem__(self, name: str) -> Bool[Tensor, "*shape"]:
        """Give one parameter's mask; `KeyError` lists the names that there are."""
        try:
            return self._buffers[_buffer_name(name)]  # pyright: ignore[reportReturnType]
        except KeyError:
            raise KeyError(f"{name!r} has no mask; these have one: {', '.join(self)}.") from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the parameter names."""
        return (spec.name for spec in self.specs)

    def __len__(self) -> int:
        """Give the number of masks."""
        return len(self.specs)

    def __eq__(self, other: object) -> bool:
        """Compare by identity, as modules do."""
        return self is other

    def __hash__(self) -> int:
        """Hash by identity, as modules do."""
        return id(self)

    def __repr__(self) -> str:
        """One line: how many masks and the density over all."""
        kept = sum(int(mask.sum()) for mask in self.values())
        size = sum(mask.numel() for mask in self.values())
        return f"WeightMasks({len(self)} parameters, {kept:,} of {size:,} entries kept)"

    def set_(self, name: str, mask: Bool[Tensor, "*shape"]) -> None:
        """Replace one mask in place."""
        self[name].copy_(mask)

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Zero, in place, every masked entry of the model's parameters."""
        parameters = own_parameters(model)
        for name, mask in self.items():
            zero_outside_(parameters[name], mask)

    @torch.no_grad()
    def project_(
        self,
        model: nn.Module,
        sparsity: SparsityConfig,
        **densities: float,
    ) -> None:
        """Choose all masks by magnitude and zero the rest of the model's parameters, in place.

        The densities are those of `sparsity` unless others are given (while annealing), as
        `weight_density`, `embedding_density` and `bias_density`.
        """
        parameters = own_parameters(model)
        for group in groups(self.specs, sparsity.qkv_ranking):
            name = f"{group[0].kind}_density"
            density = densities[name] if name in densities else getattr(sparsity, name)
            if density == 1:
                for spec in group:
                    self[spec.name].fill_(True)
                continue
            tensors: list[Tensor] = [parameters[spec.name] for spec in group]
            masks = _choose(group, tensors, density, sparsity.min_alive)
            for spec, mask in zip(group, masks, strict=True):
                self.set_(spec.name, mask)
                zero_outside_(parameters[spec.name], mask)


_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@torch.no_grad()
def zero_outside_(weight: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> None:
    """Zero, in place, what a mask leaves out; also NaN, and to a zero without a sign.

    As `weight.masked_fill_(~mask, 0)`, and five times as fast on a CPU: the bits are multiplied.
    """
    weight.view(_INTEGERS[weight.element_size()]).mul_(mask.view(torch.uint8))


def groups(
    specs: tuple[MaskedParameter, ...], qkv_ranking: str
) -> list[tuple[MaskedParameter, ...]]:
    """Split parameters into the groups within which magnitudes are ranked."""
    found: dict[str, list[MaskedParameter]] = {}
    for spec in specs:
        key = spec.name
        if qkv_ranking == "joint" and key.endswith(("attn.W_Q", "attn.W_K", "attn.W_V")):
            key = key[: -len("W_Q")] + "W_QKV"
        found.setdefault(key, []).append(spec)
    return [tuple(group) for group in found.values()]


def n_kept(specs: tuple[MaskedParameter, ...], sizes: Mapping[str, int], density: float) -> int:
    """Give the number of entries that a group keeps at a density."""
    return kept_count(density, sum(sizes[spec.name] for spec in specs))


def kept_beyond_density(
    specs: tuple[MaskedParameter, ...], masks: Mapping[str, Tensor], sparsity: SparsityConfig
) -> dict[str, int]:
    """Give, for each group, how many entries its masks keep more than its density says.

    All are 0 after `project_`; positive while the density is annealed; negative where weights were
    zero when the masks were made from them, as in a released model.
    """
    gaps = {}
    for group in groups(specs, sparsity.qkv_ranking):
        sizes = {spec.name: masks[spec.name].numel() for spec in group}
        density = getattr(sparsity, f"{group[0].kind}_density")
        kept = sum(int(masks[spec.name].sum()) for spec in group)
        gaps[group[0].name] = kept - n_kept(group, sizes, density)
    return gaps


def _choose(
    group: tuple[MaskedParameter, ...], tensors: list[Tensor], density: float, min_alive: int
) -> list[Tensor]:
    sizes = {spec.name: tensor.numel() for spec, tensor in zip(group, tensors, strict=True)}
    k = n_kept(group, sizes, density)
    if len(group) == 1:
        dim = group[0].alive_dim
        guard = 0 if dim is None else min_alive
        return [topk_mask(tensors[0], k, min_alive=guard, alive_dim=dim or 0)]
    # W_Q, W_K and W_V have one shape, (head, inputs, d_head): ranked as one tensor of three.
    dim = group[0].alive_dim
    assert dim is not None
    mask = topk_mask(torch.stack(tensors), k, min_alive=min_alive, alive_dim=dim + 1)
    return list(mask)


def check_budget(
    specs: tuple[MaskedParameter, ...], model: nn.Module, sparsity: SparsityConfig
) -> None:
    """Check that the min-alive guard fits in the weight density and that no matrix ends up empty.

    Raises:
        ValueError: If the guard needs more entries than the density keeps, or a density keeps none
            of a matrix' entries.
    """
    parameters = dict(model.named_parameters())
    for group in groups(specs, sparsity.qkv_ranking):
        sizes = {spec.name: parameters[spec.name].numel() for spec in group}
        spec, density = group[0], getattr(sparsity, f"{group[0].kind}_density")
        k = n_kept(group, sizes, density)
        if k == 0 and spec.kind != "bias":
            raise ValueError(
                f"{spec.kind}_density={density} keeps none of the {sizes[spec.name]} entries of "
                f"{spec.name}. Raise it to at least {1 / sizes[spec.name]:.2g}."
            )
        if spec.alive_dim is None:
            continue
        length = parameters[spec.name].shape[spec.alive_dim]
        if sparsity.min_alive > length:
            raise ValueError(
                f"min_alive={sparsity.min_alive} can't be met: there are {length} weights into a "
                f"neuron or channel, or out of it, in {spec.name}. Lower min_alive."
            )
        needed = sum(sizes.values()) // length * sparsity.min_alive
        if needed > k:
            raise ValueError(
                f"min_alive={sparsity.min_alive} can't be met: it protects {needed} entries of "
                f"{spec.name}, but weight_density={density:g} keeps {k}. It needs weight_density "
                f">= min_alive / {length} = {sparsity.min_alive / length:.3g}."
            )


def _buffer_name(parameter: str) -> str:
    return parameter.replace(".", "/")  # torch forbids dots in buffer names
