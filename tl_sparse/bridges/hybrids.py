"""Two models that can take over from one another in the middle of a forward pass.

A *hybrid* runs one model up to a residual site, sends the stream through that site's bridge, and
goes on in the other (Gao et al. 2025, A.3). Before a layer TransformerLens itself can go on, by
`start_at_layer`. In a layer's middle it can't, so there the layer is entered at its beginning with
a hook on `hook_resid_mid` that puts the stream in place: what attention made of the input is thrown
away, and no gradient is made for it. It costs that attention's forward pass, and works in every
block that has the hook point, of TransformerLens or of ours.

The bigram table of a model belongs to its logits: a hybrid that ends in the sparse model has the
sparse model's table and not the dense one's, and the other way round.
"""

from functools import partial
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.bridges.modules import Bridges
from tl_sparse.rules import checks_itself, choice


def site_hooks(model: HookedTransformer) -> tuple[str, ...]:
    """Give the hook points of a model's residual sites, in the order of the forward pass."""
    ends = ("hook_resid_pre", "hook_resid_mid")
    return tuple(f"blocks.{layer}.{end}" for layer in range(model.cfg.n_layers) for end in ends)


def as_normed(
    model: HookedTransformer, x: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Give what a model's norms scale: LayerNorm takes the mean over channels away first."""
    centres = model.cfg.normalization_type in ("LN", "LNPre")
    return x - x.mean(-1, keepdim=True) if centres else x


def run_with_residuals(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos d_vocab"], list[Float[Tensor, "batch pos d_model"]]]:
    """Run a model and give its logits and the residual stream at each site, gradients and all.

    Raises:
        ValueError: If the model has no stream between attention and MLP.
    """
    _check_stream("given", model)
    names, kept = site_hooks(model), {}
    with model.hooks(fwd_hooks=[(name, partial(_keep, kept)) for name in names]):
        logits = model(tokens)
    return logits, [kept[name] for name in names]


def run_from(
    model: HookedTransformer,
    site: int,
    resid: Float[Tensor, "batch pos d_model"],
    tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d_vocab"]:
    """Run a model from a site on, with a residual stream that is given, and give the logits.

    The tokens are those of the stream's positions, for a bigram table.
    """
    layer, in_middle = divmod(site, 2)
    if not in_middle:
        return model(resid, start_at_layer=layer, tokens=tokens)
    hook = (site_hooks(model)[site], partial(_put, resid))
    with model.hooks(fwd_hooks=[hook]):
        return model(resid.detach(), start_at_layer=layer, tokens=tokens)


@checks_itself
def hybrid_logits(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    site: int,
    tokens: Int[Tensor, "batch pos"],
    *,
    into: Literal["sparse", "dense"],
) -> Float[Tensor, "batch pos d_vocab"]:
    """Run one model up to a site, cross its bridge, and give the logits of the other.

    `into="sparse"` begins in the dense model and goes on in the sparse one.

    Raises:
        ValueError: If the bridges do not join the two, or there is no such site.
    """
    check_models(dense, sparse)
    bridges.check(dense, sparse)
    choice("sparse", "dense").check("into", into)
    if not 0 <= site < len(bridges):
        raise ValueError(f"The sites are 0 to {len(bridges) - 1}, two in each layer; got {site}.")
    if into == "sparse":
        _, residuals = run_with_residuals(dense, tokens)
        return run_from(sparse, site, bridges[site].encode(residuals[site]), tokens)
    _, residuals = run_with_residuals(sparse, tokens)
    return run_from(dense, site, bridges[site].decode(residuals[site]), tokens)


def _keep(kept: dict[str, Tensor], activation: Tensor, hook: Any) -> None:
    kept[hook.name] = activation


def _put(resid: Tensor, activation: Tensor, hook: Any) -> Tensor:
    return resid


def check_models(dense: HookedTransformer, sparse: HookedTransformer) -> None:
    """Check that two models can be joined by bridges.

    Raises:
        ValueError: If depth, vocabulary, device or precision differ, or a model has no residual
            stream between attention and MLP.
    """
    if dense is sparse:
        raise ValueError("The dense and the sparse model are one and the same. Give two models.")
    for what, model in (("dense", dense), ("sparse", sparse)):
        _check_model(what, model)
    if dense.cfg.n_layers != sparse.cfg.n_layers:
        raise ValueError(
            "Bridges join models of equal depth, site by site; the dense model has "
            f"{dense.cfg.n_layers} layers, the sparse one {sparse.cfg.n_layers}."
        )
    _check_vocabularies(dense, sparse)
    parameters = next(dense.parameters()), next(sparse.parameters())
    for what, a, b in (
        ("on one device", *(p.device for p in parameters)),
        ("of one precision", *(p.dtype for p in parameters)),
    ):
        if a != b:
            raise ValueError(
                f"Both models have to be {what}; the dense one has {a}, the sparse one {b}. Move "
                "one with .to(...)."
            )


def _check_stream(what: str, model: HookedTransformer) -> None:
    missing = [name for name in site_hooks(model) if name not in model.hook_dict]
    if missing:
        raise ValueError(
            f"The {what} model has no hook point {missing[0]}: it has no MLPs, or they run beside "
            "attention, so there is no residual stream between the two. Bridges stand before each "
            "sublayer and need one."
        )


def _check_model(what: str, model: HookedTransformer) -> None:
    _check_stream(what, model)
    if model.cfg.n_devices > 1:
        raise ValueError(
            f"The {what} model is spread over {model.cfg.n_devices} devices, and a hybrid runs on "
            "one. Load it with n_devices=1."
        )
    if model.cfg.positional_embedding_type == "shortformer":
        raise ValueError(
            f"The {what} model adds its positions to queries and keys (shortformer), and "
            "start_at_layer leaves them out, so that its hybrids would have none."
        )


def _check_vocabularies(dense: HookedTransformer, sparse: HookedTransformer) -> None:
    for name in ("d_vocab", "d_vocab_out"):
        a, b = getattr(dense.cfg, name), getattr(sparse.cfg, name)
        if a != b:
            raise ValueError(
                f"Both models need the same vocabulary; {name} is {a} in the dense model and {b} in"
                " the sparse one. Build the sparse model with the dense one's tokenizer."
            )
    if dense.tokenizer is not None and sparse.tokenizer is not None:
        a, b = dense.tokenizer.get_vocab(), sparse.tokenizer.get_vocab()
        differing = sorted(set(a.items()) ^ set(b.items()))
        if differing:
            raise ValueError(
                "Both models need the same vocabulary; their tokenizers differ, for one in the "
                f"token {differing[0][0]!r}. Build the sparse model with the dense one's tokenizer."
            )
