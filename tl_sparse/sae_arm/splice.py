"""SAELens' SAEs in a model, their latents and their errors as its nodes.

`splice` puts a `Coder` (`tl_sparse.coders`) at each SAE's site, made of the SAE's own weights in
the type of the model: encoder, TopK, AbsTopK, ReLU or JumpReLU, decoder, and what the SAE leaves
out as one more node. The site map (`tl_sparse.sites`) knows coders, so that what knows a model by
its map alone runs on the result. Sites without an SAE keep their channels: queries, keys and values
always do, since a head's channels are few and an SAE over all heads would join them.

An SAE that belongs elsewhere, or does something that a coder does not, is refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tl_sparse.circuit import Circuit, Edge, Site
from tl_sparse.coders import Activation, Coder
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.sae_baseline import sharing
from tl_sparse.sites import CODER_PLACES, SiteInfo, model_hash, site_map

HASH = "tl_sparse_model_hash"
"""Where an SAE's metadata name the model that it was trained on."""

ACTIVATIONS: dict[str, Activation] = {
    "topk": "topk",
    "abstopk": "abstopk",
    "standard": "relu",
    "jumprelu": "jumprelu",  # what SAELens saves BatchTopK SAEs as, too
}
"""SAELens' architectures that a coder computes, by its name for them."""


class SplicedTransformer(HookedSparseTransformer):
    """A HookedSparseTransformer with SAEs at some of its sites; see `splice`."""

    @property
    def coders(self) -> dict[Site, Coder]:
        """The coders by site, in the order of the forward pass."""
        found = {}
        for layer, block in enumerate(self.blocks):
            for name, place in CODER_PLACES.items():
                if name.startswith("mlp") and self.cfg.attn_only:
                    continue
                module = block.get_submodule(place)
                if isinstance(module, Coder):
                    found[Site(layer, name)] = module
        return found

    def save(self, folder: str | Path) -> None:
        """Refuse: a model's folder has no place for SAEs.

        Raises:
            ValueError: Always; the model and the SAEs have files of their own.
        """
        raise ValueError(
            "A model with SAEs spliced in is not saved as one. Save the model that it was made of, "
            "keep the SAEs' own folders (train_saes, sae.save_model), and splice them again."
        )


def splice(
    model: HookedSparseTransformer,
    saes: Mapping[Any, Any] | Iterable[Any],
    *,
    errors: bool = True,
) -> SplicedTransformer:
    """Give the model with SAEs at the sites that they name, their latents being nodes.

    It shares the parameters of `model`, which stays as it is; the SAEs' weights are copied. With
    every node in it computes what `model` does, to rounding. Without `errors` it is SAELens' splice
    of reconstructions, and there are no nodes for errors.

    Raises:
        ValueError: If an SAE belongs to another place, width or model, is of one head, is a
            trainer's form, or has an architecture or a normalisation that a coder has not.
    """
    if not isinstance(model, HookedSparseTransformer) or isinstance(model, SplicedTransformer):
        raise ValueError(
            f"splice takes a HookedSparseTransformer without SAEs, got {type(model).__name__}."
        )
    some = list(saes.values()) if isinstance(saes, Mapping) else list(saes)
    if not some:
        raise ValueError("There is no SAE to splice in.")
    own_hash, coders = model_hash(model), {}
    for sae in some:
        info = _site_of(model, sae, own_hash)
        if info.site in coders:
            raise ValueError(f"Two SAEs are for {info.site}, and a site has one.")
        coders[info.site] = sae
    spliced = sharing(model, SplicedTransformer)
    for site, sae in coders.items():
        owner, _, leaf = f"blocks.{site.layer}.{CODER_PLACES[site.name]}".rpartition(".")
        own = spliced.get_submodule(owner)
        setattr(own, leaf, _coder(sae, model, getattr(own, leaf), errors=errors))
    spliced.setup()
    return spliced.train(model.training)


