"""`HookedSparseTransformer`: construction, masks, the forward pass."""

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.utilities.defaults_utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults

from tl_sparse.config import SparsityConfig
from tl_sparse.layers import BigramTable
from tl_sparse.masks import WeightMasks, check_budget, masked_parameters
from tl_sparse.model.blocks import AttentionPath, SparseAttention, SparseTransformerBlock
from tl_sparse.model.storage import StoredTransformer
from tl_sparse.summary import ModelSummary, one_line, summarize


class HookedSparseTransformer(StoredTransformer):
    """A HookedTransformer whose weights and activations can be sparse.

    `sparsity` says what is sparse; without it the model is TransformerLens' own. `attention` is
    "eager" (TransformerLens' computation, exact), "fused" (never makes the scores; refuses where a
    hook needs them) or "auto" (fused wherever nobody looks at the scores); by default "eager" when
    nothing is sparse and "auto" otherwise. `cfg.positional_embedding_type="none"` switches
    positions off: W_pos is zero and frozen.

    Raises:
        ValueError: If the sparsity can't be met in this shape, or the shape is not supported.

    Examples:
        >>> cfg = dict(n_layers=1, d_model=32, n_ctx=16, d_head=8, d_vocab=20, act_fn="gelu",
        ...            normalization_type="RMSPre", use_attention_sinks=True, device="cpu")
        >>> model = HookedSparseTransformer(cfg, sparsity=SparsityConfig(weight_density=1 / 16))
        >>> int((model.W_in != 0).sum()), model(torch.zeros(1, 4, dtype=torch.long)).shape
        (256, torch.Size([1, 4, 20]))
    """

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
        sparsity = SparsityConfig() if sparsity is None else sparsity
        if isinstance(cfg, Mapping):
            cfg = HookedTransformerConfig.from_dict(dict(cfg))
        _check_supported(cfg, sparsity)
        wants_weights, cfg.init_weights = cfg.init_weights, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                super().__init__(cfg, tokenizer, False, default_padding_side)
        finally:
            cfg.init_weights = wants_weights
        self.sparsity = sparsity
        for layer in range(cfg.n_layers):
            self.blocks[layer] = SparseTransformerBlock(cfg, layer, sparsity)
        if sparsity.bigram_table:
            self.bigram = BigramTable(cfg.d_vocab, cfg.d_vocab_out, cfg.dtype)
        self._generated: list[Tensor] | None = None
        self.set_attention(attention or ("eager" if sparsity.is_dense else "auto"))
        specs = masked_parameters(self, cfg.n_layers)
        check_budget(specs, self, sparsity)
        self.weight_masks = WeightMasks(specs, dict(self.named_parameters()))
        if cfg.positional_embedding_type == "none":
            self.pos_embed.W_pos.requires_grad_(False).zero_()
        if wants_weights:
            self.init_weights()
        if move_to_device:
            self.move_model_modules_to_device()
        self.setup()

    # -- weights and masks --------------------------------------------------------------------

    def init_weights(self) -> None:
        """Draw all weights as TransformerLens does, then enforce the densities, in place."""
        super().init_weights()
        if self.cfg.positional_embedding_type == "none":
            with torch.no_grad():
                self.pos_embed.W_pos.zero_()
        if self.sparsity.bigram_table:
            self.bigram.init_weights()
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

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load parameters as torch does, then choose the masks from what was loaded."""
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self.project_()
        return result

    def load_and_process_state_dict(self, state_dict, *args: Any, **kwargs: Any) -> Any:
        """Load without processing; override: folding and centring change a sparse model's function.

        Raises:
            ValueError: If the model is sparse and any processing is asked for, also by default; or
                if value biases would be folded away under attention sinks.
        """
        wanted = inspect.signature(HookedTransformer.load_and_process_state_dict)
        bound = wanted.bind(self, state_dict, *args, **kwargs)
        bound.apply_defaults()
        steps = [name for name, value in bound.arguments.items() if value is True]
        if steps and not self.sparsity.is_dense:
            raise ValueError(
                f"{', '.join(steps)} would change what this model computes, or make its weights "
                "dense: AbsTopK does not commute with it. Load with load_state_dict; with "
                'normalization_type="RMSPre" there is nothing to fold.'
            )
        moved = {"fold_value_biases", "refactor_factored_attn_matrices"}.intersection(steps)
        biased = any(name.endswith("attn.b_V") and bool(t.any()) for name, t in state_dict.items())
        if moved and biased and self.cfg.use_attention_sinks:
            raise ValueError(
                f"{', '.join(sorted(moved))} would change what this model computes: with attention "
                "sinks the patterns do not sum to 1, so a value bias is no constant that could "
                "move. Pass fold_value_biases=False and refactor_factored_attn_matrices=False to "
                "load_and_process_state_dict."
            )
        return super().load_and_process_state_dict(*bound.args[1:], **bound.kwargs)

    def move_model_modules_to_device(self) -> None:
        """Move to `cfg.device`; override: the host's list lacks the masks and the bigram table."""
        super().move_model_modules_to_device()
        device = self.embed.W_E.device
        self.weight_masks.to(device)
        if self.sparsity.bigram_table:
            self.bigram.to(device)

    # -- running ------------------------------------------------------------------------------

    def set_attention(self, path: AttentionPath) -> None:
        """Choose "eager", "fused" or "auto" attention, in place."""
        if path not in ("eager", "fused", "auto"):
            raise ValueError(f'attention is one of "eager", "fused", "auto", got {path!r}.')
        self.attention: AttentionPath = path
        for block in self.blocks:
            assert isinstance(block.attn, SparseAttention)
            block.attn.path = path

    @contextmanager
    def using_attention(self, path: AttentionPath) -> Iterator[None]:
        """Choose the attention path inside a `with` block."""
        before = self.attention
        self.set_attention(path)
        try:
            yield
        finally:
            self.set_attention(before)

    def get_residual(self, embed, *args: Any, **kwargs: Any) -> Any:
        """Override: the host knows no model without positions."""
        if self.cfg.positional_embedding_type != "none":
            return super().get_residual(embed, *args, **kwargs)
        return (embed, None) if kwargs.get("return_shortformer_pos_embed", True) else embed

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
        return loss if return_type == "loss" else (logits, loss)

    def _tokens_of(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            return tokens
        if self._generated is None:
            raise ValueError(
                "This model adds a bigram table to the logits and was given a residual stream "
                "without tokens. Pass tokens=... beside start_at_layer."
            )
        return torch.cat(self._generated, dim=1)[:, -logits.shape[1] :]

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


def _check_supported(cfg: HookedTransformerConfig, sparsity: SparsityConfig) -> None:
    """Refuse the shapes of TransformerLens whose forward pass this module does not follow."""
    refused = {
        "n_key_value_heads": cfg.n_key_value_heads,
        "num_experts": cfg.num_experts,
        "gated_mlp": cfg.gated_mlp,
        "load_in_4bit": cfg.load_in_4bit,
        "post_embedding_ln": cfg.post_embedding_ln,
        "use_normalization_before_and_after": cfg.use_normalization_before_and_after,
    }
    for name, value in refused.items():
        if value:
            raise ValueError(f"HookedSparseTransformer does not support cfg.{name}={value!r}.")
    if cfg.n_devices > 1:
        raise ValueError("HookedSparseTransformer keeps a model on one device; set n_devices=1.")
    if not cfg.attn_only and cfg.is_layer_norm_activation() and not sparsity.is_dense:
        raise ValueError(f"act_fn={cfg.act_fn!r} norms after the activation; use 'gelu' or 'relu'.")
    if not cfg.attn_only and not cfg.d_mlp:
        raise ValueError("cfg.d_mlp is missing; set it (usually 4 x d_model) or attn_only=True.")
