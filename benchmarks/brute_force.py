"""Every subset of edges against `prune`, on small trained models.

    python benchmarks/brute_force.py --n-models 200 --jobs 2 --out ground_truth.json

1. A model has one layer (norm, sinks, biases, gelu) and 8 to 14 nonzero block weights at random
   places, one path at least from the embedding through a value to the stream. It is trained to say
   which of two letters came first, four noise letters later. Models that did not learn it (1.5 x
   their loss is 0.4 or more) are left out: the empty circuit would do.
2. The oracle runs all 2^n subsets of the weights under zero ablation, nodes following from edges,
   with a forward pass of its own over the few channels that there are.
3. `prune` finds a circuit for a target of 1.5 x the model's loss, 0.01 at least. Its loss must be
   the oracle's for the same edges and at most the target; its size is compared with the smallest
   subset that reaches the target. With `--slack 1.05 --floor 0` the target is just above the
   model's loss, and more of the weights are needed.
"""

import argparse
import json
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_sparse import HookedSparseTransformer, PruningConfig, prune
from tl_sparse.ablation import zero_references
from tl_sparse.tasks import SequenceExample, SequenceTask, Split

CHANNELS = {
    "attn_in": (0, 1, 2), "q": (2,), "k": (2,), "v": (2, 3, 10), "attn_out": (5, 6),
    "mlp_in": (0, 5, 6), "mlp_neuron": (7, 8), "mlp_out": (5, 9),
}  # fmt: skip
"""A few channels of each site, so that random edges among them make paths."""

JOINTS = {
    "q": ("attn_in", "W_Q"), "k": ("attn_in", "W_K"), "v": ("attn_in", "W_V"),
    "attn_out": ("v", "W_O"), "mlp_neuron": ("mlp_in", "W_in"), "mlp_out": ("mlp_neuron", "W_out"),
}  # fmt: skip
D_HEAD = 8
CONFIG = {"n_steps": 60, "n_edge_steps": 40, "batch_size": 32, "learning_rate": 0.02}
Ends = tuple[str, int, str, int]
"""Site and channel of the source, site and channel of the target."""


def letters_task() -> SequenceTask:
    """The first token, 24 or 25, is the answer; four of noise follow."""
    rng = random.Random(0)
    splits: tuple[tuple[Split, int, range], ...] = (
        ("train", 40, range(3, 8)), ("validation", 16, range(8, 12)), ("test", 16, range(12, 16)),
    )  # fmt: skip
    examples: dict[Split, list[SequenceExample]] = {}
    for split, n, noise in splits:
        middles: set[tuple[int, ...]] = set()
        while len(middles) < n:
            middles.add(tuple(rng.choices(noise, k=4)))
        examples[split] = [
            SequenceExample((24 + answer, *middle), (None, None, None, None, answer))
            for middle in sorted(middles)
            for answer in (0, 1)
        ]
    return SequenceTask("letters", examples)


def draw_edges(rng: random.Random) -> list[Ends]:
    """Draw 8 to 14 places for weights until a value is both fed and read."""
    places = [
        (source, a, target, b)
        for target, (source, _) in JOINTS.items()
        for a in CHANNELS[source]
        for b in CHANNELS[target]
    ]
    while True:
        edges = rng.sample(places, rng.randint(8, 14))
        fed = {b for _, _, target, b in edges if target == "v"}
        if any(source == "v" and a in fed for source, a, _, _ in edges):
            return edges


