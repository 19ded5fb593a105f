"""Prompts that are read at their last token, run as the tree of their prefixes.

Under causal attention nothing depends on what follows: prompts that begin alike compute the same up
to where they part, and nobody looks at padding. So

1. each distinct prefix of a batch of prompts is run once, all of them in one row,
   [1, prefix, ...]: norms, weights and AbsTopK look at one token at a time,
2. for attention, queries, keys and values are laid out as prompts again, [prompt, pos, ...],
3. in the last block all prefixes give keys and values; queries, the MLP and all that follows are
   computed at the prompts' ends alone, [prompt, 1, ...].

Hook points fire with these shapes. The logits are those of an ordinary run to rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from tl_sparse.layers import fused_attention
from tl_sparse.model.blocks import beside, hooked
from tl_sparse.model.transformer import HookedSparseTransformer


@dataclass(frozen=True)
class PrefixTree:
    """Where each prefix of some prompts is computed, and where it is used."""

    tokens: Int[Tensor, "prompt pos"]
    """The prompts, padded on the right."""
    last: Int[Tensor, " prompt"]
    """Position of each prompt's last token."""
    prefixes: Int[Tensor, "prompt pos"]
    """Number of the prefix that ends here; any number in the padding."""
    firsts: Int[Tensor, " prefix"]
    """Where each prefix ends for the first time, as a place among all prompt x pos."""
    start: tuple[int, Float[Tensor, "1 prefix d_model"]] | None = None
    """A layer and the residual stream before it, where a run begins instead of at the tokens."""

    @classmethod
    def of(cls, tokens: Int[Tensor, "prompt pos"], last: Int[Tensor, " prompt"]) -> "PrefixTree":
        """Build the tree of some prompts, on the CPU."""
        known: dict[tuple[int, int], int] = {}
        rows, firsts, n_pos = [], [], tokens.shape[1]
        for i, (prompt, end) in enumerate(zip(tokens.tolist(), last.tolist(), strict=True)):
            row, prefix = [], -1
            for pos in range(end + 1):
                prefix = known.setdefault((prefix, prompt[pos]), len(known))
                if prefix == len(firsts):
                    firsts.append(i * n_pos + pos)
                row.append(prefix)
            rows.append(row + [0] * (n_pos - len(row)))
        return cls(tokens, last, torch.tensor(rows), torch.tensor(firsts))

    def to(self, device: torch.device) -> "PrefixTree":
        """Move to a device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            last=self.last.to(device),
            prefixes=self.prefixes.to(device),
            firsts=self.firsts.to(device),
        )

    def distinct(self, x: Float[Tensor, "prompt pos ..."]) -> Float[Tensor, "1 prefix ..."]:
        """Give what stands at each prefix, once."""
        return x.flatten(0, 1).index_select(0, self.firsts)[None]

    def as_prompts(self, x: Float[Tensor, "1 prefix ..."]) -> Float[Tensor, "prompt pos ..."]:
        """Give each prompt what stands at its prefixes."""
        return x[0].index_select(0, self.prefixes.flatten()).unflatten(0, self.prefixes.shape)

    def at_ends(self, x: Float[Tensor, "1 prefix ..."]) -> Float[Tensor, "prompt 1 ..."]:
        """Give what stands at the end of each prompt."""
        ends = self.prefixes.gather(1, self.last[:, None])
        return x[0].index_select(0, ends[:, 0])[:, None]


def runs_on_prefixes(model: HookedTransformer) -> bool:
    """Tell whether `last_logits` knows a model, as it is configured and hooked now.

    A hook may look at one position or for a shape, so nothing may be hooked.
    """
    cfg = model.cfg
    if not isinstance(model, HookedSparseTransformer) or cfg.attention_dir != "causal":
        return False
    if cfg.use_attn_in or cfg.use_split_qkv_input or cfg.parallel_attn_mlp or cfg.n_devices > 1:
        return False
    if cfg.positional_embedding_type not in ("standard", "none"):
        return False
    attentions: list[Any] = [block.attn for block in model.blocks]
    if any(attention.obstacle() for attention in attentions):
        return False
    if any(type(hook_point) is not HookPoint for hook_point in model.hook_dict.values()):
        return False  # an SAE stands there
    return not hooked(*model.modules())


def last_logits(model: HookedTransformer, tree: PrefixTree) -> Float[Tensor, "prompt d_vocab"]:
    """Give the logits at each prompt's last token; `runs_on_prefixes` says for which models."""
    *_, resid = residual_streams(model, tree)
    tokens = tree.tokens.gather(1, tree.last[:, None])
    return model(resid, start_at_layer=model.cfg.n_layers, tokens=tokens)[:, 0]


