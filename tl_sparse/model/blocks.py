"""The block of a sparse transformer: TransformerLens' own, with AbsTopK at the eight sites."""

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from transformer_lens import HookedTransformerConfig
from transformer_lens.components.attention import Attention
from transformer_lens.components.mlps.mlp import MLP
from transformer_lens.components.transformer_block import TransformerBlock
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.activation_functions import softcap_enabled
from transformer_lens.utilities.addmm import batch_addmm
from transformer_lens.utilities.attention import complex_attn_linear, simple_attn_linear

from tl_sparse.config import SparsityConfig
from tl_sparse.layers import AbsTopK, fused_attention
from tl_sparse.products import Products

AttentionPath = Literal["eager", "fused", "auto"]


class SparseAttention(Attention):
    """TransformerLens' attention with AbsTopK on q, k, v and an optional fused path."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int, sparsity: SparsityConfig) -> None:
        attn_type = "global" if not cfg.use_local_attn else (cfg.attn_types or [])[layer]
        super().__init__(cfg, attn_type, layer)
        width = cfg.n_heads * cfg.d_head
        if sparsity.position_channels:
            n_inputs = cfg.d_model + sparsity.position_channels
            for name in ("W_Q", "W_K", "W_V"):
                wide = torch.empty(cfg.n_heads, n_inputs, cfg.d_head, dtype=cfg.dtype)
                setattr(self, name, nn.Parameter(wide))
        self.topk_q = AbsTopK(sparsity.site_density("q"), width, n_dims=2)
        self.topk_k = AbsTopK(sparsity.site_density("k"), width, n_dims=2)
        self.topk_v = AbsTopK(sparsity.site_density("v"), width, n_dims=2)
        self.path: AttentionPath = "eager"
        self.products = Products()
        self.row_sum_bias: Tensor | None = None
        """[head_index, d_model]: added to the output once for each head, times the sum of its row
        of the pattern. A value that is constant over keys comes out so, and is no bias under
        attention sinks; `tl_sparse.ablation` sets it for cut edges."""

    def calculate_qkv_matrices(self, query_input, key_input, value_input):
        """Override: the host has no place between the projection and its hook."""
        q, k, v = self._project(query_input, key_input, value_input)
        q = self.hook_q(self.topk_q(q))
        k = self.hook_k(self.topk_k(k))
        v = self.hook_v(self.topk_v(v))
        if self.cfg.use_qk_norm:
            assert self.q_norm is not None
            assert self.k_norm is not None
            q, k = self._apply_qk_norm(q, self.q_norm), self._apply_qk_norm(k, self.k_norm)
        return q, k, v

    def _project(self, query_input, key_input, value_input):
        """Give q, k and v before AbsTopK: one product for all three where they read the same."""
        if self.cfg.use_split_qkv_input or self.cfg.use_attn_in:
            linear = complex_attn_linear
        elif self.products.path != "dense" and query_input is key_input is value_input:
            weight = rearrange(
                [self.W_Q, self.W_K, self.W_V],
                "qkv head inputs channel -> inputs (qkv head channel)",
            )
            bias = torch.cat([b.flatten() for b in (self.b_Q, self.b_K, self.b_V)])
            qkv = self.products(f"{self.layer_id}.qkv", query_input, weight, bias)
            return qkv.unflatten(-1, (3, self.cfg.n_heads, -1)).unbind(-3)
        else:
            linear = simple_attn_linear
        return (
            linear(query_input, self.W_Q, self.b_Q),
            linear(key_input, self.W_K, self.b_K),
            linear(value_input, self.W_V, self.b_V),
        )

    def forward(self, query_input, key_input, value_input, *args: Any, **kwargs: Any) -> Tensor:
        """Override: step past the scores where nobody looks at them (`attention="auto"`)."""
        obstacle = "eager was asked for" if self.path == "eager" else self.obstacle(*args, **kwargs)
        if obstacle and self.path == "fused":
            raise ValueError(
                f'attention="fused" never makes the scores, but {obstacle}. Use attention="auto", '
                "which steps aside in such a forward pass."
            )
        if obstacle:
            return self._eager(query_input, key_input, value_input, *args, **kwargs)
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        z, row_sums = fused_attention(
            q,
            k,
            v,
            scale=float(self.attn_scale),
            causal=self.cfg.attention_dir == "causal",
            sinks=self.sinks if self.cfg.use_attention_sinks else None,
            row_sums=self.row_sum_bias is not None,
        )
        w = self.W_O.flatten(0, 1)  # [head_index * d_head, d_model]
        out = self.products(f"{self.layer_id}.o", self.hook_z(z).flatten(-2), w, self.b_O)
        return out if self.row_sum_bias is None else out + self.row_bias(row_sums)

    def _eager(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the host's attention, and watch its pattern where the sums of rows are needed."""
        if self.row_sum_bias is None:
            return super().forward(*args, **kwargs)
        sums: list[Tensor] = []
        watch = self.hook_pattern.register_forward_hook(
            lambda module, inputs, pattern: sums.append(pattern.sum(-1).transpose(1, 2))
        )
        try:
            out = super().forward(*args, **kwargs)
        finally:
            watch.remove()
        return out + self.row_bias(sums[-1])

    def row_bias(self, row_sums: Tensor | None) -> Tensor:
        """Give what `row_sum_bias` adds to the output; None stands for rows that all sum to 1."""
        assert self.row_sum_bias is not None
        return self.row_sum_bias.sum(0) if row_sums is None else row_sums @ self.row_sum_bias

    def obstacle(self, *args: Any, **kwargs: Any) -> str | None:
        """Say what in this forward pass needs the matrix of scores, if anything does."""
        cfg = self.cfg
        if args or any(value is not None for value in kwargs.values()):
            return "an attention mask, a key-value cache or a position bias is used"
        if cfg.use_attn_result:
            return "cfg.use_attn_result asks for each head's own result"
        if cfg.positional_embedding_type not in ("standard", "shortformer", "none"):
            return f"positions are {cfg.positional_embedding_type}"
        capped = softcap_enabled(cfg.attn_scores_soft_cap)
        if self.attn_type != "global" or capped or cfg.clip_qkv is not None:
            return "local attention, a soft cap or clipped q, k, v are configured"
        if cfg.use_qk_norm or cfg.use_logn_attn:
            return "normalised queries are configured"
        if in_use(self.hook_attn_scores) or in_use(self.hook_pattern):
            return "a hook stands on hook_attn_scores or hook_pattern"
        return None


