"""From a circuit and a prompt to a `PromptGraph`: run, link, check each sum, leave the rest out.

The steps go through the sites in the order of the forward pass; each writes the links into the
nodes of one site. See `prompt_graph.py` for what a link's weight and a place's constant are.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import only_circuit
from tl_sparse.circuit import Circuit, Edge, Node, Site
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.exports.prompt_graph import Link, Place, PromptGraph, Score, Value
from tl_sparse.interface import held_weights, readout_nodes, running_part
from tl_sparse.nodes import WRITE_SITES
from tl_sparse.sites import Joint, SiteMap, site_map
from tl_sparse.tasks.base import PairTask, Task

MOST_LOGITS, MOST_PROBABLE = 10, 0.95
"""Without a task: so many logits at most, and no more than have this probability together. These
are circuit-tracer's defaults."""


def prompt_graph(
    circuit: Circuit,
    model: HookedTransformer,
    prompt: str | Sequence[int] | Int[Tensor, " pos"],
    *,
    task: Task | None = None,
) -> PromptGraph:
    """Run a circuit alone on one prompt and give what its nodes add to each other.

    The logits are a `PairTask`'s answers; without a task the most probable tokens, at most 10.

    Raises:
        ValueError: If the circuit does not fit the model, the prompt is empty or too long, or the
            model has parts that the sums do not account for.
    """
    check_circuit(circuit, model)
    tokens = _tokens(model, prompt)
    answers = list(task.answer_ids.values()) if isinstance(task, PairTask) else []
    with torch.no_grad():
        run = _Run(circuit, model, tokens)
        tracer = _Tracer(run)
        tracer.trace(run.logit_tokens(answers))
    return tracer.graph()


def _tokens(model: HookedTransformer, prompt: Any) -> list[int]:
    """Give a prompt as tokens, without any that are not in its text."""
    if isinstance(prompt, str):
        tokenizer: Any = model.tokenizer
        if tokenizer is None:
            raise ValueError("The model has no tokenizer; give the prompt as tokens.")
        prompt = tokenizer.encode(prompt, add_special_tokens=False)
    tokens = [int(token) for token in prompt]
    if not 0 < len(tokens) <= model.cfg.n_ctx:
        raise ValueError(f"A prompt has 1 to {model.cfg.n_ctx} tokens, got {len(tokens)}.")
    outside = [token for token in tokens if not 0 <= token < model.cfg.d_vocab]
    if outside:
        raise ValueError(f"The model has no token {outside[0]}; it has {model.cfg.d_vocab}.")
    return tokens


class _Norm(NamedTuple):
    """A norm as it was on the prompt: (x - mean) / scale, then x gain + bias."""

    scale: Float[Tensor, "pos 1"]
    mean: Float[Tensor, "pos 1"]
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]


