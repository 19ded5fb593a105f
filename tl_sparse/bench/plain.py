"""The baseline: a dense transformer in plain PyTorch, as fast as it can be written by hand.

The network of a `HookedSparseTransformer` without positions, AbsTopK, sinks and bigram table, with
RMS norms without gains: one product for q, k and v, fused attention, PyTorch's own norm. It has no
hook points, and nothing of ours in it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from tl_sparse.bench.sizes import D_HEAD, Size
from tl_sparse.presets import FLOAT32_EPS


class PlainBlock(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.up = nn.Linear(d_model, d_mlp)
        self.down = nn.Linear(d_mlp, d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Give the stream behind the block."""
        q, k, v = self.qkv(norm(x)).unflatten(-1, (3, -1, D_HEAD)).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(norm(x))))


class PlainTransformer(nn.Module):
    """Tokens to logits; weights are drawn from N(0, 0.02), biases are zero."""

    def __init__(self, size: Size, *, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.d_vocab, size.d_model)
        blocks = [PlainBlock(size.d_model, size.d_mlp) for _ in range(size.n_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.unembed = nn.Linear(size.d_model, size.d_vocab)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.02, generator=generator)
                else:
                    parameter.zero_()

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Give the logits at every position."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(norm(x))

    def loss(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
        """Give the mean cross entropy of each token given those before it, in nats."""
        # The last logits predict nothing: to ignore them is cheaper than to copy the others.
        targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100)

    @torch.no_grad()
    def load_(self, model: HookedTransformer) -> None:
        """Copy the weights of a HookedTransformer of the same shape, in place."""
        theirs = dict(model.named_parameters())
        self.embed.weight.copy_(theirs["embed.W_E"])
        self.unembed.weight.copy_(theirs["unembed.W_U"].T)
        self.unembed.bias.copy_(theirs["unembed.b_U"])
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, PlainBlock)
            own = {k.split(".", 2)[2]: p for k, p in theirs.items() if f"blocks.{layer}." in k}
            heads = [own[f"attn.W_{c}"].transpose(1, 2).flatten(0, 1) for c in "QKV"]
            block.qkv.weight.copy_(torch.cat(heads))
            block.qkv.bias.copy_(torch.cat([own[f"attn.b_{c}"].flatten() for c in "QKV"]))
            block.out.weight.copy_(own["attn.W_O"].flatten(0, 1).T)
            block.out.bias.copy_(own["attn.b_O"])
            for linear, name in ((block.up, "in"), (block.down, "out")):
                linear.weight.copy_(own[f"mlp.W_{name}"].T)
                linear.bias.copy_(own[f"mlp.b_{name}"])


def norm(x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """Divide each vector by its root mean square."""
    return F.rms_norm(x, x.shape[-1:], eps=FLOAT32_EPS)
