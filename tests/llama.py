"""A model of Llama's shape in plain torch, nodes and edges cut: the oracle of test_found.py."""

import torch
import torch.nn.functional as F

from tl_sparse.circuit import Site


def rms(x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotated(x, base):
    """Turn [batch, pos, head, d_head] by position, halves of the head as pairs."""
    n_pos, d_head = x.shape[1], x.shape[3]
    speeds = base ** (-torch.arange(0, d_head, 2, dtype=x.dtype) / d_head)
    angles = torch.arange(n_pos, dtype=x.dtype)[:, None] * speeds
    cos, sin = (f(angles)[None, :, None, :] for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Llama:
    """Runs the parameters of a HookedTransformer; every target looks at its sources by itself.

    `nodes` and `values` are by site, `edges` by pair of sites: 1 where the target sees the source,
    0 where it sees the source's value instead. Values are [node] or [batch, pos, node].
    """

    def __init__(self, model, nodes=None, values=None, edges=None):
        self.p = {name: p.detach() for name, p in model.named_parameters()}
        self.cfg, self.nodes, self.values = model.cfg, nodes or {}, values or {}
        self.edges = edges or {}

    def gate(self, layer, name, x):
        """Give a site's activation as the circuit has it, [batch, pos, node]."""
        site = Site(layer, name)
        if site not in self.nodes:
            return x
        return self.nodes[site] * x + (1 - self.nodes[site]) * self.values[site]

    def seen(self, layer, source, target, x, scale=1.0):
        """Give what each target sees of each source, [batch, pos, source, target]."""
        gate = self.edges.get((Site(layer, source), Site(layer, target)))
        if gate is None:
            return (x * scale)[..., None]
        value = self.values[Site(layer, source)].expand_as(x)
        return (scale * x)[..., None] * gate + (scale * value)[..., None] * (1 - gate)

    def product(self, layer, source, target, x, weight, scale=1.0):
        return (self.seen(layer, source, target, x, scale) * weight).sum(-2)

    def attention(self, layer, read, gain):
        cfg, p, block = self.cfg, self.p, f"blocks.{layer}.attn."
        shared = "_" if cfg.n_key_value_heads else ""
        found = {}
        for name, prefix in (("q", ""), ("k", shared), ("v", shared)):
            weight = p[f"{block}{prefix}W_{name.upper()}"].transpose(0, 1).flatten(1)
            bias = p[f"{block}{prefix}b_{name.upper()}"].flatten()
            x = self.product(layer, "attn_in", name, read, weight, gain) + bias
            found[name] = self.gate(layer, name, x)
        q, k = (
            rotated(found[n].unflatten(-1, (-1, cfg.d_head)), cfg.rotary_base) for n in ("q", "k")
        )
        n_sharing = q.shape[2] // k.shape[2]
        out = p[f"{block}b_O"]
        mask = torch.ones(q.shape[1], q.shape[1]).tril().bool()
        seen = self.seen(layer, "v", "attn_out", found["v"])
        for head in range(cfg.n_heads):
            group = head // n_sharing
            scores = q[:, :, head] @ k[:, :, group].transpose(1, 2) / cfg.d_head**0.5
            pattern = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            channels = slice(group * cfg.d_head, (group + 1) * cfg.d_head)
            given = (seen[:, :, channels] * p[f"{block}W_O"][head]).sum(-2)
            out = out + pattern @ given
        return self.gate(layer, "attn_out", out)

    def mlp(self, layer, read, gain):
        p, block = self.p, f"blocks.{layer}.mlp."
        pre, linear = (
            self.product(layer, "mlp_in", "mlp_neuron", read, p[block + name], gain)
            for name in ("W_gate", "W_in")
        )
        post = self.gate(layer, "mlp_neuron", F.silu(pre) * linear + p[f"{block}b_in"])
        out = self.product(layer, "mlp_neuron", "mlp_out", post, p[f"{block}W_out"])
        return self.gate(layer, "mlp_out", out + p[f"{block}b_out"])

    def __call__(self, tokens):
        p, eps = self.p, self.cfg.eps
        x = p["embed.W_E"][tokens]
        for layer in range(self.cfg.n_layers):
            read = self.gate(layer, "attn_in", rms(x, eps))
            x = x + self.attention(layer, read, p[f"blocks.{layer}.ln1.w"])
            read = self.gate(layer, "mlp_in", rms(x, eps))
            x = x + self.mlp(layer, read, p[f"blocks.{layer}.ln2.w"])
        read = self.gate(self.cfg.n_layers, "final_in", rms(x, eps))
        return read * p["ln_final.w"] @ p["unembed.W_U"] + p["unembed.b_U"]
