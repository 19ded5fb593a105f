"""SAEs on sparse models, by SAELens: splicing them in, feeding them, judging them.

SAELens 6 trains and evaluates SAEs on a `HookedSparseTransformer` as on any HookedTransformer, at
every site: sparsity lives in modules, so hook points show it and removing SAEs leaves it in force.
Here is what its users need beside it:

- `with_saes(model)` splices: the same parameters and masks in a `HookedSAETransformer`. Its class
  is `HookedSAESparseTransformer`, made when it is first asked for, so that importing this module
  does not import SAELens; `HookedSAESparseTransformer.load(folder)` works as well.
- `token_dataset(corpus.train, n_ctx)` feeds: a tokenised `datasets.Dataset` for SAELens' runners
  and stores.
- `evaluate_sae(model, sae, windows)` judges: L0, explained variance, loss recovered, dead latents.

Where SAELens would go on with a wrong number it is refused: an SAE at a hook point that does not
exist or never fires, an SAE of one head spliced into all of them, a copy with SAEs attached.
"""

import copy
import difflib
import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from tl_sparse.data import TokenSplit
from tl_sparse.model import HookedSparseTransformer

LEAST_COST = 1e-3
"""Nats per token that zeroing a hook point must cost for `SAEScores.loss_recovered` to mean
something; below it the ratio is rounding and noise."""

HEAD_HOOKS = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z")
"""Ends of the hook names whose activations are batch pos head_index d_head."""


@dataclass(frozen=True, kw_only=True)
class SAEScores:
    """What an SAE does to the model it is spliced into, over the same tokens throughout."""

    l0: float
    """Mean number of latents that are not zero at a token."""
    explained_variance: float
    """1 - squared error / variance, both summed over channels and tokens."""
    loss: float
    """Loss of the model as it is, in nats per token."""
    loss_spliced: float
    """Loss with the SAE's output in place of the activation."""
    loss_zeroed: float
    """Loss with zeros in place of the activation. With a bigram table the model still predicts by
    the table then, so this is not the loss of a model that knows nothing."""
    n_dead: int
    """Latents that are zero at every token."""

    @property
    def loss_recovered(self) -> float | None:
        """Give (zeroed - spliced) / (zeroed - whole) loss: SAELens' `ce_loss_score`.

        None where zeroing costs less than `LEAST_COST`: there is then nothing to recover, and the
        ratio would be any number at all.
        """
        cost = self.loss_zeroed - self.loss
        return (self.loss_zeroed - self.loss_spliced) / cost if cost >= LEAST_COST else None


def with_saes(model: HookedSparseTransformer) -> Any:
    """Give the model as a `HookedSAESparseTransformer`, into which SAEs can be spliced.

    It shares the parameters, buffers and masks of `model`, so training one trains both, and has
    hook points of its own, so SAEs and hooks on one are not on the other. Move both to a device.

    Examples:
        >>> import torch
        >>> cfg = dict(n_layers=1, d_model=32, n_ctx=16, d_head=8, d_vocab=20, act_fn="gelu",
        ...            normalization_type="RMSPre", device="cpu")
        >>> model = HookedSparseTransformer(cfg)
        >>> spliced, tokens = with_saes(model), torch.arange(10)[None]
        >>> torch.equal(spliced.run_with_saes(tokens, saes=[]), model(tokens))
        True
    """
    return sharing(model, _spliced_class())


def sharing(model: HookedSparseTransformer, cls: Any) -> Any:
    """Give a model of another class with the parameters, buffers and masks of a model."""
    cfg = copy.copy(model.cfg)
    cfg.init_weights = False  # no draws, and no reseeding of the global generator
    spliced = cls(
        cfg,
        tokenizer=model.tokenizer,
        move_to_device=False,
        sparsity=model.sparsity,
        attention=model.attention,
    )
    cfg.init_weights = model.cfg.init_weights
    spliced.weight_masks = model.weight_masks
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        owner, _, leaf = name.rpartition(".")
        setattr(spliced.get_submodule(owner), leaf, tensor)
    spliced.setup()
    return spliced.train(model.training)