def place_of(edge: Ends) -> tuple[str, tuple[int, ...]]:
    """Give the parameter and the index of a weight."""
    _, a, target, b = edge
    name = JOINTS[target][1]
    if target in ("q", "k", "v"):
        return f"blocks.0.attn.{name}", (b // D_HEAD, a, b % D_HEAD)
    if target == "attn_out":
        return f"blocks.0.attn.{name}", (a // D_HEAD, a % D_HEAD, b)
    return f"blocks.0.mlp.{name}", (a, b)


def train_model(seed: int, task: SequenceTask) -> tuple[HookedSparseTransformer, list[Ends]]:
    """Train a model with a few weights in its block."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    edges = draw_edges(rng)
    model = HookedSparseTransformer(
        {
            "n_layers": 1, "d_model": 32, "d_head": D_HEAD, "d_mlp": 64, "n_ctx": 5, "d_vocab": 26,
            "d_vocab_out": 2, "act_fn": "gelu", "normalization_type": "RMSPre", "device": "cpu",
            "use_attention_sinks": True, "positional_embedding_type": "none", "seed": seed,
            "dtype": torch.float64,
        }
    )  # fmt: skip
    masks = {name: torch.zeros_like(mask) for name, mask in model.weight_masks.items()}
    for edge in edges:
        name, index = place_of(edge)
        masks[name][index] = True
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.0.") and name in masks and ".W_" in name:
                model.weight_masks.set_(name, masks[name])
            if "W_pos" not in name:
                parameter.normal_(std=0.5, generator=generator)
    model.apply_masks_()
    batch = task.batch("train")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    with model.frozen_masks():
        for _ in range(100):
            optimizer.zero_grad()
            task.loss(task.logits(model, batch), batch).backward()
            optimizer.step()
    return model, edges


class Oracle:
    """All subsets of a model's edges at once, in plain torch, channel by channel."""

    def __init__(self, model: HookedSparseTransformer, edges: list[Ends], task: SequenceTask):
        self.p = {name: value.detach() for name, value in model.named_parameters()}
        self.edges = edges
        self.weight = [float(self.p[name][index]) for name, index in map(place_of, edges)]
        batch = task.batch("validation")
        self.answers = batch.answers[:, -1]
        self.embedded = self.p["embed.W_E"][batch.tokens]  # batch pos d_model

    def losses(self, subsets: Tensor) -> Tensor:
        """Give the loss of each subset (a row of booleans)."""
        kept = subsets.to(torch.float64)
        read = self.embedded / (self.embedded.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        seen = {("attn_in", c): read[None, :, :, c] for c in CHANNELS["attn_in"]}
        for site in ("q", "k", "v"):
            bias = self.p[f"blocks.0.attn.b_{site.upper()}"].flatten()
            self._targets(site, seen, kept, bias)
        self._attention_out(seen, kept)
        resid, square = self._add("attn_out", seen, self.embedded[:, -1], None)
        scale = (square / 32 + 1e-5).sqrt()
        for c in CHANNELS["mlp_in"]:
            base = self.embedded[None, :, -1, c]
            seen["mlp_in", c] = resid.get(c, base) / scale
        self._targets("mlp_neuron", seen, kept, self.p["blocks.0.mlp.b_in"])
        self._targets("mlp_out", seen, kept, self.p["blocks.0.mlp.b_out"])
        resid, square = self._add("mlp_out", seen, self.embedded[:, -1], resid)
        logits = torch.einsum("bd,do->bo", self.embedded[:, -1], self.p["unembed.W_U"])[None]
        for c, value in resid.items():
            change = value - self.embedded[None, :, -1, c]
            logits = logits + change[..., None] * self.p["unembed.W_U"][c]
        logits = logits / (square / 32 + 1e-5).sqrt()[..., None] + self.p["unembed.b_U"]
        logp = logits.log_softmax(-1)
        rows = torch.arange(len(self.answers))
        return -logp[:, rows, self.answers].mean(1)

    def _into(self, site: str, channel: int) -> list[int]:
        return [i for i, e in enumerate(self.edges) if e[2:] == (site, channel)]

    def _live(self, i: int, seen: dict[Any, Tensor], kept: Tensor) -> Tensor:
        """Tell in which subsets an edge carries something: it is kept and so is its source."""
        return kept[:, i] * seen.get(("in", *self.edges[i][:2]), torch.ones(1).double())

    def _targets(self, site: str, seen: dict[Any, Tensor], kept: Tensor, bias: Tensor) -> None:
        """Compute a site's nodes: zero where no edge feeds them, else bias and all that comes."""
        for c in CHANNELS[site]:
            total, fed = None, torch.zeros(len(kept)).double()
            for i in self._into(site, c):
                live, source = self._live(i, seen, kept), seen[self.edges[i][:2]]
                fed = torch.maximum(fed, live)
                part = self.weight[i] * live.view(-1, *(1,) * (source.ndim - 1)) * source
                total = part if total is None else total + part
            if total is None:
                total = torch.zeros(1, 1, 1).double() if site in "qkv" else torch.zeros(1, 1)
            value = total + bias[c]
            if site == "mlp_neuron":
                value = torch.nn.functional.gelu(value)
            seen[site, c] = value * fed.view(-1, *(1,) * (value.ndim - 1))
            seen["in", site, c] = fed

    def _attention_out(self, seen: dict[Any, Tensor], kept: Tensor) -> None:
        """Attend from the last position; one q and one k channel at most, in head 0."""
        score = (seen["q", 2][..., -1:] * seen["k", 2]) / D_HEAD**0.5
        weights, sinks = {}, self.p["blocks.0.attn.sinks"]
        n_pos = self.embedded.shape[1]
        for head in {c // D_HEAD for c in CHANNELS["v"]}:
            own = score if head == 0 else torch.zeros(1, 1, n_pos).double()
            own = own.expand(*own.shape[:-1], n_pos)
            sink = sinks[head].expand(*own.shape[:-1], 1)
            weights[head] = torch.cat([own, sink], -1).softmax(-1)[..., :-1]
        for c in CHANNELS["v"]:
            seen["v", c] = (weights[c // D_HEAD] * seen["v", c]).sum(-1)
        self._targets("attn_out", seen, kept, self.p["blocks.0.attn.b_O"])

    def _add(
        self, site: str, seen: dict[Any, Tensor], base: Tensor, before: dict[int, Tensor] | None
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Add a site to the stream; give the channels that changed, and the sum of squares."""
        resid = dict(before or {})
        for c in CHANNELS[site]:
            resid[c] = resid.get(c, base[None, :, c]) + seen[site, c]
        square = base.pow(2).sum(-1)[None]
        for c, value in resid.items():
            square = square - base[None, :, c].pow(2) + value.pow(2)
        return resid, square


def all_subsets(n: int) -> Tensor:
    """Give all subsets of n things, one a row."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def run_one(seed: int, slack: float = 1.5, floor: float = 0.01) -> dict[str, Any]:
    """Train, try all subsets, prune, compare."""
    torch.set_num_threads(1)
    task = letters_task()
    model, edges = train_model(seed, task)
    oracle, subsets = Oracle(model, edges, task), all_subsets(len(edges))
    whole = oracle.losses(subsets[-1:]).item()
    target = max(floor, slack * whole)
    if whole >= 0.4 / 1.5:
        return {"seed": seed, "learned": False}
    with torch.no_grad():
        losses = torch.cat([oracle.losses(part) for part in subsets.split(1024)])
    best = int(subsets.sum(1)[losses <= target].min())
    config = PruningConfig.from_dict(CONFIG | {"target_loss": target})
    began = time.process_time()
    circuit = prune(model, task, zero_references(model), config, force=True, progress=False)
    ends = {
        (e.source.site.name, e.source.channel, e.target.site.name, e.target.channel)
        for e in circuit.edges
    }
    row = sum(1 << i for i, edge in enumerate(edges) if edge in ends)
    return {
        "seed": seed,
        "learned": True,
        "n_weights": len(edges),
        "target": target,
        "best": best,
        "found": circuit.n_edges,
        "loss": circuit.losses["validation"],
        "loss_by_oracle": losses[row].item(),
        "seconds": time.process_time() - began,
    }


def report(rows: list[dict[str, Any]], n_tried: int) -> str:
    """Write the figures as text."""
    excess = Counter(row["found"] - row["best"] for row in rows)
    over = sum(row["loss"] > row["target"] for row in rows)
    apart = max(abs(row["loss"] - row["loss_by_oracle"]) for row in rows)
    within = sum(count for gap, count in excess.items() if gap <= 1) / len(rows)
    lines = [
        f"{len(rows)} models that learned the task, of {n_tried} trained",
        f"loss over the target: {over}; largest difference from the oracle's loss: {apart:.1e}",
        f"within one edge of the best: {within:.1%}",
        "edges more than the best: " + ", ".join(f"{k}: {v}" for k, v in sorted(excess.items())),
        f"weights of a model: {dict(sorted(Counter(r['n_weights'] for r in rows).items()))}",
        f"edges of the best: {dict(sorted(Counter(r['best'] for r in rows).items()))}",
    ]
    worst = max(rows, key=lambda row: row["found"] - row["best"])
    lines.append(f"worst: seed {worst['seed']}, {worst['found']} edges for {worst['best']}")
    lines.append(f"CPU seconds in prune, mean: {sum(r['seconds'] for r in rows) / len(rows):.1f}")
    return "\n".join(lines)


def main() -> None:
    """Run models by seed, from 0 on, until enough of them have learned the task."""
    parser = argparse.ArgumentParser(description="Every subset of edges against prune.")
    parser.add_argument("--n-models", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--slack", type=float, default=1.5, help="target / loss of the model")
    parser.add_argument("--floor", type=float, default=0.01, help="the lowest target")
    parser.add_argument("--out", type=Path, default=None, help="one JSON line for each model")
    args = parser.parse_args()
    one = partial(run_one, slack=args.slack, floor=args.floor)
    rows: list[dict[str, Any]] = []
    seed, out = 0, args.out.open("w") if args.out else None
    with ProcessPoolExecutor(args.jobs) as pool:
        while len(rows) < args.n_models:
            block = range(seed, seed + 8 * args.jobs)
            for row in pool.map(one, block):
                seed = row["seed"] + 1
                if row["learned"] and len(rows) < args.n_models:
                    rows.append(row)
                if out:
                    print(json.dumps(row), file=out, flush=True)
                if len(rows) == args.n_models:
                    break
            if rows:
                print(report(rows, seed), flush=True)
    if out:
        out.close()


if __name__ == "__main__":
    main()