def edges_of_errors(circuit: Circuit, model: SplicedTransformer) -> list[Edge]:
    """Give the edges of a circuit that begin or end in an error.

    Each stands for as many weights as the site has channels, and more if both ends are errors, and
    is counted as one; so this belongs beside the number of edges.
    """
    coders = model.coders
    errors = {site: coder.n_latents for site, coder in coders.items() if coder.errors}
    return [
        edge
        for edge in circuit.edges
        if any(node.channel == errors.get(node.site) for node in (edge.source, edge.target))
    ]


def _site_of(model: HookedSparseTransformer, sae: Any, own_hash: str) -> SiteInfo:
    """Give the site that an SAE belongs to, if a coder can stand for it there."""
    _check_form(sae)
    metadata = sae.cfg.metadata
    name = metadata.hook_name
    places = {i.hook_name: i for i in site_map(model).sites if i.site.name in CODER_PLACES}
    if name not in places:
        raise ValueError(
            f"This SAE is of {name}, which is no site that takes one. There are: "
            f"{', '.join(places)}. Queries, keys and values keep their channels."
        )
    info = places[name]
    if metadata.hook_head_index is not None:
        raise ValueError(
            f"This SAE is of head {metadata.hook_head_index} of {name}, and a site takes one of "
            "all of its channels."
        )
    if sae.cfg.d_in != info.width:
        raise ValueError(
            f"The SAE for {name} has {sae.cfg.d_in} inputs, and this model has {info.width} "
            "channels there. It belongs to another model."
        )
    if metadata[HASH] not in (None, own_hash):
        raise ValueError(
            f"The SAE for {name} was trained on another model, or the weights have changed since. "
            "Train SAEs of this model: train_saes(model, corpus, folder)."
        )
    if info.site.name not in ("attn_in", "mlp_in"):
        density = model.sparsity.site_density(info.site.name)
        if density < 1:
            raise ValueError(
                f"AbsTopK at {info.site} stands between the weights and the SAE, so that there are "
                "no virtual weights. Splice SAEs into the dense control."
            )
    if info.site.name == "mlp_neuron" and model.cfg.is_layer_norm_activation():
        raise ValueError(f"cfg.act_fn={model.cfg.act_fn!r} mixes neurons; no SAE goes there.")
    return info


def _check_form(sae: Any) -> None:
    """Refuse what is no SAE for inference of an architecture that a coder computes."""
    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, SAE) or isinstance(sae, TrainingSAE):
        raise ValueError(
            f"splice takes SAELens' SAEs for inference, got {type(sae).__name__}. Of a trainer's, "
            "call save_inference_model(folder), then SAE.load_from_disk(folder)."
        )
    architecture = sae.cfg.architecture()
    if architecture not in ACTIVATIONS or sae.cfg.metadata.hook_name_out is not None:
        raise ValueError(
            f"A {architecture} can't be spliced in here. These can: {', '.join(ACTIVATIONS)}."
        )
    if sae.cfg.normalize_activations not in ("none", "expected_average_only_in"):
        raise ValueError(
            f"The SAE normalises each activation ({sae.cfg.normalize_activations}), so that its "
            "latents have no linear weights. Train one without."
        )
    if sae.cfg.reshape_activations != "none":
        raise ValueError("The SAE is of hook_z, which is no site. Take one of hook_attn_out.")


@torch.no_grad()
def _coder(sae: Any, model: HookedSparseTransformer, before: nn.Module, *, errors: bool) -> Coder:
    """Make a coder of an SAE, with what SAELens does to its input and its latents folded in."""
    like = next(model.parameters())
    encoder, decoder, decoder_bias, bias = (
        _copy(tensor, like) for tensor in (sae.W_enc, sae.W_dec, sae.b_dec, sae.b_enc)
    )
    if sae.cfg.apply_b_dec_to_input:
        bias = bias - decoder_bias @ encoder
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        norm = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * norm, bias * norm, decoder / norm[:, None]
    threshold = getattr(sae, "threshold", None)
    coder = Coder(
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=ACTIVATIONS[sae.cfg.architecture()],
        k=getattr(sae.cfg, "k", None),
        threshold=None if threshold is None else _copy(threshold, like),
        errors=errors,
        before=before,
    )
    return coder.requires_grad_(False)


def _copy(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.detach().to(like, copy=True)
