"""SAEs for tests, and a transformer with SAEs spliced in, in plain torch: the arm's oracle."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sae_lens import (
    SAE,
    AbsTopKSAE,
    AbsTopKSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from torch import Tensor

from tl_sparse.circuit import Site
from tl_sparse.sites import Joint, SiteInfo, site_map

CODED = ("attn_in", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
ARCHITECTURES = ("topk", "abstopk", "jumprelu", "standard")


def coded_sites(model: Any) -> list[SiteInfo]:
    """The sites of a model that take an SAE."""
    return [info for info in site_map(model).sites if info.site.name in CODED]


def make_sae(architecture: str, hook_name: str, d_in: int, d_sae: int, seed: int = 0) -> SAE[Any]:
    """A random SAE whose weights, biases and thresholds are all at work."""
    same = {"d_in": d_in, "d_sae": d_sae, "dtype": "float64"}
    sae: SAE[Any]
    if architecture == "topk":
        sae = TopKSAE(TopKSAEConfig(k=3, rescale_acts_by_decoder_norm=True, **same))
    elif architecture == "abstopk":
        sae = AbsTopKSAE(AbsTopKSAEConfig(k=3, **same))
    elif architecture == "jumprelu":
        sae = JumpReLUSAE(JumpReLUSAEConfig(apply_b_dec_to_input=False, **same))
    else:
        sae = StandardSAE(StandardSAEConfig(**same))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.normal_(std=0.5, generator=generator)
            if name == "threshold":
                parameter.abs_()
    sae.cfg.metadata.hook_name = hook_name
    return sae


def random_saes(model: Any, architecture: str, d_sae: int = 6) -> dict[Site, SAE[Any]]:
    """One for every site that takes an SAE."""
    return {
        info.site: make_sae(architecture, info.hook_name, info.width, d_sae, seed=i)
        for i, info in enumerate(coded_sites(model))
    }


def identity_saes(model: Any) -> dict[Site, SAE[Any]]:
    """SAEs that leave everything as it is: one latent a channel, all on, with its sign."""
    found = {}
    for info in coded_sites(model):
        n = info.width
        sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=n, d_sae=n, k=n, dtype="float64"))
        with torch.no_grad():
            for weight in (sae.W_enc, sae.W_dec):
                weight.copy_(torch.eye(n))
        sae.cfg.metadata.hook_name = info.hook_name
        found[info.site] = sae
    return found


def mirror_saes(model: Any, noise: float = 0.1) -> dict[Site, SAE[Any]]:
    """SAEs with one latent for each channel and sign, and some noise."""
    found, generator = {}, torch.Generator().manual_seed(4)
    for info in coded_sites(model):
        n = info.width
        sae = StandardSAE(StandardSAEConfig(d_in=n, d_sae=2 * n, dtype="float64"))
        both = torch.cat([torch.eye(n), -torch.eye(n)])
        with torch.no_grad():
            sae.W_enc.copy_(both.T + noise * torch.randn(n, 2 * n, generator=generator))
            sae.W_dec.copy_(both + noise * torch.randn(2 * n, n, generator=generator))
            sae.b_enc.copy_(noise * torch.randn(2 * n, generator=generator))
        sae.cfg.metadata.hook_name = info.hook_name
        found[info.site] = sae
    return found


class ByHand:
    """A one-path run of the spliced model, target by target, from its weights and SAELens' SAEs.

    Gates are of 0 and 1. What a target sees of a cut source is the source's reference value, and
    each target has a run of its own from its sources to itself.
    """

    def __init__(
        self,
        model: Any,
        saes: Mapping[Site, SAE[Any]],
        nodes: Mapping[Site, Tensor],
        edges: Mapping[tuple[Site, Site], Tensor],
        values: Mapping[Site, Tensor],
    ) -> None:
        self.p = {name: p.detach() for name, p in model.named_parameters()}
        self.cfg, self.saes = model.cfg, saes
        self.nodes, self.edges, self.values = nodes, edges, values

    def gated(self, site: Site, entries: Tensor) -> Tensor:
        gate = self.spread(site, self.nodes[site]) if site in self.nodes else None
        return entries if gate is None else torch.where(gate.bool(), entries, self.values[site])

    def spread(self, site: Site, gate: Tensor) -> Tensor:
        if site not in self.saes:
            return gate
        sae = self.saes[site]
        return torch.cat([gate[: sae.cfg.d_sae], gate[-1:].repeat(sae.cfg.d_in)])

    def decode(self, site: Site, entries: Tensor) -> Tensor:
        if site not in self.saes:
            return entries
        n = self.saes[site].cfg.d_sae
        return self.saes[site].decode(entries[..., :n]) + entries[..., n:]

    def encoded(self, site: Site, view: Callable[[int], Tensor]) -> Tensor:
        """The nodes of a site, of which the one numbered j sees the activation `view(j)`."""
        sae = self.saes[site]
        pre: list[Any] = []
        handle = sae.hook_sae_acts_pre.register_forward_hook(lambda m, i, out: pre.append(out))
        for j in range(sae.cfg.d_sae):
            sae.encode(view(j))
        handle.remove()
        h = torch.stack([one[..., j] for j, one in enumerate(pre)], -1)
        put = sae.hook_sae_acts_pre.register_forward_hook(lambda m, i, out: h)
        latents = sae.encode(view(0))
        put.remove()
        seen = view(sae.cfg.d_sae)
        return torch.cat([latents, seen - sae.decode(sae.encode(seen))], -1)

    def target(
        self, source: Site, entries: Tensor, target: Site, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The nodes of a site that an MLP or an attention gives, and gated; `run` leads there."""
        keep = self.edges.get((source, target))
        views: dict[int, Tensor] = {}

        def view(j: int) -> Tensor:
            if j not in views:
                seen = entries
                if keep is not None:
                    gate = self.spread(source, keep[:, j]).bool()
                    seen = torch.where(gate, entries, self.values[source])
                views[j] = run(self.decode(source, seen))
            return views[j]

        if target in self.saes:
            return self.gated(target, self.encoded(target, view))
        n = view(0).shape[-1]
        return self.gated(target, torch.stack([view(j)[..., j] for j in range(n)], -1))

    def read(self, site: Site, x: Tensor) -> Tensor:
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.cfg.eps).sqrt()
        return self.gated(site, self.encoded(site, lambda j: x) if site in self.saes else x)

    def logits(self, tokens: Tensor) -> Tensor:
        p, n_heads, n = self.p, self.cfg.n_heads, tokens.shape[1]
        x = p["embed.W_E"][tokens] + p["pos_embed.W_pos"][:n]
        for layer in range(self.cfg.n_layers):
            a = {k.split(".", 2)[2]: v for k, v in p.items() if k.startswith(f"blocks.{layer}.")}
            at = {name: Site(layer, name) for name in (*CODED, "q", "k", "v")}
            read = self.read(at["attn_in"], x)
            qkv = {}
            for c in "QKV":
                w = a[f"attn.W_{c}"].transpose(0, 1).flatten(1)
                b = a[f"attn.b_{c}"].flatten()
                flat = self.target(
                    at["attn_in"], read, at[c.lower()], lambda y, w=w, b=b: y @ w + b
                )
                qkv[c] = flat.unflatten(-1, (n_heads, -1))
            scores = torch.einsum("bqhd,bkhd->bhqk", qkv["Q"], qkv["K"]) / self.cfg.d_head**0.5
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
            sink = a["attn.sinks"][None, :, None, None].expand(len(tokens), -1, n, 1)
            pattern = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]

            def mixed(v: Tensor, pattern: Tensor = pattern, a: Any = a) -> Tensor:
                z = torch.einsum("bhqk,bkhd->bqhd", pattern, v.unflatten(-1, (n_heads, -1)))
                return z.flatten(-2) @ a["attn.W_O"].flatten(0, 1) + a["attn.b_O"]

            out = self.target(at["v"], qkv["V"].flatten(-2), at["attn_out"], mixed)
            x = x + self.decode(at["attn_out"], out)
            read = self.read(at["mlp_in"], x)
            neurons = self.target(
                at["mlp_in"],
                read,
                at["mlp_neuron"],
                lambda y, a=a: torch.nn.functional.gelu(y @ a["mlp.W_in"] + a["mlp.b_in"]),
            )
            out = self.target(
                at["mlp_neuron"],
                neurons,
                at["mlp_out"],
                lambda y, a=a: y @ a["mlp.W_out"] + a["mlp.b_out"],
            )
            x = x + self.decode(at["mlp_out"], out)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.cfg.eps).sqrt()
        return x @ p["unembed.W_U"] + p["unembed.b_U"]


def by_ends(edges: Mapping[Joint, Tensor]) -> dict[tuple[Site, Site], Tensor]:
    """Gates of edges by their two sites."""
    return {(joint.source, joint.target): gate for joint, gate in edges.items()}