def residual_streams(model: HookedTransformer, tree: PrefixTree) -> Iterator[Tensor]:
    """Give the residual stream before each block, [1, prefix, d_model], and after the last one.

    The latter is at the prompts' ends, [prompt, 1, d_model]. A tree with a `start` begins there.
    """
    assert isinstance(model, HookedSparseTransformer)
    first, resid = tree.start or (0, tree.distinct(model(tree.tokens, stop_at_layer=0)))
    positions = None
    if model.sparsity.position_channels:
        positions = tree.distinct(model.positions_of(tree.as_prompts(resid), 0, None))
    yield resid
    for layer in range(first, model.cfg.n_layers):
        at_ends = layer == model.cfg.n_layers - 1
        resid = _run_block(model.blocks[layer], resid, positions, tree, at_ends=at_ends)
        yield resid


def _run_block(
    block: Any, resid: Tensor, positions: Tensor | None, tree: PrefixTree, *, at_ends: bool
) -> Tensor:
    """Run a block as its `forward` does, but for attention, which goes along the tree."""
    resid = block.hook_resid_pre(resid)
    normed = block.ln1(resid)
    if positions is not None:
        normed = beside(normed, block.ln1_positions(positions))
    read = asking = block.hook_attn_read(block.topk_attn_in(normed))
    if at_ends:
        resid, asking = tree.at_ends(resid), tree.at_ends(read)
        positions = None if positions is None else tree.at_ends(positions)
    attn_out = _attention(block.attn, asking, read, tree, at_ends=at_ends)
    attn_out = block.hook_attn_out(block.topk_attn_out(attn_out))
    if block.cfg.attn_only:
        return block.hook_resid_post(resid + attn_out)
    resid_mid = block.hook_resid_mid(resid + attn_out)
    return block.hook_resid_post(resid_mid + block.mlp_sublayer(resid_mid, positions))


def _attention(
    attn: Any, asking: Tensor, read: Tensor, tree: PrefixTree, *, at_ends: bool
) -> Tensor:
    """Run attention as its `forward` does, from `asking` to all that each prompt has `read`."""
    q, k, v = attn.calculate_qkv_matrices(asking, read, read)
    k, v = tree.as_prompts(k), tree.as_prompts(v)
    scale, sinks = float(attn.attn_scale), attn.sinks if attn.cfg.use_attention_sinks else None
    cut = attn.row_sum_bias is not None
    if at_ends:
        z, row_sums = _attention_from_ends(q, k, v, tree.last, scale=scale, sinks=sinks)
    else:
        q = tree.as_prompts(q)
        z, row_sums = fused_attention(q, k, v, scale=scale, causal=True, sinks=sinks, row_sums=cut)
        z, row_sums = tree.distinct(z), None if row_sums is None else tree.distinct(row_sums)
    w = attn.W_O.flatten(0, 1)  # [head_index * d_head, d_model]
    out = attn.products(f"{attn.layer_id}.o", attn.hook_z(z).flatten(-2), w, attn.b_O)
    return out + attn.row_bias(row_sums) if cut else out


def _attention_from_ends(
    q: Float[Tensor, "prompt 1 head_index d_head"],
    k: Float[Tensor, "prompt pos head_index d_head"],
    v: Float[Tensor, "prompt pos head_index d_head"],
    last: Int[Tensor, " prompt"],
    *,
    scale: float,
    sinks: Float[Tensor, " head_index"] | None,
) -> tuple[
    Float[Tensor, "prompt 1 head_index d_head"], Float[Tensor, "prompt 1 head_index"] | None
]:
    """Compute attention from the last tokens, with its few scores; also its pattern's row sums.

    As in `fused_attention`, None stands for rows that all sum to 1.
    """
    scores = torch.einsum("bqhd,bkhd->bqhk", q, k) / scale
    padding = torch.arange(k.shape[1], device=k.device) > last[:, None]
    scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None].expand(*scores.shape[:-1], 1)], dim=-1)
    pattern = scores.softmax(-1)[..., : k.shape[1]]
    z = torch.einsum("bqhk,bkhd->bqhd", pattern, v)
    return z, None if sinks is None else pattern.sum(-1)
