"""The block of a sparse transformer: TransformerLens' own, with AbsTopK at the eight sites."""

from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.components.attention import Attention
from transformer_lens.components.transformer_block import TransformerBlock
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.attention import complex_attn_linear, simple_attn_linear

from tl_sparse.config import SparsityConfig
from tl_sparse.layers import AbsTopK, SparseActivation, fused_attention

AttentionPath = Literal["eager", "fused", "auto"]


class SparseAttention(Attention):
    """TransformerLens' attention with AbsTopK on q, k, v and an optional fused path."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int, sparsity: SparsityConfig) -> None:
        attn_type = "global" if not cfg.use_local_attn else (cfg.attn_types or [])[layer]
        super().__init__(cfg, attn_type, layer)
        width = cfg.n_heads * cfg.d_head
        self.topk_q = AbsTopK(sparsity.site_density("q"), width, n_dims=2)
        self.topk_k = AbsTopK(sparsity.site_density("k"), width, n_dims=2)
        self.topk_v = AbsTopK(sparsity.site_density("v"), width, n_dims=2)
        self.path: AttentionPath = "eager"

    def calculate_qkv_matrices(self, query_input, key_input, value_input):
        """Override: the host has no place between the projection and its hook."""
        split = self.cfg.use_split_qkv_input or self.cfg.use_attn_in
        linear = complex_attn_linear if split else simple_attn_linear
        q = self.hook_q(self.topk_q(linear(query_input, self.W_Q, self.b_Q)))
        k = self.hook_k(self.topk_k(linear(key_input, self.W_K, self.b_K)))
        v = self.hook_v(self.topk_v(linear(value_input, self.W_V, self.b_V)))
        return q, k, v

    def forward(self, query_input, key_input, value_input, *args: Any, **kwargs: Any) -> Tensor:
        """Override: step past the scores where nobody looks at them (`attention="auto"`)."""
        obstacle = (
            "eager was asked for" if self.path == "eager" else self._obstacle(*args, **kwargs)
        )
        if obstacle and self.path == "fused":
            raise ValueError(
                f'attention="fused" never makes the scores, but {obstacle}. Use attention="auto", '
                "which steps aside in such a forward pass."
            )
        if obstacle:
            return super().forward(query_input, key_input, value_input, *args, **kwargs)
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        z = self.hook_z(
            fused_attention(
                q,
                k,
                v,
                scale=float(self.attn_scale),
                causal=self.cfg.attention_dir == "causal",
                sinks=self.sinks if self.cfg.use_attention_sinks else None,
            )
        )
        w = rearrange(self.W_O, "head_index d_head d_model -> d_model (head_index d_head)")
        return F.linear(z.flatten(-2), w, self.b_O)

    def _obstacle(self, *args: Any, **kwargs: Any) -> str | None:
        """Say what in this forward pass needs the matrix of scores, if anything does."""
        cfg = self.cfg
        if args or any(value is not None for value in kwargs.values()):
            return "an attention mask, a key-value cache or a position bias is used"
        if cfg.use_attn_result:
            return "cfg.use_attn_result asks for each head's own result"
        if cfg.positional_embedding_type not in ("standard", "shortformer", "none"):
            return f"positions are {cfg.positional_embedding_type}"
        if self.attn_type != "global" or cfg.attn_scores_soft_cap > 0 or cfg.clip_qkv is not None:
            return "local attention, a soft cap or clipped q, k, v are configured"
        if cfg.use_qk_norm or cfg.use_logn_attn:
            return "normalised queries are configured"
        if _live(self.hook_attn_scores) or _live(self.hook_pattern):
            return "a hook stands on hook_attn_scores or hook_pattern"
        return None


def _live(hook_point: HookPoint) -> bool:
    """Tell whether anything watches a hook point; `has_hooks` misses torch's own hooks and SAEs."""
    hooks = (hook_point._forward_hooks, hook_point._backward_hooks, hook_point._forward_pre_hooks)
    wrapped = type(hook_point) is not HookPoint
    return wrapped or any(hooks) or bool(hook_point._backward_pre_hooks)


class SparseTransformerBlock(TransformerBlock):
    """TransformerLens' block with one norm call per sublayer, AbsTopK and two new hook points."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int, sparsity: SparsityConfig) -> None:
        super().__init__(cfg, layer)
        d_model = cfg.d_model
        self.attn = SparseAttention(cfg, layer, sparsity)
        self.topk_attn_in = AbsTopK(sparsity.site_density("attn_in"), d_model)
        self.topk_attn_out = AbsTopK(sparsity.site_density("attn_out"), d_model)
        self.hook_attn_read = HookPoint()  # [batch, pos, d_model]
        if cfg.attn_only:
            return
        assert cfg.d_mlp is not None
        self.topk_mlp_in = AbsTopK(sparsity.site_density("mlp_in"), d_model)
        self.topk_mlp_out = AbsTopK(sparsity.site_density("mlp_out"), d_model)
        self.hook_mlp_read = HookPoint()  # [batch, pos, d_model]
        if sparsity.site_density("mlp_neuron") < 1:
            topk = AbsTopK(sparsity.site_density("mlp_neuron"), cfg.d_mlp)
            self.mlp.act_fn = SparseActivation(self.mlp.act_fn, topk)

    def forward(
        self,
        resid_pre,
        shortformer_pos_embed=None,
        past_kv_cache_entry=None,
        attention_mask=None,
    ):
        """Override: the host norms three times and has no hook point after the norm's gain."""
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self._attention(
            resid_pre, shortformer_pos_embed, past_kv_cache_entry, attention_mask
        )
        attn_out = self.hook_attn_out(self.topk_attn_out(attn_out))
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        if self.cfg.parallel_attn_mlp:
            mlp_out = self._mlp(resid_pre)
            return self.hook_resid_post(resid_pre + attn_out + mlp_out)
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        return self.hook_resid_post(resid_mid + self._mlp(resid_mid))

    def _attention(self, resid_pre, shortformer_pos_embed, past_kv_cache_entry, attention_mask):
        n_heads = self.cfg.n_heads

        def heads(x):
            return x if x is None else x[:, :, None].expand(-1, -1, n_heads, -1).clone()

        def read(x):
            return self.hook_attn_read(self.topk_attn_in(self.ln1(x)))

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

    def _mlp(self, resid):
        mlp_in = self.hook_mlp_in(resid.clone()) if self.cfg.use_hook_mlp_in else resid
        mlp_read = self.hook_mlp_read(self.topk_mlp_in(self.ln2(mlp_in)))
        return self.hook_mlp_out(self.topk_mlp_out(self.mlp(mlp_read)))