class _Splicing:
    """What `HookedSAESparseTransformer` does otherwise than SAELens' `HookedSAETransformer`."""

    cfg: Any
    blocks: Any
    hook_dict: dict[str, HookPoint]
    acts_to_saes: dict[str, Any]
    check_hooks_to_add: Any
    get_submodule: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.blocks if not self.cfg.attn_only else ():
            # SAELens puts a closure over this very mlp there; a deep copy would go on calling it.
            if vars(block.mlp).pop("forward", None) is not None:
                block.mlp.register_forward_pre_hook(_through_hook_in)

    def add_sae(
        self,
        sae: Any,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> None:
        """Splice in an SAE or transcoder, as SAELens does, at hook points with heads too.

        An SAE trained on all heads of q, k, v or z together sees them flattened, as in training.

        Raises:
            ValueError: If its hook point is not given, does not exist or never fires, or if it is
                of one head.
        """
        name = _hook_name(sae)
        out = sae.cfg.metadata.hook_name_out or name
        for place in {name, out}:
            self._check_place(place)
        if out != name and name not in self.hook_dict:
            raise ValueError(
                f"{name} holds an SAE, and a transcoder can't read there. Call reset_saes first."
            )
        head = sae.cfg.metadata.hook_head_index
        if head is not None:
            raise ValueError(
                f"This SAE is of head {head} of {name}, and SAELens would apply it to every head. "
                f"Use run_with_hooks and change activation[:, :, {head}] only."
            )
        splicing: Any = super()
        splicing.add_sae(sae, use_error_term, exclude_special_tokens)
        width = self.cfg.n_heads * self.cfg.d_head
        flat = sae.cfg.d_in == width and not sae.hook_z_reshaping_mode
        if out == name and name.endswith(HEAD_HOOKS) and flat:
            wrapper = self.get_submodule(name)
            wrapper.register_forward_pre_hook(_flatten_heads)
            wrapper.register_forward_hook(partial(_split_heads, n_heads=self.cfg.n_heads))

    def _check_place(self, name: str) -> None:
        """Refuse a place where SAELens would warn, or say nothing, and run without the SAE."""
        taken = any(hook.startswith(f"{name}.hook_sae_") for hook in self.hook_dict)
        if name not in self.hook_dict and not taken:
            near = ", ".join(difflib.get_close_matches(name, self.hook_dict)) or "none"
            raise ValueError(f"The model has no hook point {name} for this SAE; near it: {near}.")
        try:
            self.check_hooks_to_add(None, name, None)
        except AssertionError as error:
            raise ValueError(f"{error}: the hook point never fires, nor would the SAE.") from None

    def __getstate__(self) -> dict[str, Any]:
        """Give what is copied and pickled; SAELens' wrappers and their closures can't be."""
        if self.acts_to_saes:
            raise ValueError("SAEs are attached, which can't be copied with the model: reset_saes.")
        return self.__dict__.copy()


def _hook_name(sae: Any) -> str:
    name = sae.cfg.metadata.hook_name
    if name is None:
        raise ValueError("The SAE does not say where it belongs. Set sae.cfg.metadata.hook_name.")
    return name


def _through_hook_in(mlp: nn.Module, args: tuple[Tensor]) -> Tensor:
    return mlp.hook_in(args[0])  # pyright: ignore[reportCallIssue]  # a module of SAELens' adding


def _flatten_heads(wrapper: nn.Module, args: tuple[Tensor]) -> Tensor:
    return args[0].flatten(-2)


def _split_heads(wrapper: nn.Module, args: Any, out: Tensor, *, n_heads: int) -> Tensor:
    return out.unflatten(-1, (n_heads, -1))


@cache
def _spliced_class() -> Any:
    """Make `HookedSAESparseTransformer`; it can be pickled by its name in this module."""
    from sae_lens import HookedSAETransformer

    bases = (_Splicing, HookedSAETransformer, HookedSparseTransformer)
    doc = "A HookedSparseTransformer into which SAELens' SAEs can be spliced; see `with_saes`."
    return type("HookedSAESparseTransformer", bases, {"__doc__": doc, "__module__": __name__})


def __getattr__(name: str) -> Any:
    """Make the class when it is first asked for."""
    if name == "HookedSAESparseTransformer":
        return _spliced_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def token_dataset(
    split: TokenSplit, n_ctx: int, *, n_windows: int | None = None, seed: int | None = 0
) -> Any:
    """Give windows of tokens as a `datasets.Dataset` for SAELens, which calls it pretokenised.

    Give it as `override_dataset` with `is_dataset_tokenized=True, context_size=n_ctx,
    prepend_bos=False` and `streaming=False`. SAELens reads the rows in order and mixes only a few
    of them, so they are shuffled here: `seed` gives the order of training (`TokenSplit.batch`),
    None windows spread evenly in the order of the text (`TokenSplit.windows`). None `n_windows`
    takes every window once.

    Raises:
        ValueError: If the split does not hold so many windows.
    """
    held = split.windows_per_epoch(n_ctx)
    n = held if n_windows is None else n_windows
    if not 1 <= n <= held:
        raise ValueError(
            f"The split holds 1 to {held:,} windows of {n_ctx}, got n_windows={n_windows}."
        )
    if seed is None:
        windows = split.windows(n_ctx, n)
    else:
        windows = split.batch(0, batch_size=n, n_ctx=n_ctx, seed=seed)
    return _dataset(windows)


def _dataset(windows: Int[Tensor, "window pos"]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"tokens": windows.cpu().numpy()})


