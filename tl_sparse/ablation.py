"""Running a model with only some of its nodes left in.

`references` measures the value that a node takes when it is out: by default its mean over the
training text, all positions alike (Gao et al. 2025, A.5). `zero_references` and the task's mean
(`pruning.task_references`) are constants too. Under `pair_references` and `resampled_references` a
node that is out takes its value on another prompt (`tl_sparse.resampling`). `gated` puts
x -> m x + (1 - m) reference on every site for the time of a `with` block, and `only_circuit` does
so for a circuit's nodes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Circuit, Site
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.coded_edges import by_entry, completed, widened
from tl_sparse.data import Corpus
from tl_sparse.resampling import check_same_shape, values_on, values_shown
from tl_sparse.selection import Selection, nonzero_weights
from tl_sparse.sites import (
    Joint,
    SiteInfo,
    SiteMap,
    as_parameter,
    coders_of,
    joint_bias,
    joint_entries,
    model_hash,
    seen_by_weights,
    site_map,
)


@dataclass(frozen=True)
class References:
    """The reference value of every node of a model."""

    values: Mapping[Site, Float[Tensor, " _"]] = field(repr=False)
    """One number for each node, and for each entry of an SAE's error, by site; none where nodes
    take their values on another prompt."""
    ablation: str
    """What they are: "corpus_mean", "zero", "task_mean", "resample_pair" or "resample_corpus"."""
    model_hash: str
    """The model that they were measured on."""
    provenance: Mapping[str, Any]
    """Tokens and corpus that they were measured on."""
    windows: Int[Tensor, "window pos"] | None = field(default=None, repr=False)
    """The other prompts of "resample_corpus", in a random order."""

    @property
    def resamples(self) -> bool:
        """Whether a node that is out takes its value on another prompt instead of a constant."""
        return self.ablation.startswith("resample")

    def check(self, model: HookedTransformer) -> None:
        """Check that they belong to a model.

        Raises:
            ValueError: If they were measured on another model.
        """
        if model_hash(model) != self.model_hash:
            raise ValueError(
                "These reference values were measured on another model, or its weights have "
                "changed since. Measure them again: references(model, corpus)."
            )


@torch.no_grad()
def references(
    model: HookedTransformer,
    corpus: Corpus,
    n_tokens: int = 2**20,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> References:
    """Measure the mean of every node over about `n_tokens` tokens of the training text.

    Raises:
        ValueError: If an activation is NaN or infinite.
    """
    sites = site_map(model, final=True)
    n_ctx = model.cfg.n_ctx
    n_windows = max(1, min(n_tokens, corpus.train.n_tokens) // n_ctx)
    windows = corpus.train.windows(n_ctx, n_windows)
    device = next(model.parameters()).device
    sums = {
        info.site: torch.zeros(info.n_entries, dtype=torch.float64, device=device)
        for info in sites.sites
    }
    # A hook may see a token several times: a stock model's norm runs for each of q, k and v, and
    # with use_split_qkv_input a read has a copy for each head.
    rows = dict.fromkeys(sums, 0)
    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
        (info.hook_name, partial(_add_to, sums, rows, info)) for info in sites.sites
    ]
    count = 0
    with model.hooks(fwd_hooks=hooks), fast_attention(model):
        for batch in tqdm(windows.split(batch_size), desc="references", disable=not progress):
            model(batch.to(device), return_type=None)
            count += batch.numel()
    means = {site: (total / rows[site]).to(model.cfg.dtype) for site, total in sums.items()}
    for site, mean in means.items():
        if not torch.isfinite(mean).all():
            raise ValueError(f"The activations at {site} have NaN or infinite values.")
    provenance = {"n_tokens": count, "corpus": corpus.hash}
    return References(means, "corpus_mean", model_hash(model), provenance)


def zero_references(model: HookedTransformer) -> References:
    """Give references that are all zero (zero ablation)."""
    device = next(model.parameters()).device
    zeros = {
        info.site: torch.zeros(info.n_entries, dtype=model.cfg.dtype, device=device)
        for info in site_map(model, final=True).sites
    }
    return References(zeros, "zero", model_hash(model), {})


def pair_references(model: HookedTransformer) -> References:
    """Let a node that is out take its value on the other prompt of its pair.

    The two prompts of each pair need equally many tokens. What is equal in both stays in place, and
    the circuit need not contain it (Gao et al. 2025, App. E); what differs pulls towards the other
    answer, where a mean is neutral.
    """
    return References({}, "resample_pair", model_hash(model), {})


def resampled_references(
    model: HookedTransformer, corpus: Corpus, *, n_windows: int = 1024, seed: int = 0
) -> References:
    """Let a node that is out take its value on a random window of the training text.

    While masks are learned each prompt meets another window at every step; when a selection is
    judged, always the same one. `n_windows` windows are drawn, fewer where the text is short.
    """
    n_ctx = model.cfg.n_ctx
    n = min(n_windows, corpus.train.windows_per_epoch(n_ctx))
    windows = corpus.train.batch(0, batch_size=n, n_ctx=n_ctx, seed=seed)
    provenance = {"n_windows": n, "corpus": corpus.hash, "seed": seed}
    return References({}, "resample_corpus", model_hash(model), provenance, windows)


def _add_to(
    sums: dict[Site, Tensor], rows: dict[Site, int], info: SiteInfo, activation: Tensor, hook: Any
) -> None:
    flat = activation.detach().reshape(-1, info.n_entries)
    sums[info.site] += flat.sum(0, dtype=torch.float64)
    rows[info.site] += len(flat)


def fast_attention(model: HookedTransformer) -> Any:
    """Use a sparse model's fused attention inside a `with` block; a stock model stays as it is."""
    using = getattr(model, "using_attention", None)
    return nullcontext() if using is None else using("auto")