def in_use(hook_point: nn.Module) -> bool:
    """Tell whether anything watches a hook point; `has_hooks` misses torch's own hooks and SAEs."""
    return type(hook_point) is not HookPoint or hooked(hook_point)


def hooked(*modules: nn.Module) -> bool:
    """Tell whether any hook of torch's stands on one of some modules."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


class SparseMLP(MLP):
    """TransformerLens' MLP with AbsTopK on its neurons."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int, topk: AbsTopK) -> None:
        super().__init__(cfg)
        self.layer, self.topk, self.products = layer, topk, Products()

    def _product(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.products.path == "dense":
            return batch_addmm(bias, weight, x)
        return self.products(f"{self.layer}.{name}", x, weight, bias)

    def forward(self, x):
        """Override: the host has no place between activation, or the norm after it, and hook."""
        post = self.act_fn(self.hook_pre(self._product("in", x, self.W_in, self.b_in)))
        if self.cfg.is_layer_norm_activation():
            assert self.ln is not None
            assert self.hook_mid is not None
            post = self.ln(self.hook_mid(post))
        return self._product("out", self.hook_post(self.topk(post)), self.W_out, self.b_out)


class SparseTransformerBlock(TransformerBlock):
    """TransformerLens' block with one norm call per sublayer, AbsTopK and two new hook points.

    With position channels, attention and MLP read them, through norms of their own, behind the
    channels of the residual stream; they come in the host's slot for Shortformer's positions.
    """

    def __init__(self, cfg: HookedTransformerConfig, layer: int, sparsity: SparsityConfig) -> None:
        super().__init__(cfg, layer)
        d_model, self.position_channels = cfg.d_model, sparsity.position_channels
        d_read = d_model + self.position_channels
        self.attn = SparseAttention(cfg, layer, sparsity)
        if self.position_channels:
            self.ln1_positions = _norm_like(self.ln1, cfg, self.position_channels)
        self.topk_attn_in = AbsTopK(sparsity.site_density("attn_in"), d_read)
        self.topk_attn_out = AbsTopK(sparsity.site_density("attn_out"), d_model)
        self.hook_attn_read = HookPoint()  # [batch, pos, d_model + position_channels]
        if cfg.attn_only:
            return
        assert cfg.d_mlp is not None
        if type(self.mlp) is MLP:
            topk = AbsTopK(sparsity.site_density("mlp_neuron"), cfg.d_mlp)
            self.mlp = SparseMLP(cfg, layer, topk)
        if self.position_channels:
            self.ln2_positions = _norm_like(self.ln2, cfg, self.position_channels)
            self.mlp.W_in = nn.Parameter(torch.empty(d_read, cfg.d_mlp, dtype=cfg.dtype))
        self.topk_mlp_in = AbsTopK(sparsity.site_density("mlp_in"), d_read)
        self.topk_mlp_out = AbsTopK(sparsity.site_density("mlp_out"), d_model)
        self.hook_mlp_read = HookPoint()  # [batch, pos, d_model + position_channels]

    def forward(
        self,
        resid_pre,
        shortformer_pos_embed=None,
        past_kv_cache_entry=None,
        attention_mask=None,
    ):
        """Override: the host norms three times and has no hook point after the norm's gain."""
        resid_pre = self.hook_resid_pre(resid_pre)
        positions = None
        if self.position_channels:
            positions = self._positions(resid_pre, shortformer_pos_embed)
            shortformer_pos_embed = None
        attn_out = self._attention(
            resid_pre, positions, shortformer_pos_embed, past_kv_cache_entry, attention_mask
        )
        attn_out = self.hook_attn_out(self.topk_attn_out(attn_out))
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        if self.cfg.parallel_attn_mlp:
            mlp_out = self.mlp_sublayer(resid_pre, positions)
            return self.hook_resid_post(resid_pre + attn_out + mlp_out)
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        return self.hook_resid_post(resid_mid + self.mlp_sublayer(resid_mid, positions))

    def _positions(self, resid, positions):
        """Give the positions of the tokens in hand: with a key-value cache, of the last ones."""
        if positions is None:
            raise ValueError(
                "This block reads position channels and was given a residual stream alone. Pass "
                "what model.positions gives as shortformer_pos_embed."
            )
        return positions[:, -resid.shape[1] :]

    def _attention(
        self, resid_pre, positions, shortformer_pos_embed, past_kv_cache_entry, attention_mask
    ):
        n_heads = self.cfg.n_heads

        def heads(x):
            return x if x is None else x[:, :, None].expand(-1, -1, n_heads, -1).clone()

        def read(x):
            normed = self.ln1(x)
            if positions is not None:
                normed = beside(normed, self.ln1_positions(positions))
            return self.hook_attn_read(self.topk_attn_in(normed))

        attn_in = resid_pre
        if self.cfg.use_attn_in or self.cfg.use_split_qkv_input:
            shortformer_pos_embed = heads(shortformer_pos_embed)
        if self.cfg.use_attn_in:
            attn_in = self.hook_attn_in(heads(resid_pre))
        if self.cfg.use_split_qkv_input:
            q_read = read(self.hook_q_input(heads(resid_pre)))
            k_read = read(self.hook_k_input(heads(resid_pre)))
            v_read = read(self.hook_v_input(heads(resid_pre)))
        else:
            q_read = k_read = v_read = read(attn_in)
        if shortformer_pos_embed is not None:
            q_read, k_read = q_read + shortformer_pos_embed, k_read + shortformer_pos_embed
        return self.attn(
            query_input=q_read,
            key_input=k_read,
            value_input=v_read,
            past_kv_cache_entry=past_kv_cache_entry,
            attention_mask=attention_mask,
        )

    def mlp_sublayer(self, resid, positions):
        """Give what the MLP adds to a residual stream."""
        mlp_in = self.hook_mlp_in(resid.clone()) if self.cfg.use_hook_mlp_in else resid
        normed = self.ln2(mlp_in)
        if positions is not None:
            normed = beside(normed, self.ln2_positions(positions))
        mlp_read = self.hook_mlp_read(self.topk_mlp_in(normed))
        return self.hook_mlp_out(self.topk_mlp_out(self.mlp(mlp_read)))


def _norm_like(norm: nn.Module, cfg: HookedTransformerConfig, length: int) -> nn.Module:
    """Give another norm of the same kind, for `length` channels if it has a gain for each."""
    kind: Any = type(norm)
    return kind(cfg, length) if hasattr(norm, "w") else kind(cfg)


def beside(normed: Tensor, positions: Tensor) -> Tensor:
    """Put position channels behind those of the residual stream, in each head's copy if split."""
    if normed.ndim == 4:  # [batch, pos, head_index, d_model]
        positions = positions[:, :, None].expand(-1, -1, normed.shape[2], -1)
    return torch.cat([normed, positions], dim=-1)