def evaluate_sae(
    model: HookedTransformer, sae: Any, windows: Int[Tensor, "window pos"]
) -> SAEScores:
    """Score an SAE by SAELens' `run_evals` over windows of tokens, each of them seen once.

    The SAE is one for inference, as it would be used: `SAE.load_from_disk` of what a runner or
    `sae.save_inference_model` wrote.

    Raises:
        ValueError: If the SAE is a trainer's or names no hook point, or if zeroing its hook point
            does not change the loss.
    """
    from sae_lens import TrainingSAE
    from sae_lens.evals import run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    if isinstance(sae, TrainingSAE):
        raise ValueError(
            "This is the trainer's form of an SAE, which can choose latents over a whole batch. "
            "Call sae.save_inference_model(folder) and evaluate SAE.load_from_disk(folder)."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
        store, config = _store_and_config(model, sae, windows)
        try:
            metrics, latents = run_evals(
                sae, store, model, ActivationScaler(), config, exclude_special_tokens=False
            )
        except ZeroDivisionError:
            raise ValueError(
                f"Zeroing {_hook_name(sae)} does not change the loss: nothing that matters reads "
                "it, so there is no loss for an SAE to recover."
            ) from None
    losses = metrics["model_performance_preservation"]
    return SAEScores(
        l0=metrics["sparsity"]["l0"],
        explained_variance=metrics["reconstruction_quality"]["explained_variance"],
        loss=losses["ce_loss_without_sae"],
        loss_spliced=losses["ce_loss_with_sae"],
        loss_zeroed=losses["ce_loss_with_ablation"],
        n_dead=sum(density == 0 for density in latents["feature_density"]),
    )


def _store_and_config(
    model: HookedTransformer, sae: Any, windows: Int[Tensor, "window pos"]
) -> tuple[Any, Any]:
    """Have SAELens go over all windows once for the losses and once more for the rest.

    Its store goes on where the last batch ended and starts anew at the end, so the batches have to
    divide the windows.
    """
    from sae_lens import ActivationsStore
    from sae_lens.evals import EvalConfig

    name, n_windows = _hook_name(sae), len(windows)
    batch_size = max(size for size in range(1, 33) if n_windows % size == 0)
    store = ActivationsStore.from_config_multi_hook(
        model,
        dataset=_dataset(windows),
        hook_names=[name],
        hook_d_ins={name: sae.cfg.d_in},
        streaming=False,
        context_size=windows.shape[1],
        total_training_tokens=n_windows,  # compared with the number of rows
        prepend_bos=False,
    )
    config = EvalConfig(
        batch_size_prompts=batch_size,
        n_eval_reconstruction_batches=n_windows // batch_size,
        n_eval_sparsity_variance_batches=n_windows // batch_size,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    return store, config
