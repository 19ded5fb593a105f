"""`HookedSparseTransformer`: construction, masks, the forward pass."""

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.HookedTransformer import Output
from transformer_lens.utilities.defaults_utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults

from tl_sparse.config import SparsityConfig
from tl_sparse.layers import BigramTable, PositionChannels
from tl_sparse.masks import WeightMasks, check_budget, masked_parameters
from tl_sparse.model.blocks import (
    AttentionPath,
    SparseAttention,
    SparseMLP,
    SparseTransformerBlock,
)
from tl_sparse.model.cache import SparseActivationCache
from tl_sparse.model.checks import check_arguments, resolve_config
from tl_sparse.model.paths import ChoosingTransformer
from tl_sparse.model.positions import PositionedTransformer
from tl_sparse.model.processing import ProcessedTransformer
from tl_sparse.model.storage import StoredTransformer
from tl_sparse.products import Products
from tl_sparse.rules import checks_itself
from tl_sparse.summary import ModelSummary, one_line, summarize

_DIRECT_PATHS = "transformer_lens.tools.analysis.direct_path_patching"


class HookedSparseTransformer(
    StoredTransformer, ProcessedTransformer, PositionedTransformer, ChoosingTransformer
):
    """A HookedTransformer whose weights and activations can be sparse.

    `sparsity` says what is sparse; without it the model is TransformerLens' own. `attention` is
    "eager" (TransformerLens' computation, exact), "fused" (never makes the scores; refuses where a
    hook needs them) or "auto" (fused wherever nobody looks at the scores); by default "eager" when
    nothing is sparse and "auto" otherwise. `cfg.positional_embedding_type="none"` switches
    positions off: W_pos is zero and frozen; position channels can then stand in for them.

    Raises:
        ValueError: If the sparsity can't be met in this shape, or the shape is not supported.

    Examples:
        >>> cfg = dict(n_layers=1, d_model=32, n_ctx=16, d_head=8, d_vocab=20, act_fn="gelu",
        ...            normalization_type="RMSPre", use_attention_sinks=True, device="cpu")
        >>> model = HookedSparseTransformer(cfg, sparsity=SparsityConfig(weight_density=1 / 16))
        >>> int((model.W_in != 0).sum()), model(torch.zeros(1, 4, dtype=torch.long)).shape
        (256, torch.Size([1, 4, 20]))
    """

    @checks_itself
    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Literal["left", "right"] | None = None,
        *,
        sparsity: SparsityConfig | None = None,
        attention: AttentionPath | None = None,
    ) -> None:
        check_arguments(sparsity=sparsity, attention=attention, tokenizer=tokenizer)
        check_arguments(move_to_device=move_to_device, default_padding_side=default_padding_side)
        sparsity = SparsityConfig() if sparsity is None else sparsity
        cfg = resolve_config(cfg, tokenizer, sparsity)
        self._init_host(cfg, tokenizer, default_padding_side)
        self.sparsity = sparsity
        for layer in range(cfg.n_layers):
            self.blocks[layer] = SparseTransformerBlock(cfg, layer, sparsity)
        if sparsity.bigram_table:
            self.bigram = BigramTable(cfg.d_vocab, cfg.d_vocab_out, cfg.dtype)
        if sparsity.position_channels:
            self.positions = PositionChannels(cfg.n_ctx, sparsity.position_channels, cfg.dtype)
        self._generated: list[Tensor] | None = None
        self.set_attention(attention or ("eager" if sparsity.is_dense else "auto"))
        self.products = Products("dense" if sparsity.weight_density == 1 else "auto")
        for block in self.blocks:
            for part in (block.attn, getattr(block, "mlp", None)):
                if isinstance(part, SparseAttention | SparseMLP):
                    part.products = self.products
        specs = masked_parameters(self, cfg.n_layers)
        check_budget(specs, self, sparsity)
        self.weight_masks = WeightMasks(specs, dict(self.named_parameters()))
        if cfg.positional_embedding_type in ("none", "alibi"):  # the host never reads it
            self.pos_embed.W_pos.requires_grad_(False)
        if cfg.positional_embedding_type == "none":
            self.pos_embed.W_pos.zero_()
        if cfg.init_weights:
            self.init_weights()
        if move_to_device:
            self.move_model_modules_to_device()
        self.setup()

    def _init_host(self, cfg: HookedTransformerConfig, tokenizer: Any, padding_side: Any) -> None:
        """Run the host's constructor, without drawing weights and without its warning."""
        wants_weights, cfg.init_weights = cfg.init_weights, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                super().__init__(cfg, tokenizer, False, padding_side)
        except OSError as error:
            raise ValueError(
                f"No tokenizer could be read by cfg.tokenizer_name={cfg.tokenizer_name!r}. Leave "
                "the name out and pass tokenizer=..., or set d_vocab and pass tokens."
            ) from error
        finally:
            cfg.init_weights = wants_weights

    # -- weights and masks --------------------------------------------------------------------

    def init_weights(self) -> None:
        """Draw all weights as TransformerLens does, then enforce the densities, in place."""
        super().init_weights()
        if self.cfg.positional_embedding_type == "none":
            with torch.no_grad():
                self.pos_embed.W_pos.zero_()
        if self.sparsity.bigram_table:
            self.bigram.init_weights()
        if self.sparsity.position_channels:
            self.positions.init_weights()
        self.project_()

    def project_(self, **densities: float) -> None:
        """Choose the masks anew by magnitude and zero all other weights, in place.

        The densities are the model's own; `weight_density`, `embedding_density` and `bias_density`
        override them (while annealing).
        """
        self.weight_masks.project_(self, self.sparsity, **densities)

    @torch.no_grad()
    def reopen_(self, seed: int) -> None:
        """Give every masked weight a fresh draw of the initial distribution, in place.

        The model is then dense, as annealing needs it at its start; unmasked weights stay.
        """
        kept = {name: p.clone() for name, p in self.named_parameters()}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().init_weights()
        for name, parameter in self.named_parameters():
            stays = self.weight_masks[name] if name in self.weight_masks else torch.tensor(True)
            parameter.copy_(torch.where(stays.to(parameter.device), kept[name], parameter))
        self.project_(weight_density=1.0, embedding_density=1.0, bias_density=1.0)

    def apply_masks_(self) -> None:
        """Zero every masked weight, in place, leaving the masks as they are."""
        self.weight_masks.apply_(self)

    @contextmanager
    def frozen_masks(self) -> Iterator[None]:
        """Zero the gradients of masked weights inside a `with` block.

        Whatever optimiser then steps, a masked weight stays zero: for training loops other than
        `train`, which has `regrow=False` for the same.
        """

        def mask_gradient(parameter: Tensor, mask: Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad.masked_fill_(~mask, 0)

        parameters = dict(self.named_parameters())
        handles = [
            parameters[name].register_post_accumulate_grad_hook(
                partial(mask_gradient, mask=mask.clone())
            )
            for name, mask in self.weight_masks.items()
            if parameters[name].requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def move_model_modules_to_device(self) -> None:
        """Move to `cfg.device`; override: the host's list lacks the masks and the bigram table."""
        super().move_model_modules_to_device()
        device = self.embed.W_E.device
        self.weight_masks.to(device)
        if self.sparsity.bigram_table:
            self.bigram.to(device)
        if self.sparsity.position_channels:
            self.positions.to(device)

    # -- running ------------------------------------------------------------------------------

    def get_residual(self, embed, *args: Any, **kwargs: Any) -> Any:
        """Override: the host knows no model without positions, and miscounts them in `generate`.

        Without a tokenizer its `generate` passes the whole sequence and the length of the cache but
        no attention mask, and would number the positions from that length on. Position channels go
        to the blocks in the slot of Shortformer's positions, which the host passes on everywhere.
        """
        wanted = inspect.signature(HookedTransformer.get_residual)
        bound = wanted.bind(self, embed, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if given["pos_offset"] and given["tokens"] is None and given["attention_mask"] is None:
            given["attention_mask"] = torch.ones(embed.shape[:2], device=embed.device).long()
        if self.cfg.positional_embedding_type != "none":
            return super().get_residual(*bound.args[1:], **bound.kwargs)
        positions = None
        if self.sparsity.position_channels:
            positions = self.positions_of(embed, given["pos_offset"], given["attention_mask"])
        return (embed, positions) if given["return_shortformer_pos_embed"] else embed

    def input_to_embed(self, input, *args: Any, **kwargs: Any) -> Any:
        """Override: with a key-value cache and no tokenizer nothing is padding, so say so."""
        wanted = inspect.signature(HookedTransformer.input_to_embed)
        bound = wanted.bind(self, input, *args, **kwargs)
        given = bound.arguments
        cached = given.get("past_kv_cache") is not None and given.get("attention_mask") is None
        if cached and self.tokenizer is None and isinstance(input, Tensor):
            given["attention_mask"] = torch.ones_like(input if input.ndim > 1 else input[None])
        return super().input_to_embed(*bound.args[1:], **bound.kwargs)

    def forward(
        self,
        input,
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        loss_per_token: bool = False,
        prepend_bos=USE_DEFAULT_VALUE,
        padding_side=USE_DEFAULT_VALUE,
        start_at_layer=None,
        tokens=None,
        shortformer_pos_embed=None,
        attention_mask=None,
        stop_at_layer=None,
        past_kv_cache=None,
    ) -> Any:
        """Run the model as the host does; the bigram table is added to the logits.

        With a bigram table, `start_at_layer` needs `tokens` for logits too, not only for a loss.

        Raises:
            ValueError: If the table needs tokens that were not given.
        """
        started = start_at_layer is not None and shortformer_pos_embed is None
        if started and self.sparsity.position_channels:
            n_before = self.get_pos_offset(past_kv_cache, len(input))
            shortformer_pos_embed = self.positions_of(input, n_before, attention_mask)
        rest: dict[str, Any] = {
            "shortformer_pos_embed": shortformer_pos_embed,
            "attention_mask": attention_mask,
            "stop_at_layer": stop_at_layer,
            "past_kv_cache": past_kv_cache,
            "start_at_layer": start_at_layer,
            "tokens": tokens,
            "prepend_bos": prepend_bos,
            "padding_side": padding_side,
        }
        if not self.sparsity.bigram_table or return_type is None or stop_at_layer is not None:
            return super().forward(input, return_type, loss_per_token, **rest)
        if start_at_layer is None:
            with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
                embedded = self.input_to_embed(
                    input, prepend_bos, padding_side, attention_mask, past_kv_cache
                )
            input, tokens, rest["shortformer_pos_embed"], rest["attention_mask"] = embedded
            rest["start_at_layer"] = 0
        logits = super().forward(input, "logits", **rest)
        tokens = self._tokens_of(logits, tokens)
        logits = logits + self.bigram(tokens)
        if return_type == "logits":
            return logits
        loss = self.loss_fn(logits, tokens, rest["attention_mask"], per_token=loss_per_token)
        return loss if return_type == "loss" else Output(logits, loss)

    def _tokens_of(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Give the tokens whose rows of the table belong to the logits."""
        if tokens is None and self._generated:
            tokens = torch.cat(self._generated, dim=1)[:, -logits.shape[1] :]
        if tokens is None or tokens.shape[-1] != logits.shape[1]:
            given = "none" if tokens is None else f"{tokens.shape[-1]} for {logits.shape[1]}"
            raise ValueError(
                "This model adds a bigram table to the logits, so it needs the token of every "
                f"position; it was given {given}. Pass tokens=... beside start_at_layer; generate "
                "from tokens or text, not from embeddings."
            )
        return tokens.to(logits.device)

    def run_with_cache(
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run with a cache as the host does; override: the host's own is not exact under AbsTopK.

        The cache is a `SparseActivationCache`.
        """
        kwargs |= {"return_cache_object": return_cache_object, "remove_batch_dim": remove_batch_dim}
        out, cache = super().run_with_cache(*model_args, **kwargs)
        if return_cache_object:
            cache = SparseActivationCache(cache.cache_dict, self, cache.has_batch_dim)
        return out, cache

    @contextmanager
    def hooks(self, fwd_hooks=(), bwd_hooks=(), *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Install hooks as the host does; override: refuse those of tools that would be wrong.

        Raises:
            ValueError: If the hooks are of TransformerLens' direct path patching, which takes what
                a head writes for what the next one reads, and AbsTopK or a norm's gain stands
                between.
        """
        if any(getattr(hook, "__module__", "") == _DIRECT_PATHS for _, hook in fwd_hooks):
            self._check_direct_paths()
        with super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs) as hooked:
            yield hooked

    def _check_direct_paths(self) -> None:
        sites = ("attn_out", "attn_in", "q", "k", "v")
        between = [f"AbsTopK at {s}" for s in sites if self.sparsity.site_density(s) < 1]
        between += ["the position channels"] * bool(self.sparsity.position_channels)
        if between:
            raise ValueError(
                "TransformerLens' direct path patching adds a head's output, through the weights "
                f"alone, to the next head's q, k or v; in this model {', '.join(between)} stands "
                "between. Set cfg.use_split_qkv_input and patch hook_q_input, hook_k_input or "
                "hook_v_input with the change in cache.stack_head_results instead."
            )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to compile in place: hooks and caches would be skipped without a word.

        Raises:
            ValueError: Always; `torch.compile(model)` gives a compiled handle beside the model.
        """
        raise ValueError(
            "model.compile() would make run_with_cache and hooks silently do nothing. Use "
            "fast = torch.compile(model) to train and infer, and the model itself for hooks."
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the host does; override: it drops the tokens, which the table needs."""
        if not self.sparsity.bigram_table:
            return super().generate(*args, **kwargs)
        self._generated = []
        watch = self.embed.register_forward_pre_hook(self._note_tokens)
        try:
            return super().generate(*args, **kwargs)
        finally:
            watch.remove()
            self._generated = None

    def _note_tokens(self, module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._generated is not None:
            self._generated.append(args[0])

    def _apply(self, fn, recurse=True):
        """Cast or move; override: torch's own casts, as `double()`, would leave `cfg.dtype`."""
        super()._apply(fn, recurse)
        for parameter in self.parameters():
            self.cfg.dtype = parameter.dtype
            break
        return self

    def set_tokenizer(self, tokenizer, default_padding_side=None) -> None:
        """Set the tokenizer; override: the host asks the hub about one that has no folder."""
        if hasattr(tokenizer, "init_kwargs"):
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.init_kwargs.setdefault("name_or_path", "")
            tokenizer.init_kwargs["add_bos_token"] = True
        super().set_tokenizer(tokenizer, default_padding_side)

    # -- words ----------------------------------------------------------------------------------

    def summary(self) -> ModelSummary:
        """Give shape, nonzeros and density of each matrix and the dead neurons of each layer."""
        return summarize(self, self.cfg, self.sparsity)

    def __repr__(self) -> str:
        """One line: shape, densities, nonzeros; `summary()` has the table."""
        return one_line(self, self.cfg, self.sparsity)