@contextmanager
def gated(
    model: HookedTransformer,
    sites: SiteMap,
    gates: Mapping[Site, Float[Tensor, " _"]],
    values: Mapping[Site, Float[Tensor, "... _"]],
    edges: Mapping[Joint, Float[Tensor, "source target"]] | None = None,
    learned: Mapping[Joint, Tensor] | None = None,
) -> Iterator[None]:
    """Let each site in `gates` pass gate x activation + (1 - gate) x value inside a `with` block.

    Gates are 1 for a node that stays and 0 for one that is out; gradients reach them. `edges` has a
    gate for each weight of a joint: 1 for one that stays, 0 for one through which the target sees
    the source's value instead. Values are one number for a node, or one for each prompt and
    position too ([batch, pos, node]); then the model can be run on that shape of tokens alone.
    `learned` says which gates of edges are to get a gradient: a saving between an MLP's reads and
    latents of its neurons, where all between nodes that are in get one if it does not say.

    Raises:
        ValueError: If edges are cut through W_O in a stock model with attention sinks.
    """
    cut = _cut(model, sites, completed(model, sites, edges or {}), values, gates, learned)
    with cut, _nodes_gated(model, sites, gates, values), fast_attention(model):
        yield


@contextmanager
def _nodes_gated(
    model: HookedTransformer,
    sites: SiteMap,
    gates: Mapping[Site, Tensor],
    values: Mapping[Site, Tensor],
) -> Iterator[None]:
    """Gate nodes by torch's own hooks: `model.reset_hooks()` inside the block leaves them."""
    handles = []
    try:
        for site, gate in gates.items():
            info = sites[site]
            value = values[site].to(gate.device, gate.dtype)
            value = value.reshape(*value.shape[:-1], *info.shape)
            hook = partial(_gate, info.spread(gate).reshape(info.shape), value)
            handles.append(model.hook_dict[info.hook_name].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gate(gate: Tensor, value: Tensor, module: Any, inputs: Any, activation: Tensor) -> Tensor:
    if value.ndim > gate.ndim:
        check_same_shape(activation, value)
    like = activation.dtype  # the host's norms give float32 in a model of half precision
    return torch.lerp(value.to(like), activation, gate.to(like))


@contextmanager
def _cut(
    model: HookedTransformer,
    sites: SiteMap,
    edges: Mapping[Joint, Tensor],
    values: Mapping[Site, Tensor],
    nodes: Mapping[Site, Tensor],
    learned: Mapping[Joint, Tensor] | None,
) -> Iterator[None]:
    """Cut weights: W becomes W x gate, and what the sources' values give through the rest a bias.

    A gated MLP has no bias before its product; `values_shown` adds it there, to both factors.
    Through W_O a value arrives times the sum of a row of the pattern, which sinks make less than 1:
    there the bias is one for each head and goes into `row_sum_bias`. Values that differ from
    position to position are no bias: `values_shown` adds them. Between sites with coders W is the
    virtual weight, and `widened` lets the model run on nodes there.
    """
    replaced: dict[str, Tensor] = {}
    row_biases: list[tuple[Any, Tensor]] = []
    by_position: dict[Joint, Tensor] = {}
    parts = [(part, gate) for whole, gate in edges.items() for part in whole.parts()]
    for joint, gate in parts:
        matrix = joint_entries(model, joint)
        kept = matrix if joint.nonlinear else matrix * by_entry(sites, joint, gate)
        replaced[joint.weight] = as_parameter(model, joint, kept)
        bias = joint_bias(model, joint)
        if joint.source in coders_of(model) or joint.target in coders_of(model):
            replaced[joint.bias] = _like_bias(model, joint, bias)
        if joint.nonlinear:
            continue
        gated_mlp = model.cfg.gated_mlp and joint.target.name == "mlp_neuron"
        if values[joint.source].ndim > 1 or gated_mlp:
            by_position[joint] = matrix - kept
            continue
        seen = joint.by_row(seen_by_weights(model, joint.source, values[joint.source].to(kept)))
        shift = seen[:, None] * (matrix - kept)
        if joint.target.name == "attn_out" and model.cfg.use_attention_sinks:
            attention: Any = model.blocks[joint.target.layer].attn
            if not hasattr(attention, "row_sum_bias"):
                raise ValueError(
                    "Edges through W_O can't be cut in a stock HookedTransformer with attention "
                    "sinks: its patterns do not sum to 1. Load it as a HookedSparseTransformer."
                )
            by_head = shift.unflatten(0, (model.cfg.n_heads, -1)).sum(1)
            row_biases.append((attention, by_head))
        else:
            replaced[joint.bias] = _like_bias(model, joint, bias + shift.sum(0))
    shown = values_shown(model, by_position, values)
    wide = widened(model, sites, edges, values, nodes, learned or {})
    with _parameters_replaced(model, replaced), shown, wide:
        try:
            for attention, by_head in row_biases:
                attention.row_sum_bias = by_head
            yield
        finally:
            for attention, _ in row_biases:
                attention.row_sum_bias = None


def _like_bias(model: HookedTransformer, joint: Joint, bias: Tensor) -> Tensor:
    """Give a bias in the shape of the joint's own; one over the entries of a coder is longer."""
    own = model.get_parameter(joint.bias)
    return bias.view_as(own) if own.ndim > 1 else bias


@contextmanager
def _parameters_replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put tensors in the place of parameters; gradients flow into them."""
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            before.append((module, module._parameters))
            module._parameters = {k: v for k, v in module._parameters.items() if k != leaf}
            module.__dict__[leaf] = tensor
        yield
    finally:
        for module, parameters in reversed(before):
            module._parameters = parameters
        for name in tensors:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner).__dict__.pop(leaf, None)


@contextmanager
def only_circuit(
    model: HookedTransformer, circuit: Circuit, other: Int[Tensor, "batch pos"] | None = None
) -> Iterator[None]:
    """Run a model with only a circuit left in, inside a `with` block.

    All of the model's hooks stay live, `model.reset_hooks()` leaves the circuit in place, and
    everything is undone at the end, even by an exception. Meanwhile cut parameters stand in the
    place of the model's own: what would write these down, `save`, `state_dict` and copies, and
    what would change them is refused.
    A circuit found under a resampling ablation takes the values of what is out from a run on
    `other` prompts, as tokens; inside the block the model is run on tokens of that shape.

    Raises:
        ValueError: If the circuit was found in another model, or does not fit it; if `other` lacks
            under resampling, or is given without; if the model is running a circuit already.
    """
    if "state_dict" in vars(model):
        _refuse("only_circuit")
    check_circuit(circuit, model, resampling=True, latents=True, bundles=True)
    if circuit.resamples != (other is not None):
        raise ValueError(
            f"The circuit {circuit.task} was found under the ablation {circuit.ablation!r}: "
            + (
                "what is out takes its value on another prompt. Give those prompts, as tokens: "
                "only_circuit(model, circuit, other=tokens)."
                if other is None
                else "what is out has constant values of its own, and other prompts have no part "
                "in it. Leave `other` out."
            )
        )
    sites = site_map(model, final=any(n.site.name == "final_in" for n in circuit.nodes))
    like = next(model.parameters()).detach()
    selection = select_circuit(circuit, sites, like.device)
    if other is not None:
        values: Mapping[Site, Tensor] = values_on(model, sites, other.to(like.device))
    else:
        values = {
            info.site: torch.tensor(circuit.references[info.site], dtype=like.dtype)
            for info in sites.sites
        }
    edges = selection.edge_gates(like, nonzero_weights(model, sites))
    running = gated(model, sites, selection.node_gates(like), values, edges)
    with running, _not_written_down(model):
        yield


_REFUSED = ("state_dict", "load_state_dict", "save", "project_", "__deepcopy__")
"""Methods that take the model's parameters for its own."""


@contextmanager
def _not_written_down(model: HookedTransformer) -> Iterator[None]:
    """Refuse, in a `with` block, what would take a circuit's parameters for the model's own."""
    names = [name for name in _REFUSED if name == "__deepcopy__" or hasattr(model, name)]
    vars(model).update({name: partial(_refuse, name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del vars(model)[name]


def _refuse(name: str, *args: Any, **kwargs: Any) -> NoReturn:
    what = "a copy" if name == "__deepcopy__" else name
    raise ValueError(
        f"The model is running a circuit, whose cut parameters stand in the place of its own, and "
        f"{what} would take them for the model's. Leave the block of only_circuit first."
    )


def select_circuit(circuit: Circuit, sites: SiteMap, device: torch.device) -> Selection:
    """Give a circuit as masks; nodes that its edges leave without any in-edge are dropped."""
    nodes = {}
    for info in sites.sites:
        kept = torch.zeros(info.width, dtype=torch.bool, device=device)
        kept[list(circuit.channels(info.site))] = True
        nodes[info.site] = kept
    by_ends = {(joint.source, joint.target): joint for joint in sites.joints}
    edges = {
        joint: torch.zeros(
            sites[joint.source].width, sites[joint.target].width, dtype=torch.bool, device=device
        )
        for joint in sites.joints
    }
    for edge in circuit.edges:
        joint = by_ends[edge.source.site, edge.target.site]
        edges[joint][edge.source.channel, edge.target.channel] = True
    return Selection(nodes, edges, tie_qk=circuit.tie_qk).settled()