class _Run:
    """The circuit alone on a prompt: every activation, in float64, and the weights around it."""

    def __init__(self, circuit: Circuit, model: HookedTransformer, tokens: list[int]) -> None:
        self.model, self.cfg, self.tokens = model, model.cfg, tokens
        device = next(model.parameters()).device
        self.final = any(node.site.name == "final_in" for node in circuit.nodes)
        self.sites: SiteMap = site_map(model, final=self.final)
        with only_circuit(model, circuit):
            found: Any = model.run_with_cache(torch.tensor([tokens], device=device))
        logits, cache = found
        self.logits: Float[Tensor, " d_vocab"] = logits[0, -1].double().cpu()
        self.cache = {name: x[0].double().cpu() for name, x in cache.items()}
        self.circuit = running_part(circuit, model)
        self.joints = {joint.target: joint for joint in self.sites.joints}

    def value(self, site: Site) -> Float[Tensor, "pos width"]:
        info = self.sites[site]
        value = self.cache[info.hook_name]
        if value.ndim != 1 + len(info.shape):
            raise ValueError(
                f"{info.hook_name} has an activation for each head (cfg.use_split_qkv_input or "
                "use_attn_in); switch that off to export a circuit."
            )
        return value.reshape(len(self.tokens), -1)

    def input(self, site: Site) -> Float[Tensor, "pos width"]:
        """Give what the links into a site add up to."""
        before = self.cache.get(f"blocks.{site.layer}.mlp.hook_pre")
        return before if site.name == "mlp_neuron" and before is not None else self.value(site)

    def reference(self, site: Site) -> Float[Tensor, " width"]:
        return torch.tensor(self.circuit.references[site], dtype=torch.float64)

    def norm(self, site: Site) -> "_Norm":
        """Give what stands between the residual stream and a read."""
        block, name, stream = f"blocks.{site.layer}.", "ln1", "hook_resid_pre"
        if site.name == "mlp_in":
            name, stream = "ln2", "hook_resid_mid"
        if site.name == "final_in":
            block, name = "", "ln_final"
            stream = f"blocks.{self.cfg.n_layers - 1}.hook_resid_post"
        module: Any = self.model.get_submodule(block + name)
        one = torch.ones(self.cfg.d_model, dtype=torch.float64)
        gain, bias = (getattr(module, each, None) for each in "wb")
        centred = self.cfg.normalization_type in ("LN", "LNPre")
        mean = self.cache[block + stream].mean(-1, keepdim=True)
        return _Norm(
            scale=self.cache.get(f"{block}{name}.hook_scale", torch.ones(len(self.tokens), 1)),
            mean=mean if centred else torch.zeros_like(mean),
            gain=gain.double().cpu() if isinstance(gain, Tensor) else one,
            bias=bias.double().cpu() if isinstance(bias, Tensor) else one * 0,
        )

    def held_stream(self, site: Site) -> Float[Tensor, "pos d_model"]:
        """Give what stands in the residual stream before a read and comes from no place."""
        total = torch.zeros(len(self.tokens), self.cfg.d_model, dtype=torch.float64)
        if self.cfg.positional_embedding_type == "standard":
            total += self.model.pos_embed.W_pos.detach()[: len(self.tokens)].double().cpu()
        for info in self.sites.sites:
            if info.site.name in WRITE_SITES and info.site.order < site.order:
                held = self.reference(info.site).clone()
                held[list(self.circuit.channels(info.site))] = 0
                total += held
        return total

    def logit_tokens(self, answers: list[int]) -> dict[int, float]:
        """Give the tokens whose logits are traced, with their probabilities, largest first."""
        probabilities = self.logits.softmax(0)
        if not answers:
            top = probabilities.topk(min(MOST_LOGITS, len(probabilities)))
            before = top.values.cumsum(0) - top.values
            answers = top.indices[before < MOST_PROBABLE].tolist()
        found = {token: probabilities[token].item() for token in set(answers)}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class _Tracer:
    """Links place by place; `values` and `links` grow in the order of the forward pass."""

    def __init__(self, run: _Run) -> None:
        self.run, self.circuit, self.n_pos = run, run.circuit, len(run.tokens)
        self.values: dict[Place, Value] = {
            Place("token", pos, token): Value(1.0, 1.0, 0.0) for pos, token in enumerate(run.tokens)
        }
        self.token_places = list(self.values)
        self.links: dict[Place, list[Link]] = defaultdict(list)
        self.scores: list[Score] = []
        self.probabilities: dict[int, float] = {}
        self.tolerance = min(1e3 * torch.finfo(run.cfg.dtype).eps, 0.05)

    def trace(self, logits: dict[int, float]) -> None:
        self.probabilities = logits
        into: dict[Node, list[Edge]] = defaultdict(list)
        for edge in self.circuit.edges:
            into[edge.target].append(edge)
        for info in self.run.sites.sites:
            joint = self.run.joints.get(info.site)
            constants = self._stream(info.site) if joint is None else self._constants(joint)
            for channel in self.circuit.channels(info.site):
                node = Node(info.site, channel)
                if joint is None:
                    self._residual(node)
                else:
                    self._edges(node, into[node])
                self._finish(node, constants[:, channel])
            if info.site.name == "k":
                self._look(info.site.layer)
        for token in logits:
            self._logit(token)

    # -- what is added to a node ------------------------------------------------------------------

    def _add(self, source: Place, target: Place, weight: float) -> None:
        if source in self.values and weight:
            self.links[target].append(Link(source, target, weight))

    def _constants(self, joint: Joint) -> Float[Tensor, "pos width"]:
        """Give bias and what held nodes add, at each node of a joint's target."""
        run = self.run
        held = held_weights(self.circuit, run.model, joint)
        added = run.reference(joint.source)[:, None] * held
        bias = run.model.get_parameter(joint.bias).detach().flatten().double().cpu()
        if joint.target.name != "attn_out":
            return (bias + added.sum(0)).expand(self.n_pos, -1)
        by_head = added.unflatten(0, (run.cfg.n_heads, -1)).sum(1)
        return bias + self._pattern(joint.target.layer).sum(-1).T @ by_head

    def _pattern(self, layer: int) -> Float[Tensor, "head_index query_pos key_pos"]:
        return self.run.cache[f"blocks.{layer}.attn.hook_pattern"]

    def _edges(self, node: Node, edges: list[Edge]) -> None:
        for edge in edges:
            source = edge.source
            values = self.run.value(source.site)[:, source.channel] * edge.weight
            if node.site.name != "attn_out":
                for pos, weight in enumerate(values.tolist()):
                    self._add(Place(source, pos), Place(node, pos), weight)
                continue
            pattern = self._pattern(node.site.layer)[source.channel // self.run.cfg.d_head]
            weights = pattern * values
            for query, key in weights.nonzero().tolist():
                weight = weights[query, key].item()
                self._add(Place(source, key), Place(node, query), weight)

    def _stream(self, site: Site) -> Float[Tensor, "pos width"]:
        """Give what stands in the channels of a read and comes from no place."""
        run, norm = self.run, self.run.norm(site)
        constants = (run.held_stream(site) - norm.mean) / norm.scale
        if site.name != "final_in":  # the final read is before the gain, all others are behind it
            constants = constants * norm.gain + norm.bias
        positions = run.value(site)[:, run.cfg.d_model :]  # no token and no node writes these
        return torch.cat([constants, positions], dim=1)

    def _residual(self, node: Node) -> None:
        """Link what writes into a read's channel of the residual stream."""
        run, (site, channel) = self.run, node
        if channel >= run.cfg.d_model:
            return
        norm = run.norm(site)
        factor = (1.0 if site.name == "final_in" else norm.gain[channel]) / norm.scale[:, 0]
        embedding = run.model.embed.W_E.detach()[run.tokens, channel].double().cpu()
        for place, weight in zip(self.token_places, (embedding * factor).tolist(), strict=True):
            self._add(place, Place(node, place.pos), weight)
        for write in self.circuit.nodes:
            earlier = write.site.name in WRITE_SITES and write.site.order < site.order
            if earlier and write.channel == channel:
                weights = run.value(write.site)[:, channel] * factor
                for pos, weight in enumerate(weights.tolist()):
                    self._add(Place(write, pos), Place(node, pos), weight)

    def _finish(self, node: Node, constant: Float[Tensor, " pos"]) -> None:
        """Write down where a node is not 0, after a check that what was linked adds up."""
        activations = self.run.value(node.site)[:, node.channel].tolist()
        inputs = self.run.input(node.site)[:, node.channel].tolist()
        for pos, (activation, found) in enumerate(zip(activations, inputs, strict=True)):
            place = Place(node, pos)
            if activation:
                self._write(place, Value(activation, found, constant[pos].item()))
            else:
                self.links.pop(place, None)

    def _write(self, place: Place, value: Value) -> None:
        weights = [link.weight for link in self.links[place]]
        size = 1 + sum(map(abs, weights)) + abs(value.constant) + abs(value.input)
        if not abs(sum(weights) + value.constant - value.input) <= self.tolerance * size:
            raise ValueError(
                f"The links into {place.what} at position {place.pos} and its constant add up to "
                f"{sum(weights) + value.constant:.6g}, and it holds {value.input:.6g}: the model "
                "has a part that prompt_graph does not know (a soft cap, gains in a stock model). "
                "Load it as a HookedSparseTransformer without that part."
            )
        self.values[place] = value

    def _logit(self, token: int) -> None:
        run, last = self.run, self.n_pos - 1
        site = Site(run.cfg.n_layers, "final_in")
        norm = run.norm(site)
        row = run.model.unembed.W_U.detach()[:, token].double().cpu()
        constant = run.model.unembed.b_U.detach()[token].double().cpu() + norm.bias @ row
        target, source = Place("logit", last, token), self.token_places[last]
        bigram = getattr(run.model, "bigram", None)
        direct = 0.0 if bigram is None else bigram.table.detach()[source.token, token].item()
        if run.final:
            factor = norm.gain * row
            held = run.reference(site).clone()
            held[list(self.circuit.channels(site))] = 0
            constant += held @ factor
        else:
            factor = norm.gain * row / norm.scale[last]
            constant += (run.held_stream(site)[last] - norm.mean[last]) @ factor
            embedding = run.model.embed.W_E.detach()[source.token].double().cpu()
            direct += (embedding @ factor).item()
        self._add(source, target, direct)
        for node in readout_nodes(self.circuit):
            weight = run.value(node.site)[last, node.channel] * factor[node.channel]
            self._add(Place(node, last), target, weight.item())
        logit = run.logits[token].item()
        self._write(target, Value(logit, logit, constant.item()))

    # -- where heads look, and what is left -------------------------------------------------------

    def _look(self, layer: int) -> None:
        """Split the scores of heads with a kept q or k, where they are q k / scale alone."""
        run, cfg = self.run, self.run.cfg
        q, k = (run.value(Site(layer, name)).unflatten(1, (cfg.n_heads, -1)) for name in "qk")
        attention: Any = run.model.blocks[layer].attn
        terms = torch.einsum("qhc,khc->hcqk", q, k) / float(attention.attn_scale)
        scores = run.cache[f"blocks.{layer}.attn.hook_attn_scores"]
        seen = self._pattern(layer) != 0
        gap = torch.where(seen, terms.sum(1) - scores, 0.0).abs().max()
        if gap > self.tolerance * (1 + terms.abs().sum(1).max()):
            return
        kept = {name: set(self.circuit.channels(Site(layer, name))) for name in "qk"}
        for channel in sorted(kept["q"] | kept["k"]):
            head, c = divmod(channel, cfg.d_head)
            term = torch.where(seen[head], terms[head, c], 0.0)
            q_node, k_node = (Node(Site(layer, name), channel) for name in "qk")
            for query, key in term.nonzero().tolist():
                self.scores.append(
                    Score(
                        layer,
                        head,
                        query,
                        key,
                        Place(q_node, query) if channel in kept["q"] else None,
                        Place(k_node, key) if channel in kept["k"] else None,
                        term[query, key].item(),
                    )
                )

    def graph(self) -> PromptGraph:
        """Leave out what no logit depends on."""
        kept = self._reaching()
        return PromptGraph(
            tokens=tuple(self.run.tokens),
            values={p: v for p, v in self.values.items() if p in kept or p.what == "token"},
            links=tuple(link for p in self.values if p in kept for link in self.links[p]),
            scores=tuple(s for s in self.scores if not {s.q, s.k} - kept - {None}),
            probabilities=self.probabilities,
        )

    def _reaching(self) -> set[Place]:
        """Give the places that a logit can be reached from, by links or by an attention score."""
        heads: dict[Node, set[int]] = defaultdict(set)
        for edge in self.circuit.edges:
            if edge.target.site.name == "attn_out":
                heads[edge.target].add(edge.source.channel // self.run.cfg.d_head)
        looks: dict[tuple[int, int, int], set[Place]] = defaultdict(set)
        for s in self.scores:
            looks[s.layer, s.head, s.query_pos] |= {s.q, s.k} - {None}  # pyright: ignore
        found = {place for place in self.values if place.what == "logit"}
        todo = list(found)
        while todo:
            place = todo.pop()
            new = {link.source for link in self.links[place]}
            if isinstance(place.what, Node):
                for head in heads[place.what]:
                    new |= looks[place.what.site.layer, head, place.pos]
            todo += new - found
            found |= new
        return found
